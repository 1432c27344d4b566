"Tests of cfvae.runs.free: a run is begun only where nothing of others can be lost."

import contextlib
import errno
import json
import os

import pytest
from tiny_runs import tiny

from cfvae.core import CfvaeError, config_to_dict
from cfvae.runs import free
from cfvae.runs.free import check_free, check_writable, refuse_foreign
from cfvae.runs.train import train

FOREIGN = {
    "latents": ({"latents/thesis.tex": "mine"}, "latents"),
    "a recipe": ({"recipe.json": '{"flour": 500}'}, "recipe.json cannot be read"),
    "a recipe with a name": ({"recipe.json": '{"name": "soup"}'}, "recipe.json cannot be read"),
    "an empty recipe": ({"recipe.json": ""}, "recipe.json cannot be read"),
    "data": ({"data.json": '{"rows": [1, 2]}'}, "data.json"),
    "data that are no object": ({"data.json": "[1, 2]"}, "data.json"),
    "data that are no JSON": ({"data.json": "rows: 1"}, "data.json"),
    "a lock": ({"run.lock": "of my door"}, "run.lock that cfvae did not write"),
    "a number": ({"run.pid": "notes"}, "run.pid that cfvae did not write"),
    "logs": ({"autoencoder/log.jsonl": "mine"}, "autoencoder"),
    "anything": ({"recipe.tmp": "a", "b.txt": "b", "c": "c", "d": "d"}, "and 1 more"),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("files", "culprit"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_refused_and_kept(tmp_path, files, culprit, resume):
    write(tmp_path, files)
    with pytest.raises(CfvaeError, match=culprit):
        train(tiny(), "shapes:n=60", tmp_path, resume=resume)
    assert contents(tmp_path) == files


def test_foreign_codes_in_a_run_are_refused_before_anything_is_trained(tmp_path):
    files = {"recipe.json": json.dumps(config_to_dict(tiny())), "latents/latents.npy": "mine"}
    write(tmp_path, files)
    with pytest.raises(CfvaeError, match="latents.npy that cfvae did not write"):
        train(tiny(), "shapes:n=60", tmp_path, resume=True)
    assert contents(tmp_path) == files


def test_what_is_replaced_carries_our_mark(tmp_path):
    names = ("numbers.json", "page.html")
    refuse_foreign(tmp_path, names, {"rows"})
    for name, content in (
        ("numbers.json", "mine"),
        ("numbers.json", '{"row": 1}'),
        ("numbers.json", '["rows"]'),
        ("page.html", "mine"),
    ):
        write(tmp_path, {name: content})
        with pytest.raises(CfvaeError, match=f"{name}, which cfvae did not write"):
            refuse_foreign(tmp_path, names, {"rows"})
        (tmp_path / name).unlink()
    write(tmp_path, {"numbers.json": '{"rows": [], "more": 1}', "page.html": "ours"})
    refuse_foreign(tmp_path, names, {"rows"})


@pytest.mark.parametrize("file", ["recipe.json", "data.json", "latents/latents.npy"])
def test_a_way_back_out_of_a_folder_that_is_not_there_hides_nothing(tmp_path, file):
    write(tmp_path, {f"mine/{file}": '{"flour": 500}'})
    hidden = tmp_path / "new" / ".." / "mine"
    for ask in (check_free, lambda folder: refuse_foreign(folder, [file], {"rows"})):
        with pytest.raises(CfvaeError, match=r"mine leads through .*new, which is not there"):
            ask(hidden)
    with pytest.raises(CfvaeError, match="which is not there"):
        train(tiny(), "shapes:n=60", hidden)
    assert contents(tmp_path) == {f"mine/{file}": '{"flour": 500}'}
    check_free(tmp_path / "mine" / ".." / "free")  # a way back that can be followed


@pytest.mark.parametrize(("out", "said"), [("", "the folder is ''"), (".", "--out is empty")])
def test_no_name_is_not_the_current_folder(tmp_path, out, said):
    with contextlib.chdir(tmp_path), pytest.raises(CfvaeError, match=said):
        train(tiny(), "shapes:n=60", out)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_files_is_called_by_its_name(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "here")
    assert os.listdir(tmp_path) == []  # whoever writes makes it
    write(tmp_path, {"file": ""})
    with pytest.raises(CfvaeError, match="cannot write to .*file.below .*: move away the file"):
        check_writable(tmp_path / "file" / "below")

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmp0123")

    monkeypatch.setattr(free.tempfile, "TemporaryFile", refuse)
    with pytest.raises(CfvaeError, match=r"cannot write to \S*new .Permission denied.: make it writable"):
        check_writable(tmp_path / "new")


def test_what_is_free(tmp_path):
    check_free(tmp_path)  # empty
    check_free(tmp_path / "nowhere" / "yet")
    about = json.dumps({"fingerprint": "0f", "images": 60, "classes": []})
    aside = "recipe.json.0123456789abcdef.tmp"
    write(tmp_path, {"run.lock": "", "run.pid": "1\n", "data.json": about, aside: "{"})  # killed that early
    check_free(tmp_path)
    write(tmp_path, {"recipe.json": json.dumps(config_to_dict(tiny())), "notes.txt": "mine"})
    check_free(tmp_path)  # a run, beside which others may put their notes
    with contextlib.chdir(tmp_path):
        check_free(tmp_path.__class__(""))
