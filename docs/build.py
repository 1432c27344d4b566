"""Build the site: gather the sources of the pages, let Sphinx make them, add what the browser needs.

Nothing is executed, nothing comes from another host."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import lessons
import pages
import reference
import results

FRONT_END = ROOT / "build/docs/front-end"  # what npm installs, kept from one build to the next
PROGRAMS = ("*.py", "play", "__pycache__", "README.md", "package.json", "node_modules")  # not pages
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")
NO_PICTURES = ("*.json", "*.jsonl", "*.md", "*.py", "*.safetensors", "__pycache__")  # beside pictures in nbs/
NO_NPM = (
    "The site needs npm, which comes with Node.js, for MathJax: "
    "install Node.js 18 or newer (Debian: apt-get install npm), then try again."
)


def install_front_end() -> Path:
    "Install what package.json names, unless it is there already. Returns the folder of the packages."
    versions = _read_json(DOCS / "package.json")["dependencies"]
    modules = FRONT_END / "node_modules"
    if all(_installed_version(modules / name) == version for name, version in versions.items()):
        return modules
    if shutil.which("npm") is None:
        sys.exit(NO_NPM)
    FRONT_END.mkdir(parents=True, exist_ok=True)
    shutil.copy(DOCS / "package.json", FRONT_END)
    command = ["npm", "install", "--no-package-lock", "--ignore-scripts"]
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command + quiet, cwd=FRONT_END).returncode:
        sys.exit("npm could not install what docs/package.json names: its message stands above.")
    return modules


def _installed_version(package: Path) -> str | None:
    description = package / "package.json"
    return _read_json(description)["version"] if description.exists() else None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def gather(
    source: Path,  # a folder that is not there yet
) -> None:
    "Write the source of every page: what stands in docs/, the notebooks, the reference, the results."
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns(*PROGRAMS))
    for folder in ("images", "stored", "results"):
        target = source / "lessons" / folder
        shutil.copytree(ROOT / "nbs" / folder, target, ignore=shutil.ignore_patterns(*NO_PICTURES))
    for notebook in lessons.notebooks():
        path = source / f"{notebook.page}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(pages.page(notebook)), encoding="utf-8")
    (source / "api").mkdir()
    for name, text in reference.pages().items():
        (source / f"api/{name}.rst").write_text(text, encoding="utf-8")
    (source / "results.md").write_text(results.page(), encoding="utf-8")
    _fill_navigation(source / "index.md")


def _fill_navigation(index: Path) -> None:
    "Put the lessons and the guides into the home page's lists. Companions stand below their lesson."
    text = index.read_text(encoding="utf-8")
    numbered = [lesson for lesson in lessons.lessons() if lesson.number and not lesson.is_companion]
    text = text.replace("LESSONS", "\n".join(lesson.page for lesson in numbered))
    text = text.replace("GUIDES", "\n".join(guide.page for guide in lessons.guides()))
    index.write_text(text, encoding="utf-8")


def run_sphinx(source: Path, pages: Path, doctrees: Path) -> None:
    "Make the pages. Warnings are errors, all of them shown."
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", "2", "-q"]
    strict = ["-W", "--keep-going"]
    folders: list[str | Path] = ["-c", DOCS, "-d", doctrees, source, pages]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if subprocess.run([*command, *strict, *folders], env=environment).returncode:
        sys.exit("The site was not built: see the warnings above.")


def add_mathjax(modules: Path, site: Path) -> None:
    "The part of MathJax that the pages use, its fonts included."
    for part in MATHJAX:
        source = modules / "mathjax/es5" / part
        target = site / "_static/mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)


def add_play_page(site: Path) -> None:
    "The page on which the shipped models run in the browser."
    import play  # exports the models, so that it needs more packages than the rest

    play.build(site)


def build(
    site: Path,  # takes the pages; it is replaced only if all went well
    work: Path,  # takes what is needed on the way
    with_play: bool = True,  # whether the play page is made too
) -> None:
    "Build the site anew."
    modules = install_front_end()
    shutil.rmtree(work, ignore_errors=True)
    gather(work / "source")
    made = work / "pages"
    run_sphinx(work / "source", made, work / "doctrees")
    add_mathjax(modules, made)
    if with_play:
        add_play_page(made)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(made, site)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    work = ROOT / "build/docs/work"
    site_help = "where the pages go (default: site)"
    work_help = "for what is only needed on the way (default: build/docs/work)"
    play_help = "leave the play page empty, which saves exporting the models"
    parser.add_argument("--site", type=Path, default=ROOT / "site", help=site_help)
    parser.add_argument("--work", type=Path, default=work, help=work_help)
    parser.add_argument("--no-play", action="store_true", help=play_help)
    arguments = parser.parse_args()
    build(arguments.site.resolve(), arguments.work.resolve(), not arguments.no_play)
    print(f"The site is in {arguments.site}: make docs-serve shows it.")


if __name__ == "__main__":
    main()
