"""Reads settings.ini, the one place that holds the version, the requirements and the extras."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["cfvae", "cfvae.*"]),
    package_data={"cfvae": ["weights/**/*"]},
    include_package_data=True,
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        name.removesuffix("_requirements"): value.split()
        for name, value in settings.items()
        if name.endswith("_requirements")
    },
    entry_points={"console_scripts": settings["console_scripts"].split("\n")},
    zip_safe=False,
)
