"""Build the site: gather the pages' sources in build/docs, let Sphinx turn them into HTML, add what the browser needs. Nothing is executed, nothing comes from another host."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FRONT_END = ROOT / "build/docs/front-end"  # what npm installs, kept from one build to the next
sys.path[:0] = [str(DOCS), str(ROOT)]

import lessons
import reference
import results


def front_end() -> Path:
    "Install what package.json names, unless it is there already. Returns the folder of the packages."
    wanted = json.loads((DOCS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    modules = FRONT_END / "node_modules"
    found = {name: modules / name / "package.json" for name in wanted}
    if all(
        path.exists() and json.loads(path.read_text(encoding="utf-8"))["version"] == wanted[name]
        for name, path in found.items()
    ):
        return modules
    if shutil.which("npm") is None:
        sys.exit(
            "The site needs npm, which comes with Node.js, for MathJax: install Node.js 18 or newer (Debian: apt-get install npm), then try again."
        )
    FRONT_END.mkdir(parents=True, exist_ok=True)
    shutil.copy(DOCS / "package.json", FRONT_END)
    command = [
        "npm",
        "install",
        "--no-package-lock",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    if subprocess.run(command, cwd=FRONT_END).returncode:
        sys.exit("npm could not install what docs/package.json names: its message stands above.")
    return modules


def gather(source: Path) -> None:
    "Write the source of every page: what stands in docs/, the lessons, the reference, the results."
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        DOCS,
        source,
        ignore=shutil.ignore_patterns(
            "*.py", "play", "__pycache__", "README.md", "package.json", "node_modules"
        ),
    )
    for folder in ("images", "stored"):
        shutil.copytree(
            ROOT / "nbs" / folder, source / "lessons" / folder, ignore=shutil.ignore_patterns("*.json")
        )
    for lesson in lessons.lessons():
        (source / f"{lesson.page}.ipynb").write_text(json.dumps(lessons.page(lesson)), encoding="utf-8")
    (source / "api").mkdir()
    for name, text in reference.pages().items():
        (source / f"api/{name}.rst").write_text(text, encoding="utf-8")
    (source / "results.md").write_text(results.page(), encoding="utf-8")
    index = source / "index.md"
    core = "\n".join(lesson.page for lesson in lessons.lessons() if lesson.number and not lesson.companion)
    index.write_text(index.read_text(encoding="utf-8").replace("LESSONS", core), encoding="utf-8")


def mathjax(modules: Path, site: Path) -> None:
    "The part of MathJax that the pages use, its fonts included."
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions"):
        source, target = modules / "mathjax/es5" / part, site / "_static/mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def play(site: Path) -> None:
    "The page on which the shipped model runs in the browser, where docs/play.py is there to write it."
    if (DOCS / "play.py").exists():
        spec = importlib.util.spec_from_file_location("play", DOCS / "play.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.build(site)


def build(site: Path, work: Path, with_play: bool = True) -> None:
    "Build the site anew into the folder `site`, which is replaced only if all went well; `work` takes what is needed on the way."
    modules = front_end()
    shutil.rmtree(work, ignore_errors=True)
    gather(work / "source")
    pages = work / "pages"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-j",
        "2",
        "-b",
        "html",
        "-c",
        DOCS,
        "-d",
        work / "doctrees",
        work / "source",
        pages,
    ]
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        sys.exit("The site was not built: see the warnings above.")
    mathjax(modules, pages)
    if with_play:
        play(pages)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(pages, site)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="where the pages go (default: site)")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build/docs/work",
        help="for what is only needed on the way (default: build/docs/work)",
    )
    parser.add_argument(
        "--no-play", action="store_true", help="leave the play page empty, which saves exporting the model"
    )
    arguments = parser.parse_args()
    build(arguments.site.resolve(), arguments.work.resolve(), not arguments.no_play)
    print(f"The site is in {arguments.site}: make docs-serve shows it.")
