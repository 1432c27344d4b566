"""The play page as a reader meets it: built, served on this machine and used in a browser.

Its pictures are compared with PyTorch's.

Needs Chromium (Debian: apt-get install chromium; elsewhere set CFVAE_CHROMIUM to the program) and npm."""

import functools
import gzip
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import needs_browser

from cfvae.core import make_generator
from cfvae.evaluation import class_accuracy, shipped_classifier
from cfvae.guidance import Guidance
from cfvae.pipeline import LatentVAEPipeline

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

PLAY = Path(__file__).parents[2] / "docs" / "play.py"
pytestmark = [
    needs_browser,
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm: install Node.js"),
]
PICTURE = "() => Array.from(document.querySelectorAll('canvas'), canvas => canvas.toDataURL())"
IDLE = "() => !cfvae.busy"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("play", PLAY)
    play = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(play)
    folder = tmp_path_factory.mktemp("site")
    play.build(folder)
    return folder


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(browser, address):
    "The page, loaded; whatever it complains about or asks for is noted."
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.complaints, page.requests = [], []
    page.on(
        "console",
        lambda message: (
            page.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(f"{address}/play.html")
    page.evaluate("() => cfvae.ready")
    yield page
    page.close()


@pytest.fixture(scope="module")
def pipe():
    return LatentVAEPipeline.from_pretrained("shapes")


@pytest.fixture(autouse=True)
def fresh(request):
    "Every test begins with the same settings."
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.evaluate("""() => {
            const settings = { mean_weight: 3, var_weight: 0, temperature: 1, depth: 9, seed: 0 };
            for (const id in settings) document.getElementById(id).value = settings[id];
            document.querySelector('input[value="eight"]').checked = true;
            document.querySelector('input[name="class"][value="6"]').checked = true;
            return cfvae.setNoise(null);
        }""")
        page.wait_for_function(IDLE)


def press(page, control: str, key: str, times: int = 1) -> None:
    "Move a slider by keyboard, and wait until the last picture is there."
    page.locator(control).focus()
    for _ in range(times):
        page.keyboard.press(key)
    page.wait_for_function(IDLE)


def drawn(page) -> list[dict]:
    "What the passes of the last drawing were made of, and their raw images."
    runs = page.evaluate("""() => cfvae.last.map(pass => {
        const lists = Object.entries(pass).map(([name, values]) => [name, Array.from(values)]);
        return Object.fromEntries(lists);
    })""")
    return [{name: torch.tensor(values) for name, values in run.items()} for run in runs]


def in_pytorch(pipe, run: dict) -> torch.Tensor:
    "The same pictures by the pipeline, in [-1, 1]."
    sizes = [int(np.prod(shape)) for shape in pipe.vae.latent_shapes]
    n = len(run["labels"])
    parts = run["noise"].view(n, -1).split(sizes, dim=1)
    eps = [part.reshape(n, *shape) for part, shape in zip(parts, pipe.vae.latent_shapes, strict=True)]
    mean_weight, var_weight, temperature = (
        tuple(map(float, run[name])) for name in ("mean_weight", "var_weight", "temperature")
    )
    guidance = Guidance(mean_weight, var_weight)
    return pipe(run["labels"], None, guidance, temperature, eps=eps, output_type="pt").images * 2 - 1


def same_as_pytorch(pipe, page) -> None:
    for run in drawn(page):
        assert (run["images"].view(-1, 3, 32, 32) - in_pytorch(pipe, run)).abs().max() < 1e-3


def test_loads_from_here_alone_and_without_complaint(page, address):
    assert page.complaints == []
    assert page.requests and all(url.startswith((address, "data:")) for url in page.requests)
    assert (
        page.locator("#message").text_content() == ""
        and "ms per picture" in page.locator("#time").text_content()
    )
    page.context.set_offline(True)  # loaded is loaded
    before = page.evaluate(PICTURE)
    press(page, "#temperature", "ArrowLeft", 4)
    page.context.set_offline(False)
    assert page.evaluate(PICTURE) != before and page.complaints == []


def test_given_noise_gives_pytorchs_pictures(page, pipe):
    eps = pipe.vae.noise(8, make_generator(7))
    noise = torch.cat([e.flatten(1) for e in eps], dim=1)
    page.evaluate("noise => cfvae.setNoise(noise)", noise.flatten().tolist())
    page.wait_for_function(IDLE)
    press(page, "#var_weight", "ArrowRight", 6)
    (run,) = drawn(page)
    expected = pipe([6] * 8, guidance=Guidance(3.0, 1.5), eps=eps, output_type="pt").images * 2 - 1
    assert (run["images"].view(8, 3, 32, 32) - expected).abs().max() < 1e-3
    shown = page.evaluate(
        "() => Array.from(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 32, 32).data)"
    )
    pixels = torch.tensor(shown).view(32, 32, 4)[..., :3].permute(2, 0, 1)
    assert (pixels - (expected[0] + 1) * 127.5).abs().max() < 0.7  # rounded to bytes


@pytest.mark.parametrize(
    ("control", "key", "name"),
    [
        ("#mean_weight", "ArrowRight", "mean_weight"),
        ("#var_weight", "End", "var_weight"),
        ("#temperature", "Home", "temperature"),
    ],
)
def test_slider_changes_the_picture_and_keeps_the_noise(page, pipe, control, key, name):
    (before,), picture, said = (
        drawn(page),
        page.evaluate(PICTURE),
        page.locator(f"output[for={name}]").text_content(),
    )
    press(page, control, key, 4)
    (after,) = drawn(page)
    assert page.evaluate(PICTURE) != picture and page.locator(f"output[for={name}]").text_content() != said
    assert torch.equal(before["noise"], after["noise"]) and not torch.equal(before[name], after[name])
    same_as_pytorch(pipe, page)


def test_first_layers(page, pipe):
    page.locator("#depth").focus()
    press(page, "#depth", "Home")
    images = drawn(page)[0]["images"].view(8, 3, 32, 32)
    assert (images - images[:1]).abs().max() < 1e-4 and "no noise" in page.locator(
        "output[for=depth]"
    ).text_content()
    press(page, "#depth", "ArrowRight", 2)
    (run,) = drawn(page)
    first = sum(int(np.prod(shape)) for shape in pipe.vae.latent_shapes[:2])
    noise = run["noise"].view(8, -1)
    assert noise[:, :first].all() and not noise[:, first:].any()
    assert run["temperature"].tolist() == [1, 1, 1]
    assert "2 of 9" in page.locator("output[for=depth]").text_content()
    assert (run["images"].view(8, 3, 32, 32) - images).abs().max() > 0.1
    same_as_pytorch(pipe, page)


def test_class_by_keyboard_and_its_description(page, pipe):
    page.locator("input[name=class]:checked").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(IDLE)
    assert drawn(page)[0]["labels"].tolist() == [7] * 8
    assert (
        page.locator("canvas").nth(2).get_attribute("aria-label")
        == "cross, picture 3 of 8, mean weight 3, variance weight 0"
    )
    page.get_by_label("no class").check()
    page.wait_for_function(IDLE)
    assert drawn(page)[0]["labels"].tolist() == [10] * 8
    same_as_pytorch(pipe, page)


def mulberry32(seed: int):
    state = seed
    while True:
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        t = ((state ^ state >> 15) * (state | 1)) & 0xFFFFFFFF
        t ^= (t + ((t ^ t >> 7) * (t | 61) & 0xFFFFFFFF)) & 0xFFFFFFFF
        yield ((t ^ t >> 14) & 0xFFFFFFFF) / 2**32


def test_noise_of_a_seed(page):
    uniform = np.fromiter(mulberry32(5), float, 4000).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
    assert np.abs(np.array(page.evaluate("() => Array.from(cfvae.normal(5, 4000))")) - expected).max() < 1e-6
    many = np.array(page.evaluate("() => Array.from(cfvae.normal(0, 100001))"))
    assert (
        len(many) == 100001
        and abs(many.mean()) < 0.015
        and abs(many.std() - 1) < 0.01
        and abs((many**4).mean() - 3) < 0.15
    )
    (first,) = drawn(page)
    page.get_by_role("button", name="Another").click()
    page.wait_for_function(IDLE)
    (second,) = drawn(page)
    assert page.locator("#seed").input_value() == "1" and (first["noise"] - second["noise"]).abs().max() > 0.5
    assert len(second["noise"].view(8, -1).unique(dim=0)) == 8


@pytest.mark.parametrize(("view", "rows"), [("classes", 10), ("weights", 5)])
def test_tables(page, pipe, view, rows):
    page.locator(f"input[value={view}]").check()
    page.wait_for_function(IDLE, timeout=180_000)
    runs = drawn(page)
    assert (
        page.locator("tbody tr").count() == rows
        and page.locator("td canvas").count() == 5 * rows
        and page.locator("#mean_weight").is_disabled()
    )
    assert [run["mean_weight"][0].item() for run in runs][:: len(runs) // 5] == [0, 1, 2, 4, 8]
    noise = torch.cat([run["noise"].view(len(run["labels"]), -1) for run in runs])
    assert torch.equal(noise, noise[:1].expand_as(noise))
    assert len(set(page.evaluate(PICTURE))) == 5 * rows  # every cell differs
    label = page.locator("td canvas").nth(5 * rows - 2).get_attribute("aria-label")
    assert label == (
        "hourglass, mean weight 4, variance weight 0"
        if view == "classes"
        else "star, mean weight 4, variance weight 4"
    )
    same_as_pytorch(pipe, page)


def test_only_the_latest_wish_is_drawn(page):
    "Many settings in one go: one pass for the first of them, and one for the last."
    passes, weight = page.evaluate("""async () => {
        const slider = document.getElementById('mean_weight'), post = Worker.prototype.postMessage;
        let passes = 0;
        Worker.prototype.postMessage = function (...message) { passes++; return post.apply(this, message); };
        for (let i = 0; i < 20; i++) {
            slider.value = 0.25 * i;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
        }
        while (cfvae.busy) await new Promise(resolve => setTimeout(resolve, 10));
        Worker.prototype.postMessage = post;
        return [passes, cfvae.last[0].mean_weight[0]];
    }""")
    assert (passes, weight) == (2, 4.75)


def test_every_control_has_a_name_and_narrow_screens_fit(page):
    unnamed = page.evaluate("""() => {
        const controls = Array.from(document.querySelectorAll('input, button, select'));
        const bare = controls.filter(control => !control.labels?.length && !control.textContent.trim());
        return bare.map(control => control.outerHTML);
    }""")
    assert unnamed == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_size(site):
    "What a browser loads, compressed as servers do it."
    sizes = {
        path.relative_to(site).as_posix(): len(gzip.compress(path.read_bytes(), 6))
        for path in site.rglob("*")
        if path.is_file()
    }
    assert set(sizes) == {"play.html"} | {
        f"play/{name}"
        for name in (
            "play.js",
            "play.css",
            "worker.js",
            "shapes/model.onnx",
            "shapes/model.json",
            "cifar10/model.onnx",
            "cifar10/model.json",
            "ort.wasm.bundle.min.mjs",
            "ort-wasm-simd-threaded.wasm",
        )
    }
    on_demand = sum(size for name, size in sizes.items() if "cifar10" in name)
    assert on_demand < 20e6 and sum(sizes.values()) - on_demand < 12e6, sizes


@pytest.fixture
def own_page(browser, address):
    "A page of its own, loaded, with a list of what it asks for."
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(f"{address}/play.html")
    page.evaluate("() => cfvae.ready")
    yield page
    page.close()


def test_photographs_on_demand(own_page, site):
    page = own_page
    assert not any("cifar10" in url for url in page.requests)
    size = (site / "play/cifar10/model.onnx").stat().st_size
    button = page.get_by_role("button", name=f"Load photographs ({size / 1e6:.0f} MB)")
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#photographs").wait_for(timeout=180_000)
    assert page.evaluate("() => document.activeElement.value") == "cifar10"
    assert not button.is_visible() and not page.locator("#loading").is_visible()
    page.wait_for_function(IDLE, timeout=180_000)

    photos, judge = LatentVAEPipeline.from_pretrained("cifar10"), shipped_classifier("cifar10-classifier")
    names = page.locator("#classes span").all_text_contents()
    assert names == [*photos.classes, "no class"]
    seen = []
    for name in ("horse", "ship", "frog"):  # the first is there already
        page.get_by_label(name, exact=True).check()
        page.wait_for_function(IDLE, timeout=180_000)
        runs = drawn(page)
        assert all(
            run[weight].tolist() == [2] * 3 for run in runs for weight in ("mean_weight", "var_weight")
        )
        images = torch.cat([run["images"] for run in runs]).view(8, 3, 32, 32)
        difference = (images - torch.cat([in_pytorch(photos, run) for run in runs])).abs() * 127.5
        assert 0.1 < difference.mean() < 1 and (difference <= 2).float().mean() > 0.9  # what eight bits cost
        assert class_accuracy(judge, images, [photos.classes.index(name)] * 8) >= 5 / 8
        seen += [images]
    assert torch.cat(seen).std(dim=(0, 2, 3)).min() > 0.3  # of a range of 2, in every colour
    assert len(torch.cat(seen).unique(dim=0)) == 24
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390

    page.get_by_label("Shapes").check()  # and back
    page.wait_for_function(IDLE)
    assert drawn(page)[0]["labels"].tolist() == [6] * 8 and page.locator("#mean_weight").input_value() == "3"
    same_as_pytorch(LatentVAEPipeline.from_pretrained("shapes"), page)


def test_photographs_that_do_not_come(own_page):
    page = own_page
    page.route("**/cifar10/model.onnx", lambda route: route.abort())
    button = page.get_by_role("button", name="Load photographs")
    for _ in range(2):  # the button can be pressed again
        button.click()
        page.wait_for_function("() => document.getElementById('problem').textContent")
        said = page.locator("#problem").text_content()
        assert "press the button again" in said and "cfvae sample cifar10" in said
    assert sum("cifar10/model.onnx" in url for url in page.requests) == 2
    before = page.evaluate(PICTURE)
    press(page, "#temperature", "ArrowLeft", 4)
    assert page.evaluate(PICTURE) != before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda page: page.add_init_script("delete window.WebAssembly"), "needs WebAssembly"),
        (
            lambda page: page.route("**/model.onnx", lambda route: route.fulfill(status=404)),
            "model.onnx: the server answers 404",
        ),
        (lambda page: page.route("**/worker.js", lambda route: route.abort()), "could not be loaded"),
    ],
    ids=["no WebAssembly", "no model", "no worker"],
)
def test_says_what_is_missing(browser, address, prepare, message):
    page = browser.new_page()
    prepare(page)
    page.goto(f"{address}/play.html")
    page.wait_for_function("() => document.getElementById('message').textContent")
    assert (
        message in page.locator("#message").text_content()
        and "cfvae sample shapes" in page.locator("#message").text_content()
    )
    assert page.locator("#mean_weight").is_disabled()
    page.close()


def test_opened_as_a_file(browser, site):
    page = browser.new_page()
    page.goto((site / "play.html").as_uri())
    page.wait_for_function("() => document.getElementById('message').textContent")
    assert "http.server" in page.locator("#message").text_content()
    page.close()
