"""What happens to every page on the way: equations, lessons, papers and names become targets and links."""

import re
from collections.abc import Iterable

from docutils import nodes
from lessons import NUMBER, PAPER, equations, lessons, notebooks, papers
from names import find_name
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

_EQUATION = rf"(?P<equation>{NUMBER}\.\d+)"
REFERENCES = re.compile(rf"\({_EQUATION}\)|\blessons? (?P<lesson>{NUMBER})\b|(?P<paper>{PAPER})")
BARE_EQUATION = re.compile(_EQUATION)  # the table of symbols has numbers without brackets
QUIET = (  # what is left as it is
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.title,
    nodes.raw,
    nodes.rubric,
)


def connect(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    number_equations(doctree, docname)
    number_papers(doctree, docname)
    link_references(doctree, docname)
    link_names(doctree, docname)


def number_equations(doctree: nodes.document, docname: str) -> None:
    "A numbered equation keeps its own number, and in its lesson becomes a target."
    for block in doctree.findall(nodes.math_block):
        tex = block.astext()
        if tag := re.search(r"\\tag\{([^}]*)\}", tex):
            number = tag[1]
            page, _ = equations()[number]
            if page == docname:
                block["ids"].append(f"eq-{number}")
            block["no-wrap"] = True
            block[:] = [nodes.Text(f"\\begin{{equation}}{tex}\\end{{equation}}")]


def number_papers(doctree: nodes.document, docname: str) -> None:
    "Every paper of the bibliography becomes a target, leads to its text and names the lessons that cite it."
    if docname != "bibliography":
        return
    for entry in doctree.findall(nodes.list_item):
        if match := re.search(PAPER, entry.astext()):
            number = match[0]
            address = f"https://arxiv.org/abs/{number}"
            paper = nodes.reference("arxiv.org", "arxiv.org", refuri=address, internal=False)
            entry["ids"].append(f"arxiv-{number}")
            entry[0] += [nodes.Text(" "), paper, nodes.Text("."), *_citing(number, docname)]


def _citing(number: str, docname: str) -> list[nodes.Node]:
    pieces: list[nodes.Node] = []
    for notebook in papers()[number]:
        pieces.append(nodes.Text(", " if pieces else " Cited in lessons "))
        pieces.append(_link(notebook.number or notebook.path.stem, docname, notebook.page))
    return [*pieces, nodes.Text(".")] if pieces else []


def link_references(doctree: nodes.document, docname: str) -> None:
    """`(05.3)` leads to the equation, `lesson 05` to the lesson, `2303.13714` to the bibliography.

    Wherever they stand."""
    for text in list(doctree.findall(nodes.Text)):
        if not _is_quiet(text.parent):
            pieces = _linked_pieces(text, docname)
            text.parent.replace(text, pieces)


def _linked_pieces(text: nodes.Text, docname: str) -> list[nodes.Node]:
    "The text, with links in the place of its references."
    content = text.astext()
    pieces: list[nodes.Node] = []
    end = 0
    for match in _references_in(text, docname):
        target = _target(match)
        if target is None or _leads_back(target, docname):
            continue
        pieces.append(nodes.Text(content[end : match.start()]))
        pieces.append(_link(match[0], docname, *target))
        end = match.end()
    return [*pieces, nodes.Text(content[end:])]


def _references_in(text: nodes.Text, docname: str) -> Iterable[re.Match]:
    in_cell = isinstance(text.parent.parent, nodes.entry)
    if docname == "lessons/index" and in_cell:
        bare = BARE_EQUATION.fullmatch(text.astext())
        if bare:
            return [bare]
    return REFERENCES.finditer(text.astext())


def _target(match: re.Match) -> tuple[str, str] | None:
    "Page and anchor of what a reference means; None where there is no such thing."
    groups = match.groupdict()
    if number := groups.get("equation"):
        if number not in equations():
            return None
        page, _ = equations()[number]
        return page, f"eq-{number}"
    if number := groups.get("lesson"):
        pages = [lesson.page for lesson in lessons() if lesson.number == number]
        return (pages[0], "") if pages else None
    paper = groups["paper"]
    return ("bibliography", f"arxiv-{paper}") if paper in papers() else None


def _leads_back(target: tuple[str, str], docname: str) -> bool:
    "Whether it is the page that one reads, or an entry of the bibliography there."
    page, anchor = target
    return page == docname and not anchor.startswith("eq-")


def link_names(doctree: nodes.document, docname: str) -> None:
    "The name of something in the package leads to its reference."
    home = _home(docname)
    for code in list(doctree.findall(nodes.literal)):
        target = None if _is_quiet(code.parent) else find_name(code.astext(), home)
        if target:
            link = _link("", docname, *target)
            code.replace_self(link)
            link += code


def _home(docname: str) -> str | None:
    "The module that a page is about."
    folder, _, name = docname.partition("/")
    if folder == "api":
        return name
    built = {notebook.page: notebook.module for notebook in notebooks()}
    return built.get(docname)


def _is_quiet(node: nodes.Node | None) -> bool:
    while node is not None:
        if isinstance(node, QUIET):
            return True
        node = node.parent
    return False


def _link(text: str, docname: str, page: str, anchor: str = "") -> nodes.reference:
    address = relative_uri(f"{docname}.html", f"{page}.html") if page != docname else ""
    if anchor:
        address += f"#{anchor}"
    return nodes.reference(text, text, internal=True, refuri=address, classes=["auto"])
