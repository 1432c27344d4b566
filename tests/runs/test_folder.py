"Tests of cfvae.runs.folder: what a run folder says of itself, and what it refuses."

import json
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from tiny_runs import strange_images

from cfvae.core import CfvaeError, config_to_dict
from cfvae.runs import folder
from cfvae.runs.presets import preset
from cfvae.recipes import recipe_from_dict
from cfvae.runs.folder import (
    claim_run,
    load_autoencoder,
    load_data_note,
    load_model,
    load_recipe,
    trained_steps,
)


def test_unknown_fields_in_a_file(tmp_path):
    fields = config_to_dict(preset("shapes-demo"))
    with pytest.raises(CfvaeError, match="Recipe has no field 'colour'"):
        recipe_from_dict({**fields, "colour": "red"})
    with pytest.raises(CfvaeError, match="HierarchicalVAEConfig has no field 'depth'"):
        recipe_from_dict({**fields, "vae": {**fields["vae"], "depth": 3}})
    with pytest.raises(CfvaeError, match="not a run folder"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": ')
    with pytest.raises(CfvaeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_load_model_says_what_is_missing(tmp_path):
    with pytest.raises(CfvaeError, match="there is nothing at"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CfvaeError, match="neither a run folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("model", [3, None, b"shapes", " "])
def test_a_model_is_named(model):
    with pytest.raises(CfvaeError, match="the model is .*: give its path"):
        load_model(model)


@pytest.mark.parametrize("kind", [str, PurePosixPath, PureWindowsPath])
def test_a_name_on_the_hub_keeps_its_slash(kind, monkeypatch):
    monkeypatch.setattr(folder, "load_from_hub", lambda name: name)
    assert load_model(kind("hub:owner/name")) == "owner/name"


@pytest.fixture
def run(runs, tmp_path) -> Path:
    "A finished run that a test may damage."
    folder = tmp_path / "run"
    shutil.copytree(runs / "strange", folder)
    return folder


READERS = {
    "recipe.json": load_recipe,
    "data.json": load_data_note,
    "vae/trained.json": trained_steps,
    "pipeline/pipeline.json": load_model,
    "pipeline/vae/config.json": load_model,
    "autoencoder/model/config.json": load_autoencoder,
}
WRONG = (None, True, "x", -1, 0.5, float("nan"), [], [None], ["x"], [[1]], {}, {"a": 1})


def refuses(run, name: str, content: bytes) -> str:
    "The complaint about a file of this content; empty where it is taken."
    path = run / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        READERS[name](run)
    except CfvaeError as error:
        message = str(error)
        assert len(message.splitlines()) <= 2 and str(run) in message, message
        return message
    finally:
        path.write_bytes(before)
    return ""


@pytest.mark.parametrize("name", READERS)
def test_a_run_at_home(run, name, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    at_home = READERS[name]("~/run")
    assert at_home is not None and isinstance(at_home, type(READERS[name](run)))


@pytest.mark.parametrize("name", READERS)
def test_files_that_hold_something_else(run, name):
    READERS[name](run)
    whole = (run / name).read_bytes()
    cuts = [whole[:length] for length in (0, 1, len(whole) // 2, len(whole) - 1)]
    for content in (
        *cuts,
        whole + b"}",
        whole.replace(b'"', b"'"),
        b"\xff\xfe\x00",
        whole.replace(b"{", b"{\xff", 1),
    ):
        assert refuses(run, name, content)
    for value in WRONG:
        assert refuses(run, name, json.dumps(value).encode())
    deep = b"[" * 100_000 + b"]" * 100_000
    assert refuses(run, name, deep)


@pytest.mark.parametrize("name", READERS)
def test_fields_that_are_missing(run, name):
    fields = json.loads((run / name).read_bytes())
    optional = {"images", "classes"} if name == "data.json" else set()
    for field in fields:
        fewer = {key: value for key, value in fields.items() if key != field}
        complaint = refuses(run, name, json.dumps(fewer).encode())
        required = field in ("name", "autoencoder", "vae")  # of a recipe: an older one has fewer fields
        if required if name == "recipe.json" else field not in optional:
            assert field in complaint


def places(fields: dict, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    "The way to each field, of parts too."
    found = []
    for key, value in fields.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += places(value, (*prefix, key))
    return found


def with_value(fields: dict, place: tuple[str, ...], value) -> dict:
    first, *rest = place
    return fields | {first: with_value(fields[first], tuple(rest), value) if rest else value}


def is_like(value, original) -> bool:
    "Whether a value is of the kind that stood there."
    if isinstance(original, bool) or isinstance(value, bool):
        return type(value) is type(original)
    if isinstance(original, (int, float)):
        return isinstance(value, (int, float))
    if isinstance(original, list):
        return isinstance(value, (int, float, list))  # a number is a list of one
    return isinstance(value, type(original))


@pytest.mark.parametrize("name", READERS)
def test_values_of_another_type(run, name):
    fields = json.loads((run / name).read_bytes())
    for place in places(fields):
        original = fields
        for key in place:
            original = original[key]
        for value in WRONG:
            complaint = refuses(run, name, json.dumps(with_value(fields, place, value)).encode())
            unread = name == "data.json" and place != ("fingerprint",)
            nullable = place[-1] == "final_learning_rate" and value is None
            if not (unread or nullable or is_like(value, original)):
                assert complaint, f"{'.'.join(place)}: {value!r} is taken for {original!r}"


def test_what_a_run_noted_of_its_images(run):
    noted = load_data_note(run)
    assert list(noted) == ["fingerprint", "images", "classes"] and noted["images"] == 54
    images = strange_images()
    with pytest.raises(CfvaeError, match=r"begun with other images \(54 of them, 60 now\)"):
        claim_run(run, load_recipe(run), images, resume=True)
    for damage in (b"", b"{}", b'{"fingerprint": 3}'):
        (run / "data.json").write_bytes(damage)
        with pytest.raises(CfvaeError, match=r"data\.json cannot be read.*restore it from a copy, or remove"):
            claim_run(run, load_recipe(run), images, resume=True)
    (run / "data.json").unlink()
    assert load_data_note(run) is None
    claim_run(run, load_recipe(run), images, resume=True)  # nothing speaks against it
    assert load_data_note(run)["fingerprint"] == images.fingerprint
