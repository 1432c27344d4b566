"Tests of cfvae.runs.public: pages and cards show no folder of this machine, and names as they are."

import json
import shutil

import pytest

from cfvae.core import CfvaeError
from cfvae.runs.hub import run_card
from cfvae.runs.evaluate import Question, _public
from cfvae.runs.public import in_backticks, in_markdown, public_data, public_path
from cfvae.runs.report import write_report

NASTY = (
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "\x1b]0;owned\x07\x1b[31mred",
    "a|b\n\n# A title of its own",
    "&lt;b&gt;",
)


@pytest.mark.parametrize(
    "path, shown",
    [
        ("/home/somebody/cats", "cats"),
        ("~/cats", "cats"),
        ("~somebody/cats", "cats"),
        ("C:\\Users\\somebody\\cats", "cats"),
        ("..\\somebody\\cats", "cats"),
        ("../../somebody/cats", "cats"),
        ("photos/cats", "photos/cats"),
        ("owner/name", "owner/name"),
    ],
)
def test_of_absolute_paths_the_last_name_is_left(path, shown):
    assert public_path(path) == shown


@pytest.mark.parametrize(
    "spec, shown",
    [
        ("folder:/home/somebody/cats", "folder:cats"),
        ("table:~/cats.csv", "table:cats.csv"),
        ("folder:~somebody/cats", "folder:cats"),
        ("folder:C:\\Users\\somebody\\cats", "folder:cats"),
        ("folder:photos/cats", "folder:photos/cats"),
        ("shapes:n=60,seed=1", "shapes:n=60,seed=1"),
        ("cifar10", "cifar10"),
    ],
)
def test_data_are_named_without_the_folders_above(spec, shown):
    assert public_data(spec) == shown
    question = Question(f"/home/somebody/{shown}", spec, "/home/somebody/judge.pth")
    assert "somebody" not in str(_public(question)) and _public(question).data == shown


@pytest.mark.parametrize("text", NASTY)
def test_markdown_shows_the_letters(text):
    shown = in_markdown(text)
    assert "\n" not in shown and "\x1b" not in shown
    for mark in "<[]|":
        assert shown.count(mark) == shown.count(f"\\{mark}") == text.count(mark)
    code = in_backticks(f"`{text}`")
    assert "\n" not in code and "\x1b" not in code and code.count("`") == 2


def test_markdown_leaves_ordinary_names_alone():
    assert in_markdown("Käfer, 甲虫 2") == "Käfer, 甲虫 2"


@pytest.fixture
def elsewhere(runs, tmp_path):
    "A run whose images and first stage lie in somebody's folders, and whose classes have nasty names."
    run = tmp_path / "somebody" / "run"
    shutil.copytree(runs / "strange", run)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"] = "folder:/home/somebody/private/cats"
    (run / "recipe.json").write_text(json.dumps(recipe))
    about = json.loads((run / "pipeline" / "pipeline.json").read_text())
    about["classes"] = NASTY[: len(about["classes"])]
    (run / "pipeline" / "pipeline.json").write_text(json.dumps(about))
    return run


def test_a_card_holds_names_as_text(elsewhere):
    card = run_card(elsewhere)
    assert "somebody" not in card and "\x1b" not in card
    names = next(line for line in card.splitlines() if "3 classes" in line)
    for text in (r"\<script\>alert(1)", r"\[click\](http", r"\x1b]0;owned".replace("]", r"\]")):
        assert text in names
    assert "<script" not in names.replace(r"\<", "")


def test_a_report_keeps_the_folders_of_this_machine_to_itself(runs, tmp_path):
    from tiny_runs import strange_images

    run = tmp_path / "somebody" / "run"
    shutil.copytree(runs / "strange", run)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"] = "folder:/home/somebody/private/cats"
    (run / "recipe.json").write_text(json.dumps(recipe))
    write_report(run, "cpu", strange_images())
    for name in ("report.html", "report.json"):
        text = (run / name).read_text()
        assert "somebody" not in text and "folder:cats" in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"null",
        b"\xff{}",
        b"{" * 100000,
        b'{"psnr": {}, "run": {"held_out_images": 4}}',
        b'{"psnr": {}, "run": {"held_out_images": 4}, "vae": 4}',
        b'{"psnr": {}, "vae": {"steps": 4}}',
        b'{"psnr": 3, "run": {"held_out_images": 4}, "vae": {"steps": 4}}',
        b'{"psnr": {"whole_model": "x"}, "run": {"held_out_images": 4}, "vae": {"steps": 4}}',
        b'{"psnr": {}, "run": {"held_out_images": []}, "vae": {"steps": 4}}',
        b'{"psnr": {}, "run": {"held_out_images": 4}, "vae": {"steps": 4}, "class_accuracy": [1]}',
    ],
)
def test_a_damaged_report_is_named_by_the_card(runs, tmp_path, content):
    run = tmp_path / "run"
    shutil.copytree(runs / "unlabelled", run)
    (run / "report.json").write_bytes(content)
    with pytest.raises(CfvaeError, match=r"report\.json cannot be read .*write it anew by cfvae report"):
        run_card(run)
    not_finite = {"psnr": {"whole_model": None}, "run": {"held_out_images": 4}, "vae": {"steps": 4}}
    (run / "report.json").write_text(json.dumps(not_finite))
    assert "Nobody has measured" in run_card(run)
