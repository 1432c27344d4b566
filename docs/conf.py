"""How Sphinx makes the pages, and what happens to each on the way. docs/build.py gathers the sources first."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # this folder's modules
sys.path.insert(1, str(Path(__file__).parent.parent))

import cfvae.pipeline  # noqa: F401  before Sphinx forks: PyTorch is slow to import, once is enough
import reference
from docutils import nodes
from lessons import NUMBER, PAPER, equations, find_name, lessons, papers
from sphinx.util.osutil import relative_uri

project = "cfvae"
settings = ConfigParser()
settings.read(Path(__file__).parent.parent / "settings.ini")
author, release = settings["DEFAULT"]["author"], settings["DEFAULT"]["version"]
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
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be requested from elsewhere; a note stands in the widgets' place
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "options": {"enableMenu": False}
}  # with its menu every formula would be a stop of the Tab key
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

REFERENCES = re.compile(
    rf"\((?P<equation>{NUMBER}\.\d+)\)|\blessons? (?P<lesson>{NUMBER})\b|(?P<paper>{PAPER})"
)
BARE = re.compile(rf"(?P<equation>{NUMBER}\.\d+)")  # the table of symbols has numbers without brackets
QUIET = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.title,
    nodes.raw,
    nodes.rubric,
)


def _quiet(node) -> bool:
    while node is not None:
        if isinstance(node, QUIET):
            return True
        node = node.parent
    return False


def number_equations(doctree, docname: str) -> None:
    "A numbered equation keeps its own number, and in its lesson becomes a target."
    for block in doctree.findall(nodes.math_block):
        if match := re.search(r"\\tag\{([^}]*)\}", block.astext()):
            if equations()[match[1]][0] == docname:
                block["ids"].append(f"eq-{match[1]}")
            block["no-wrap"] = True
            block[:] = [nodes.Text(f"\\begin{{equation}}{block.astext()}\\end{{equation}}")]


def _target(match: re.Match) -> tuple[str, str] | None:
    "Page and anchor of what a reference means; None where there is no such thing."
    found = match.groupdict()
    if number := found.get("equation"):
        return (equations()[number][0], f"eq-{number}") if number in equations() else None
    if number := found.get("lesson"):
        return next(((lesson.page, "") for lesson in lessons() if lesson.number == number), None)
    return ("bibliography", f"arxiv-{found['paper']}") if found["paper"] in papers() else None


def link_references(doctree, docname: str) -> None:
    "`(05.3)` leads to the equation, `lesson 05` to the lesson and `2303.13714` to the bibliography, wherever they stand."
    for text in list(doctree.findall(nodes.Text)):
        if _quiet(text.parent):
            continue
        bare = (
            docname == "lessons/index"
            and isinstance(text.parent.parent, nodes.entry)
            and BARE.fullmatch(text.astext())
        )
        pieces, end = [], 0
        for match in [bare] if bare else REFERENCES.finditer(text.astext()):
            target = _target(match)
            if target and target not in ((docname, ""), (docname, f"arxiv-{match.groupdict().get('paper')}")):
                pieces += [nodes.Text(text.astext()[end : match.start()]), _link(match[0], docname, *target)]
                end = match.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text.astext()[end:])])


def number_papers(doctree, docname: str) -> None:
    "Every paper of the bibliography becomes a target, leads to its text and names the lessons that cite it."
    for entry in doctree.findall(nodes.list_item) if docname == "bibliography" else ():
        if match := re.search(PAPER, entry.astext()):
            entry["ids"].append(f"arxiv-{match[0]}")
            address = f"https://arxiv.org/abs/{match[0]}"
            entry[0] += [
                nodes.Text(" "),
                nodes.reference("arxiv.org", "arxiv.org", refuri=address, internal=False),
                nodes.Text("."),
            ]
            if citing := papers()[match[0]]:
                links = [_link(lesson.number or "index", docname, lesson.page, "") for lesson in citing]
                entry[0] += [
                    nodes.Text(" Cited in lessons "),
                    *[node for link in links for node in (nodes.Text(", "), link)][1:],
                    nodes.Text("."),
                ]


def link_names(doctree, docname: str) -> None:
    "The name of something in the package leads to its reference."
    home = {lesson.page: lesson.module for lesson in lessons()}.get(docname)
    for code in list(doctree.findall(nodes.literal)):
        target = None if _quiet(code.parent) else find_name(code.astext(), home)
        if target:
            link = _link("", docname, *target)
            code.replace_self(link)
            link += code


def _link(text: str, docname: str, page: str, anchor: str):
    address = relative_uri(f"{docname}.html", f"{page}.html") if page != docname else ""
    return nodes.reference(
        text, text, internal=True, refuri=f"{address}#{anchor}" if anchor else address, classes=["auto"]
    )


def connect(app, doctree, docname: str) -> None:
    number_equations(doctree, docname)
    number_papers(doctree, docname)
    link_references(doctree, docname)
    link_names(doctree, docname)


def setup(app) -> None:
    app.connect("autodoc-process-signature", reference.signature)
    app.connect("autodoc-process-docstring", reference.docstring, priority=400)  # before numpydoc reads it
    app.connect("doctree-resolved", connect)
