"""How Sphinx makes the pages. docs/build.py gathers their sources first."""

import sys
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import cfvae.pipeline  # noqa: F401  before Sphinx forks: PyTorch is slow to import, once is enough
import docstrings
import links
from sphinx.application import Sphinx

settings = ConfigParser()
settings.read(DOCS.parent / "settings.ini")

project = "cfvae"
author = settings["DEFAULT"]["author"]
release = settings["DEFAULT"]["version"]
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_togglebutton",
]
root_doc = "index"
default_role = "code"
smartquotes_action = "qe"  # two dashes are those of an option
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}  # would be requested from elsewhere; a note stands in the widgets' place
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu makes every formula a stop of the Tab key
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = "cfvae"
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "footer_content_items": "copyright",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("autodoc-process-docstring", docstrings.complete, priority=400)  # before numpydoc reads it
    app.connect("doctree-resolved", links.connect)
