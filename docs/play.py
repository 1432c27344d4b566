"""Write the play page: python docs/play.py SITE.

It exports the shipped models, and takes the program that runs them in a browser from npm."""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cfvae.core import check
from cfvae.onnx_export import export_onnx, round_weights
from cfvae.pipeline import LatentVAEPipeline

SOURCES = Path(__file__).parent / "play"
# the variant for the processor alone, which is much the smallest
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def runtime(folder: Path) -> None:
    "Put the two files of onnxruntime-web that the page needs into a folder, as package.json names it."
    package = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))
    ((name, version),) = package["dependencies"].items()
    check(
        shutil.which("npm") is not None,
        "the play page needs npm, which comes with Node.js: install Node.js 18 or newer "
        "(Debian: apt-get install npm)",
    )
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "pack", f"{name}@{version}", "--silent", "--prefer-offline"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        reason = " ".join(done.stderr.split())[:300] or "is there a network?"
        check(done.returncode == 0, f"npm could not fetch {name} {version}: {reason}")
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            for file in RUNTIME:
                source = archive.extractfile(f"package/dist/{file}")
                with source, (folder / file).open("wb") as target:
                    shutil.copyfileobj(source, target)


def build(site: Path) -> None:
    """Write play.html, and the folder play with all that it loads, into a site.

    Raises `CfvaeError` where npm or a package is missing."""
    folder = site / "play"
    folder.mkdir(parents=True, exist_ok=True)
    runtime(folder)
    shapes, photos = (LatentVAEPipeline.from_pretrained(name) for name in ("shapes", "cifar10"))
    export_onnx(shapes, folder / "shapes")
    graph = export_onnx(round_weights(photos), folder / "cifar10")  # in halves it would be twice as large
    for name in ("play.js", "play.css", "worker.js"):
        shutil.copy(SOURCES / name, folder)
    page = (SOURCES / "play.html").read_text(encoding="utf-8")
    size = graph.stat().st_size
    page = page.replace("BYTES", str(size)).replace("SIZE", f"{size / 1e6:.0f} MB")
    (site / "play.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the folder of the site")
    build(parser.parse_args().site)
