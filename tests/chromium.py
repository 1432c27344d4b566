"Chromium, for the tests that look at pages as a reader does."

import os
import shutil

import pytest

CHROMIUM = (
    os.environ.get("CFVAE_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]  # the first: no page of ours may ask another host
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: install it, or set CFVAE_CHROMIUM"
)
