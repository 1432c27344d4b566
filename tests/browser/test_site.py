"""The site, built from the committed notebooks and read in a browser: nothing from elsewhere, maths and figures in place, every link leads somewhere, usable on a phone.

Needs Chromium (see test_lab.py), Sphinx with its companions, and npm."""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from chromium import needs_browser

ROOT = Path(__file__).parents[2]
MISSING = [
    name
    for name in ("sphinx", "myst_nb", "sphinx_book_theme", "numpydoc", "fastcore")
    if importlib.util.find_spec(name) is None
]
MISSING += [name for name in ("node", "npm") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}")

sys.path.insert(0, str(ROOT / "docs"))
import lessons  # noqa: E402


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The site, built once for all workers.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    filelock = pytest.importorskip("filelock")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with filelock.FileLock(shared / "site.lock"):
        if not (shared / "site").exists():
            command = [
                sys.executable,
                ROOT / "docs/build.py",
                "--site",
                shared / "site",
                "--work",
                shared / "site-work",
                "--no-play",
            ]  # test_play.py has that page
            done = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            if done.returncode and "npm could not" in done.stderr:
                pytest.skip("npm cannot fetch what the site needs: is there a network?")
            assert done.returncode == 0, done.stderr[-4000:]
    return shared / "site"


class Page(HTMLParser):
    "What a page links to, the places it has, and its pictures."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.pictures, self.in_article = [], set(), 0, False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        self.links += [
            attributes[key]
            for key in ("href", "src")
            if attributes.get(key) and tag in ("a", "link", "img", "script")
        ]
        self.in_article |= tag == "article"
        self.pictures += tag == "img" and self.in_article

    def handle_endtag(self, tag):
        self.in_article &= tag != "article"


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path)
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }


@pytest.fixture(scope="module")
def address(site):
    "The site, served on this machine."

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def end_headers(self):
            self.send_header("Cache-Control", "max-age=3600")
            super().end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


# What can be seen without a browser.


def test_every_lesson_and_every_module_has_its_page(pages):
    assert {f"{lesson.page}.html" for lesson in lessons.lessons()} | {
        f"api/{name}.html" for name in lessons.modules()
    } <= pages.keys()
    assert {"index.html", "play.html", "results.html", "glossary.html", "bibliography.html"} <= pages.keys()


def test_every_link_leads_somewhere(site, pages):
    broken = []
    play = ROOT / "docs/play/play.html"  # takes the place of a page of this build
    for name, page in [*pages.items(), *([("play.html", Page(play))] if play.exists() else [])]:
        for link in page.links:
            if link.startswith("play/"):  # what its build adds
                continue
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, anchor = urldefrag(urljoin(f"/{name}", link))
            target = unquote(target).split("?")[0].lstrip("/") or "index.html"
            found = (site / target).is_file() and (
                not anchor or target not in pages or unquote(anchor) in pages[target].ids
            )
            broken += [] if found else [(name, link)]
    assert not broken, broken[:20]


def test_nothing_is_loaded_from_elsewhere(pages):
    loaded = re.compile(
        r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b(?![^>]*rel="canonical")[^>]*\bhref="(?:https?:)?//'
    )
    assert not [name for name, page in pages.items() if loaded.search(page.text)]


@pytest.mark.parametrize("lesson", lessons.lessons(), ids=lambda lesson: lesson.path.stem)
def test_a_lesson_shows_all_its_figures(pages, lesson):
    cells = lessons.read(lesson.path)["cells"]
    drawn = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    placed = sum(
        len(re.findall(r"!\[[^\]]+\]\(", cell["source"])) for cell in cells if cell["cell_type"] == "markdown"
    )
    page = pages[f"{lesson.page}.html"]
    assert page.pictures == drawn + placed
    article = page.text.split("<article", 1)[1].split("</article>", 1)[0]
    assert "#| " not in re.sub(r"<[^>]+>", "", article), "a directive shows in the page"


def test_equations_names_and_lessons_are_linked(pages):
    elbo = pages["lessons/05_elbo.html"]
    assert {f"eq-{number}" for number in lessons.equations() if number.startswith("05.")} <= elbo.ids
    assert {"#eq-05.3", "../api/elbo.html#cfvae.elbo.ELBO", "04_gaussian.html#eq-04.2"} <= set(elbo.links)
    reference = pages["api/elbo.html"]
    assert {"../lessons/05_elbo.html", "../lessons/05_elbo.html#eq-05.3"} <= set(reference.links)
    plain = re.compile(r"\((\d\d[a-z]?\.\d+)\)(?!</a>)")
    prose = re.sub(
        r"(?s)<(pre|code|h\d|title|nav|script)\b.*?</\1>|<div class=\"math.*?</div>", "", reference.text
    )
    assert not [number for number in plain.findall(prose) if number in lessons.equations()]


def test_the_reference_has_every_public_name_with_its_parameters(pages):
    for module, names in lessons.modules().items():
        assert {f"cfvae.{module}.{name}" for name in names} <= pages[f"api/{module}.html"].ids
    text = re.sub(r"<[^>]+>", "", pages["api/guidance.html"].text)
    assert "w_m, on the means" in text and "the prior with the label" in text, (
        "comments beside fields and parameters are missing"
    )
    assert "finite numbers are needed" in text, "the messages of errors are missing"


def test_companions_lie_under_their_lesson(pages):
    sidebar = pages["index.html"].text
    assert re.search(
        r'href="lessons/01_data\.html">[^<]*</a><details>.*?<ul>\s*<li class="toctree-l2"><a[^>]*href="lessons/01b_images\.html"',
        sidebar,
        re.DOTALL,
    )
    following = re.findall(r'class="right-next"\s+href="([^"]+)"', pages["lessons/01_data.html"].text)
    assert following == ["01b_images.html"]


# In a browser.


@needs_browser
def test_every_page_on_a_phone(browser, address, pages):
    "No error, no request to another host, no sideways scrolling, all maths set, every picture described."
    tab, notes, wrong = browser.new_page(viewport={"width": 390, "height": 800}), [], {}
    tab.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "data:", "blob:"))
            else notes.append(f"asks for {request.url}")
        ),
    )
    tab.on("console", lambda message: notes.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: notes.append(str(error)))
    for name in pages:
        notes.clear()
        tab.goto(address + name)
        tab.evaluate("() => window.MathJax?.startup?.promise")
        notes += tab.evaluate(CHECKS)
        if notes:
            wrong[name] = list(notes)
    tab.close()
    assert not wrong, json.dumps(wrong, indent=1)[:4000]


CHECKS = r"""() => {
    const notes = [], root = document.documentElement, article = document.querySelector('article') || document.body;
    if (root.scrollWidth > root.clientWidth) notes.push(`is ${root.scrollWidth} wide`);
    const maths = document.querySelectorAll('div.math, span.math'), set = document.querySelectorAll('.math > mjx-container');
    if (maths.length !== set.length) notes.push(`${set.length} of ${maths.length} formulas are set`);
    for (const error of document.querySelectorAll('mjx-merror')) notes.push(`formula: ${error.textContent}`);
    if (/\$\$|\\tag|\\begin\{/.test(article.innerText)) notes.push('raw TeX');
    for (const image of document.images) if (!image.alt.trim()) notes.push(`no alt text: ${image.src}`);
    for (const image of document.images) if (image.complete && !image.naturalWidth) notes.push(`not shown: ${image.src}`);
    return notes;
}"""


@needs_browser
@pytest.mark.parametrize(
    ("term", "page"), [("posterior collapse", "lessons/06_vae.html"), ("kl_divergence", "api/gaussian.html")]
)
def test_search_finds(browser, address, site, term, page):
    tab = browser.new_page()
    tab.goto(f"{address}search.html?q={term}")
    tab.wait_for_function(
        "page => [...document.querySelectorAll('#search-results a')].some(a => a.href.includes(page))",
        arg=page,
        timeout=30_000,
    )
    tab.close()


@needs_browser
def test_a_solution_unfolds_by_keyboard(browser, address, site):
    tab = browser.new_page()
    tab.goto(f"{address}lessons/05_elbo.html")
    summary = tab.locator("article details > summary").first
    below = tab.locator("article details").first.locator("p, pre").first
    assert not below.is_visible()
    summary.focus()
    tab.keyboard.press("Enter")
    assert below.is_visible()
    tab.keyboard.press("Enter")
    assert not below.is_visible()
    tab.close()


@needs_browser
def test_dark_where_the_reader_wants_it(browser, address, site):
    for scheme, dark in (("light", False), ("dark", True)):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(f"{address}lessons/05_elbo.html")
        light = tab.evaluate(
            "() => { const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); return (r + g + b) / 3; }"
        )
        assert (light < 100) == dark
        tab.close()


# The parts of the build.


def test_a_cell_for_the_site():
    lesson = next(each for each in lessons.lessons() if each.number == "05")
    code = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    (cell,) = lessons._code(code | {"source": '#| export\n#| fig-alt: "Two "humps"."\nx = 1'}, lesson)
    assert cell["source"] == "x = 1" and cell["metadata"] == {
        "tags": ["exported"],
        "mystnb": {"image": {"alt": 'Two "humps".'}},
    }
    assert lessons._code(code | {"source": "#| hide\nx = 1"}, lesson)[0]["metadata"]["tags"] == [
        "remove-cell"
    ]
    assert lessons._code(code | {"source": "#| default_exp elbo"}, lesson) == []
    widget = {"output_type": "display_data", "data": {lessons.WIDGET: {}}}
    cell, note = lessons._code(code | {"source": "interact(f)", "outputs": [widget]}, lesson)
    assert cell["outputs"] == [] and "make lab" in note["source"]


@pytest.mark.parametrize(("text", "target"), [
    ("ELBO", ("api/elbo", "cfvae.elbo.ELBO")),
    ("cfvae.elbo.ELBO", ("api/elbo", "cfvae.elbo.ELBO")),
    ("ELBO.rate", ("api/elbo", "cfvae.elbo.ELBO.rate")),
    ("ELBO.rates", ("api/elbo", "cfvae.elbo.ELBO")),
    ("kl_divergence(q, p)", ("api/gaussian", "cfvae.gaussian.kl_divergence")),
    ("cfvae.elbo", ("api/elbo", "module-cfvae.elbo")),
    ("train", None),
    ("shapes", None),
    ("q(z | x)", None),
    ("make lab", None),
    ("", None),
])  # fmt: skip
def test_names_in_the_text(text, target):
    assert lessons.find_name(text) == target


def test_every_cited_paper_is_in_the_bibliography():
    known = lessons.papers()
    for lesson in lessons.lessons():
        text = "\n".join(
            cell["source"] for cell in lessons.read(lesson.path)["cells"] if cell["cell_type"] == "markdown"
        )
        cited = set(re.findall(r"(?:arXiv:? |arxiv\.org/abs/)(\d{4}\.\d{4,5})", text))
        assert cited <= known.keys(), (
            f"docs/bibliography.md lacks {sorted(cited - known.keys())}, which {lesson.path.name} cites"
        )


def test_stored_results_become_tables():
    results = load("results")
    text = "\n\n".join(
        results._tables(
            {
                "minutes": 6.0,
                "runs": [{"name": "a|b", "steps": 1000, "marks": [1, 2]}],
                "by way": {"x": {"psnr": 1.23456}, "y": {"psnr": True}},
            }
        )
    )
    assert "| minutes | 6 |" in text and "| a\\|b | 1,000 |" in text and "marks" not in text
    assert "| x | 1.235 |" in text and "| y | yes |" in text


def test_without_npm_the_build_says_what_to_do(monkeypatch, tmp_path):
    build = load("build")
    monkeypatch.setattr(build, "FRONT_END", tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="install Node"):
        build.front_end()
