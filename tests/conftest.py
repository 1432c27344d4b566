"What all tests share: no clock, and one way to a browser."

import pytest
from chromium import CHROMIUM, FLAGS
from hypothesis import settings

settings.register_profile(
    "without-a-clock", deadline=None
)  # how long an example takes says more about the machine than about the code
settings.load_profile("without-a-clock")


@pytest.fixture(scope="module")
def browser():
    "A headless Chromium, driven by Playwright."
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
