"""The site, built from the committed notebooks and read in a browser.

Nothing from elsewhere, maths and figures in place, every link leads somewhere, usable on a phone.
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
PACKAGES = ("sphinx", "myst_nb", "sphinx_book_theme", "numpydoc", "fastcore")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
MISSING += [name for name in ("node", "npm") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}")

sys.path.insert(0, str(ROOT / "docs"))
import build  # noqa: E402
import lessons  # noqa: E402
import names  # noqa: E402
import pages as page_sources  # noqa: E402
import results  # noqa: E402


# The site, built once for all workers.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    filelock = pytest.importorskip("filelock")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    made = shared / "site"
    with filelock.FileLock(shared / "site.lock"):
        if not made.exists():
            command = [sys.executable, ROOT / "docs/build.py", "--site", made, "--work", shared / "site-work"]
            command.append("--no-play")  # test_play.py has that page
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode and "npm could not" in done.stderr:
                pytest.skip("npm cannot fetch what the site needs: is there a network?")
            assert done.returncode == 0, done.stderr[-4000:]
    return made


class Page(HTMLParser):
    "What a page links to, the places it has, and its pictures."

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.ids = set()
        self.pictures = 0  # in the article
        self.in_article = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = {name: value for name, value in attributes if value}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag in ("a", "link", "img", "script"):
            self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "article":
            self.in_article = True
        if tag == "img" and self.in_article:
            self.pictures += 1

    def handle_endtag(self, tag):
        if tag == "article":
            self.in_article = False


@pytest.fixture(scope="module")
def pages(site):
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): Page(path) for path in paths}


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


def test_every_notebook_and_every_module_has_its_page(pages):
    assert {f"{notebook.page}.html" for notebook in lessons.notebooks()} <= pages.keys()
    assert {f"api/{module}.html" for module in names.modules()} <= pages.keys()
    assert {"index.html", "play.html", "results.html", "glossary.html", "bibliography.html"} <= pages.keys()


def leads_somewhere(site, pages, name: str, link: str) -> bool:
    "Whether a link of a page leads out of the site, or to a file in it, and there to a place that exists."
    if urlparse(link).scheme or link.startswith("//"):
        return True
    if link.startswith("play/"):  # what its build adds
        return True
    target, anchor = urldefrag(urljoin(f"/{name}", link))
    target = unquote(target).split("?")[0].lstrip("/") or "index.html"
    if not (site / target).is_file():
        return False
    return not anchor or target not in pages or unquote(anchor) in pages[target].ids


def test_every_link_leads_somewhere(site, pages):
    looked_at = list(pages.items())
    play = ROOT / "docs/play/play.html"  # takes the place of a page of this build
    if play.exists():
        looked_at.append(("play.html", Page(play)))
    broken = []
    for name, page in looked_at:
        broken += [(name, link) for link in page.links if not leads_somewhere(site, pages, name, link)]
    assert not broken, broken[:20]


def test_nothing_is_loaded_from_elsewhere(pages):
    elsewhere = r'="(?:https?:)?//'
    source = r"<(?:script|img|iframe|source)\b[^>]*\bsrc" + elsewhere
    link = r'<link\b(?![^>]*rel="canonical")[^>]*\bhref' + elsewhere
    loaded = re.compile(f"{source}|{link}")
    assert not [name for name, page in pages.items() if loaded.search(page.text)]


@pytest.mark.parametrize("notebook", lessons.notebooks(), ids=lambda notebook: notebook.path.stem)
def test_a_notebook_shows_all_its_figures(pages, notebook):
    expected = 0
    for cell in lessons.read(notebook.path)["cells"]:
        outputs = cell.get("outputs", [])
        for output in outputs:
            expected += any(kind.startswith("image/") for kind in output.get("data", {}))
        if cell["cell_type"] == "markdown":
            expected += len(re.findall(r"!\[[^\]]+\]\(", cell["source"]))
    page = pages[f"{notebook.page}.html"]
    assert page.pictures == expected
    article = page.text.split("<article", 1)[1].split("</article>", 1)[0]
    assert "#| " not in re.sub(r"<[^>]+>", "", article), "a directive shows in the page"


def test_equations_names_and_lessons_are_linked(pages):
    elbo = pages["lessons/05_elbo.html"]
    assert {f"eq-{number}" for number in lessons.equations() if number.startswith("05.")} <= elbo.ids
    assert {"#eq-05.3", "../api/elbo.html#cfvae.elbo.ELBO", "04_gaussian.html#eq-04.2"} <= set(elbo.links)
    reference = pages["api/elbo.html"]
    assert {"../lessons/05_elbo.html", "../lessons/05_elbo.html#eq-05.3"} <= set(reference.links)
    plain = re.compile(r"\((\d\d[a-z]?\.\d+)\)(?!</a>)")
    not_prose = r"(?s)<(pre|code|h\d|title|nav|script)\b.*?</\1>|<div class=\"math.*?</div>"
    prose = re.sub(not_prose, "", reference.text)
    assert not [number for number in plain.findall(prose) if number in lessons.equations()]


def test_the_reference_has_every_public_name_with_its_parameters(pages):
    for module, public in names.modules().items():
        assert {f"cfvae.{module}.{name}" for name in public} <= pages[f"api/{module}.html"].ids
    text = re.sub(r"<[^>]+>", "", pages["api/guidance.html"].text)
    beside = "comments beside fields and parameters are missing"
    assert "w_m, on the means" in text, beside
    assert "the prior with the label" in text, beside
    assert "finite numbers are needed" in text, "the messages of errors are missing"


def test_the_reference_tells_the_method_from_the_tools(pages):
    text = pages["api/index.html"].text
    method, tools = text.index('id="the-method"'), text.index('id="tools"')
    assert (
        method
        < text.index('href="recipes.html"', method)
        < tools
        < text.index('href="files.codes.html"', tools)
    )
    assert {f"cfvae-{package}" for package in names.TOOLS} <= pages["api/index.html"].ids


def test_companions_lie_under_their_lesson(pages):
    sidebar = pages["index.html"].text
    lesson = r'href="lessons/02_autoencoder\.html">[^<]*</a><details>.*?<ul>\s*'
    companion = r'<li class="toctree-l2"><a[^>]*href="lessons/02b_pretrained\.html"'
    assert re.search(lesson + companion, sidebar, re.DOTALL)
    assert next_page(pages["lessons/02_autoencoder.html"]) == "02b_pretrained.html"


def test_guides_follow_the_lessons(pages):
    last = [lesson for lesson in lessons.lessons() if not lesson.is_companion][-1]
    first = lessons.guides()[0]
    assert next_page(pages[f"{last.page}.html"]) == f"../{first.page}.html"
    assert f"../{first.page}.html" in pages["lessons/index.html"].links
    assert "../lessons/01_data.html" in pages["guides/own_images.html"].links


def next_page(page: Page) -> str:
    return re.search(r'class="right-next"\s+href="([^"]+)"', page.text)[1]


# In a browser.


@needs_browser
def test_every_page_on_a_phone(browser, address, pages):
    "No error, no request to another host, no sideways scrolling, all maths set, every picture described."
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    notes = []  # about one page
    wrong = {}

    def note_request(request):
        if not request.url.startswith((address, "data:", "blob:")):
            notes.append(f"asks for {request.url}")

    def note_error(message):
        if message.type == "error":
            notes.append(message.text)

    tab.on("request", note_request)
    tab.on("console", note_error)
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
    const notes = [];
    const root = document.documentElement;
    const article = document.querySelector('article') || document.body;
    if (root.scrollWidth > root.clientWidth) notes.push(`is ${root.scrollWidth} wide`);

    const maths = document.querySelectorAll('div.math, span.math');
    const set = document.querySelectorAll('.math > mjx-container');
    if (maths.length !== set.length) notes.push(`${set.length} of ${maths.length} formulas are set`);
    for (const error of document.querySelectorAll('mjx-merror')) notes.push(`formula: ${error.textContent}`);
    if (/\$\$|\\tag|\\begin\{/.test(article.innerText)) notes.push('raw TeX');

    for (const image of document.images) {
        if (!image.alt.trim()) notes.push(`no alt text: ${image.src}`);
        if (image.complete && !image.naturalWidth) notes.push(`not shown: ${image.src}`);
    }
    return notes;
}"""


@needs_browser
@pytest.mark.parametrize(("term", "page"), [
    ("posterior collapse", "lessons/06_vae.html"),
    ("kl_divergence", "api/gaussian.html"),
    ("encode_dataset", "api/files.codes.html"),
])  # fmt: skip
def test_search_finds(browser, address, site, term, page):
    tab = browser.new_page()
    tab.goto(f"{address}search.html?q={term}")
    links = "[...document.querySelectorAll('#search-results a')]"
    is_found = f"page => {links}.some(link => link.href.includes(page))"
    tab.wait_for_function(is_found, arg=page, timeout=30_000)
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
    for scheme, is_dark in (("light", False), ("dark", True)):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(f"{address}lessons/05_elbo.html")
        colour = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
        channels = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
        assert (sum(channels) < 300) == is_dark
        tab.close()


# The parts of the build.


def test_a_cell_for_the_site():
    lesson = next(each for each in lessons.lessons() if each.number == "05")
    empty = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}

    def made(source, outputs=()):
        return page_sources.code_cells(empty | {"source": source, "outputs": list(outputs)}, lesson)

    (cell,) = made('#| export\n#| fig-alt: "Two "humps"."\nx = 1')
    assert cell["source"] == "x = 1"
    assert cell["metadata"] == {"tags": ["exported"], "mystnb": {"image": {"alt": 'Two "humps".'}}}
    assert made("#| hide\nx = 1")[0]["metadata"]["tags"] == ["remove-cell"]
    assert made("#| default_exp elbo") == []
    widget = {"output_type": "display_data", "data": {page_sources.WIDGET: {}}}
    cell, note = made("interact(f)", [widget])
    assert cell["outputs"] == []
    assert "make lab" in note["source"]


def test_a_tool_has_the_public_names_that_it_defines():
    callbacks = names.modules()["runs.callbacks"]
    assert "Checkpointer" in callbacks
    assert "read_log" not in callbacks, "which runs.logs defines"
    assert "files" not in names.modules(), "an empty package has no page"
    assert not [name for public in names.modules().values() for name in public if name.startswith("_")]


@pytest.mark.parametrize(("text", "target"), [
    ("ELBO", ("api/elbo", "cfvae.elbo.ELBO")),
    ("cfvae.elbo.ELBO", ("api/elbo", "cfvae.elbo.ELBO")),
    ("ELBO.rate", ("api/elbo", "cfvae.elbo.ELBO.rate")),
    ("ELBO.rates", ("api/elbo", "cfvae.elbo.ELBO")),
    ("kl_divergence(q, p)", ("api/gaussian", "cfvae.gaussian.kl_divergence")),
    ("cfvae.elbo", ("api/elbo", "module-cfvae.elbo")),
    ("encode_dataset", ("api/files.codes", "cfvae.files.codes.encode_dataset")),
    ("cfvae.files.codes.encode_dataset", ("api/files.codes", "cfvae.files.codes.encode_dataset")),
    ("cfvae.runs.hub.load(name)", ("api/runs.hub", "cfvae.runs.hub.load")),
    ("runs.hub", ("api/runs.hub", "module-cfvae.runs.hub")),
    ("cfvae.files", ("api/index", "cfvae-files")),
    ("cfvae.cli", ("api/cli", "module-cfvae.cli")),
    ("LatentVAEPipeline", ("api/pipeline", "cfvae.pipeline.LatentVAEPipeline")),
    ("cfvae.elbo.nothing", None),
    ("load", None),
    ("train", None),
    ("shapes", None),
    ("q(z | x)", None),
    ("make lab", None),
    ("", None),
])  # fmt: skip
def test_names_in_the_text(text, target):
    assert names.find_name(text) == target


def test_an_unclear_name_is_that_of_the_page():
    assert names.find_name("Run") == ("api/runs.opened", "cfvae.runs.opened.Run")
    assert names.find_name("Run", home="cli.options") == ("api/cli.options", "cfvae.cli.options.Run")


@pytest.mark.parametrize("notebook", lessons.notebooks(), ids=lambda notebook: notebook.path.stem)
def test_every_cited_paper_is_in_the_bibliography(notebook):
    cells = lessons.read(notebook.path)["cells"]
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    cited = set(re.findall(r"(?:arXiv:? |arxiv\.org/abs/)(\d{4}\.\d{4,5})", text))
    unknown = cited - lessons.papers().keys()
    assert not unknown, f"docs/bibliography.md lacks {sorted(unknown)}, which {notebook.file} cites"


def test_stored_results_become_tables():
    stored = {
        "minutes": 6.0,
        "runs": [{"name": "a|b", "steps": 1000, "marks": [1, 2]}],
        "by way": {"x": {"psnr": 1.23456}, "y": {"psnr": True}},
    }
    text = "\n\n".join(results.tables(stored))
    assert "| minutes | 6 |" in text
    assert "| a\\|b | 1,000 |" in text
    assert "marks" not in text
    assert "| x | 1.235 |" in text
    assert "| y | yes |" in text


def test_experiments_become_pages_with_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    path = tmp_path / "nbs/results/ablations/table.json"
    path.parent.mkdir(parents=True)
    path.with_suffix(".png").write_bytes(b"")
    rows = [{"variant": "the recipe", "recognised": {"mean": 0.36125, "se": 0.0123}, "hidden": 1}]
    about = {"about": "What it is.", "seeds": [0, 1], "columns": ["variant", "recognised"], "rows": rows}
    text = "\n\n".join(results.experiment(path, about | {"alt": "Dots"}))
    assert text.startswith(
        "### Ablations\n\nWhat it is.\n\nseeds: 0, 1; file: `nbs/results/ablations/table.json`."
    )
    assert "![Dots](lessons/results/ablations/table.png)" in text
    assert "| the recipe | 0.361 ± 0.012 |" in text and "hidden" not in text


def test_terms_lead_to_the_glossary():
    text = "A [collapse](../docs/glossary.md#posterior-collapse), see the [glossary](../docs/glossary.md)."
    linked = page_sources._relink(text, lessons.lessons()[0])
    assert linked == "A {term}`collapse <posterior collapse>`, see the [glossary](../glossary.md)."


def test_an_evaluation_becomes_a_table():
    measures = {"frechet": {"value": 0.3789, "error": 0.0691}, "accuracy": {"value": 1.0, "error": 0.0}}
    rows = [{"images": "unguided", "measures": measures}]
    text = "\n\n".join(results.tables({"rows": rows}))
    assert "| images | frechet | accuracy |" in text
    assert "| unguided | 0.379 ± 0.069 | 1 |" in text


def test_long_tables_are_left_to_their_file():
    assert results.tables([{"value": 1}] * (results.LONGEST + 1)) == []


def test_without_npm_the_build_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "FRONT_END", tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="install Node"):
        build.install_front_end()
