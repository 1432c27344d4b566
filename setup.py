"""Reads settings.ini, the one place that holds the version, the requirements and the extras."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

repository = settings["git_url"]
project_urls = {
    "Documentation": settings["doc_host"] + settings["doc_baseurl"],
    "Source": repository,
    "Issues": f"{repository}/issues",
    "Changelog": f"{repository}/blob/{settings['branch']}/CHANGELOG.md",
}

extras = {}
for name, value in settings.items():
    if name.endswith("_requirements"):
        extras[name.removesuffix("_requirements")] = value.split()

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    project_urls=project_urls,
    license_expression=settings["license"],
    license_files=["LICENSE"],
    classifiers=settings["classifiers"].strip().splitlines(),
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["cfvae", "cfvae.*"]),
    package_data={"cfvae": ["py.typed", "**/*.j2", "weights/**/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].splitlines()},
    zip_safe=False,
)
