"What is installed and what is published: the built package, its versions, its requirements."

import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement

import cfvae

ROOT = Path(__file__).parent.parent
BUILD_INPUTS = ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
NOT_PACKAGED = shutil.ignore_patterns("__pycache__", "_modidx.py", ".ipynb_checkpoints")


def read_settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def files_below(folder: Path, pattern: str) -> set[str]:
    "The files that match a pattern, relative to the folder, with slashes."
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


def named(names: set[str], pattern: str) -> set[str]:
    "The names whose last part matches a pattern."
    return {name for name in names if PurePosixPath(name).match(pattern)}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    "A copy of what a build needs: in the checkout, a build would leave folders that the next one reads."
    folder = tmp_path_factory.mktemp("source")
    for name in BUILD_INPUTS:
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "cfvae", folder / "cfvae", ignore=NOT_PACKAGED)
    return folder


@pytest.fixture(scope="module")
def wheel_names(source, tmp_path_factory) -> set[str]:
    "The names in a wheel that was built from the source distribution, without a network."
    target = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module(source, wheel_names):
    modules = files_below(source, "cfvae/**/*.py")
    assert "cfvae/__init__.py" in modules
    assert named(wheel_names, "*.py") == modules


def test_the_wheel_says_that_the_package_is_typed(wheel_names):
    assert "cfvae/py.typed" in wheel_names


def test_the_wheel_holds_every_template(source, wheel_names):
    assert named(wheel_names, "*.j2") == files_below(source, "cfvae/**/*.j2")


def test_the_wheel_holds_the_weights(source, wheel_names):
    weights = files_below(source, "cfvae/weights/**/*")
    assert "cfvae/weights/shapes/vae/model.safetensors" in weights
    assert {name for name in wheel_names if name.startswith("cfvae/weights/")} == weights


def test_torchvision_imports_beside_torch():
    "Where the two come from different builds, the import fails, and CIFAR-10 with it."
    imported = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr[-2000:]


def test_one_version_everywhere():
    version = read_settings()["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cfvae.__version__ == version
    assert newest is not None and newest[1] == version
    assert citation["version"] == version


def test_constraints_pin_what_settings_ask_for():
    "Every direct requirement has a tested version, inside its range; the file gives names and versions only."
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if not line.startswith("#"):
            name, version = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line).groups()
            pins[name] = version
    settings = read_settings()
    for text in f"{settings['requirements']} {settings['dev_requirements']}".split():
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{requirement.name} has no version in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit {pins[name]}"
