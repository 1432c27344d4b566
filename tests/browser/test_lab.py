"""The course as a reader meets it: JupyterLab in a browser, Run All, and an explorer whose slider is moved.

Needs Chromium (Debian: apt-get install chromium; elsewhere set CFVAE_CHROMIUM to the program).
CFVAE_LAB=all runs every lesson and guide, not only the first page and the two lessons with most explorers."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import needs_browser

NBS = Path(__file__).parents[2] / "nbs"
pytestmark = needs_browser

CELLS = """() => {
    const model = window.jupyterapp.shell.currentWidget.content.model;
    return Array.from(model.cells).map((cell, index) => {
        const {cell_type, source, execution_count, outputs} = cell.toJSON();
        return {index, kind: cell_type, source: [].concat(source).join(''), count: execution_count, outputs};
    });
}"""
FINISHED = f"""() => {{
    const cells = ({CELLS})();
    const failed = cell => (cell.outputs || []).some(output => output.output_type === 'error');
    const done = cell => cell.kind !== 'code' || !cell.source.trim() || cell.count !== null;
    return cells.some(failed) || cells.every(done);
}}"""
SHOW_CELL = """index => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = index;
    return notebook.scrollToItem(index, 'center');
}"""
PICTURE_CHANGED = """before => {
    const image = document.querySelector('.widget-interact img');
    return image && image.src !== before;
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab over a copy of the lessons, so that its saving changes nothing here."
    folder = tmp_path_factory.mktemp("lab") / "nbs"
    shutil.copytree(NBS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    log = (folder.parent / "lab.log").open("w+", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
        "--expose-app-in-browser",
        f"--notebook-dir={folder}",
    ]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _address(Path(log.name), server)
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _address(log: Path, server: subprocess.Popen) -> tuple[str, str]:
    "Base address and token, once the server has printed them."
    for _ in range(120):
        printed = log.read_text(encoding="utf-8")
        address = re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)", printed)
        if address is not None:
            return address[1], address[2]
        assert server.poll() is None, printed
        time.sleep(0.5)
    raise TimeoutError(printed)


def _open(browser, lab, name: str):
    "A page with the lesson open and its kernel idle; outputs cleared, so that what is seen was made now."
    base, token = lab
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{base}/lab/tree/{name}?token={token}&reset")
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=90_000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    _wait_idle(page)
    return page


def _wait_idle(page) -> None:
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'",
        timeout=90_000,
    )


def _run_all(page) -> list[dict]:
    "Run > Run All Cells, until the last cell has its number. Returns the cells."
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(FINISHED, timeout=600_000, polling=1000)
    _wait_idle(page)
    return page.evaluate(CELLS)


def _picture(page) -> str | None:
    "The picture inside the explorer, as the browser has it."
    image = page.locator(".widget-interact img").first
    return image.get_attribute("src") if image.count() else None


EVERYTHING = sorted(str(path.relative_to(NBS)) for path in NBS.rglob("*.ipynb"))
FEW = ["index.ipynb", "05_elbo.ipynb", "11_guidance.ipynb"]
LESSONS = EVERYTHING if os.environ.get("CFVAE_LAB") == "all" else FEW


@pytest.mark.parametrize("name", LESSONS)
def test_run_all_and_move_an_explorer(browser, lab, name):
    page = _open(browser, lab, name)
    cells = _run_all(page)
    errors = [
        output for cell in cells for output in cell["outputs"] or [] if output["output_type"] == "error"
    ]
    assert not errors, errors
    explorer = next(
        (cell["index"] for cell in cells if cell["kind"] == "code" and "interact(" in cell["source"]), None
    )
    if explorer is not None:
        _move(page, explorer)
    if folder := os.environ.get("CFVAE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{Path(name).stem}.png"))
    page.close()


def _move(page, explorer: int) -> None:
    "Move the first slider of the explorer in a cell by keyboard; its picture has to change."
    page.evaluate(SHOW_CELL, explorer)
    page.wait_for_selector(".widget-interact img", timeout=60_000)
    before = _picture(page)
    handle = page.locator(".widget-interact .noUi-handle").first
    handle.focus()
    for _ in range(4):
        handle.press("ArrowRight")
    page.wait_for_function(PICTURE_CHANGED, arg=before, timeout=60_000)
    assert _picture(page) != before
