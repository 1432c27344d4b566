"Tests of cfvae.runs.hub: what is published is what comes back, and the card says what was told."

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import tiny

from cfvae.autoencoder import Autoencoder
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.hvae import HierarchicalVAE
from cfvae.latents import LatentScaler
from cfvae.pipeline import LatentVAEPipeline
from cfvae.recipes import recipe_from_dict
from cfvae.runs import hub
from cfvae.runs.folder import load_model
from cfvae.runs.hub import model_card, publish, run_card
from cfvae.runs.report import write_report

CLASSES = ("cat", "dog", "<owl> & co")
CARD = {
    "data": "twelve cats",
    "recipe": "patience",
    "figures": {"recognised": "91.5 %, n = 1000"},
    "limits": "no dogs",
}


def build(classes=CLASSES) -> LatentVAEPipeline:
    seed_everything(0)
    recipe = tiny()
    autoencoder = Autoencoder(recipe.autoencoder)
    vae = HierarchicalVAE(dataclasses.replace(recipe.vae, num_classes=len(classes)))
    return LatentVAEPipeline(autoencoder, vae, LatentScaler(0.0, 1.0), classes)


@pytest.fixture(scope="module")
def pipe() -> LatentVAEPipeline:
    return build()


# --- there and back


def test_published_and_fetched(pipe, tmp_path, monkeypatch):
    "The hub is played by a folder; what would be uploaded is what comes back."
    uploaded = tmp_path / "hub"
    made = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            assert (repo_id, private, exist_ok, self.token) == ("me/cats", True, True, "secret")
            made.append(repo_id)

        def model_info(self, repo_id):
            return SimpleNamespace(private=True)

        def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
            assert made == [repo_id]
            assert "autoencoder/*.json" in delete_patterns  # of a borrowed first stage that was there before
            shutil.copytree(folder_path, uploaded)

    def snapshot_download(repo_id, allow_patterns):
        assert repo_id == "me/cats"
        # never code, never pickles, and of a model that is none of ours not all
        assert allow_patterns[0] == "pipeline.json" and len(allow_patterns) == 5
        assert all(
            re.fullmatch(r"(autoencoder|vae)/\*\.(json|safetensors)", name) for name in allow_patterns[1:]
        )
        return str(uploaded)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    card = model_card(pipe, **CARD, repo_id="me/cats")
    address = publish(pipe, "me/cats", card, private=True, token="secret")
    assert address == "https://huggingface.co/me/cats"
    assert (uploaded / "README.md").read_text() == card

    noise = pipe.vae.noise(1, make_generator(0))
    original = pipe([0], eps=noise, output_type="pt").images
    for fetched in (hub.load("me/cats"), load_model("hub:me/cats")):
        assert fetched.classes == CLASSES
        assert torch.allclose(fetched([0], eps=noise, output_type="pt").images, original, atol=0.05)


def test_what_is_to_be_private_is_not_uploaded_where_all_can_see_it(pipe, monkeypatch):
    api = SimpleNamespace(
        create_repo=lambda repo_id, private, exist_ok: None,
        model_info=lambda repo_id: SimpleNamespace(private=False),
        upload_folder=lambda **given: pytest.fail("it was published"),
    )
    monkeypatch.setattr(hub, "HfApi", lambda token: api)
    with pytest.raises(CfvaeError, match="me/cats is there and public: make it private"):
        publish(pipe, "me/cats", "a card", private=True)


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"pipe": None}, "None is no pipeline"),
        ({"card": None}, "the card is None: say what the model is"),
        ({"card": " "}, "the card is ' '"),
        ({"repo_id": 5}, "'5' is no name on the hub"),
    ],
)
def test_what_cannot_be_published(pipe, monkeypatch, wrong, complaint):
    monkeypatch.setattr(hub, "HfApi", None)
    with pytest.raises(CfvaeError, match=complaint):
        publish(**{"pipe": pipe, "repo_id": "me/cats", "card": "a card"} | wrong)


def test_no_hub(pipe, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CfvaeError, match="me/cats could not be published"):
        publish(pipe, "me/cats", "a card", token="secret")
    with pytest.raises(CfvaeError, match="gave no model me/cats"):
        hub.load("me/cats")
    with pytest.raises(CfvaeError, match="gave no model me/cats"):
        load_model("hub:me/cats")


# --- the card of a model


def test_the_card_says_what_was_told(pipe):
    card = model_card(pipe, **CARD, repo_id="me/cats")
    _, head, body = card.split("---\n", 2)
    assert "library_name: cfvae" in head
    order = [
        "## Data",
        "twelve cats",
        "## Recipe",
        "patience",
        "## Measured",
        "91.5 %",
        "## Limits",
        "no dogs",
    ]
    places = [body.index(words) for words in order]
    assert places == sorted(places)
    assert "| recognised | 91.5 %, n = 1000 |" in body
    assert 'hub.load("me/cats")' in body and "cat, dog" in body
    assert "Nothing was measured." in model_card(pipe, **(CARD | {"figures": {}}))


def test_the_saved_pipeline_has_one_card(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, card="what a reader has to know")
    assert (tmp_path / "README.md").read_text() == "what a reader has to know"
    assert len(list(tmp_path.rglob("README.md"))) == 1


@pytest.mark.parametrize("classes", [CLASSES, ()])
def test_the_code_in_the_card_runs(classes, tmp_path, monkeypatch):
    pipe = build(classes)
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, allow_patterns: str(tmp_path))
    code = model_card(pipe, **CARD, repo_id="me/cats").split("```python")[1].split("```")[0]
    space = {}
    exec(code, space)
    assert len(space["images"]) == 1


# --- the card of a run


def test_run_card(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "unlabelled", run)
    bare = run_card(run, "me/shapes")
    for words in ("`shapes:n=60`", "Nobody has measured", "4 of 4", "# shapes"):
        assert words in bare

    write_report(run, device="cpu")
    full = run_card(run, "me/shapes")
    whole_model = json.loads((run / "report.json").read_text())["psnr"]["whole_model"]
    assert f"{whole_model:.1f} dB on 6 held-out images" in full
    assert "Nobody has measured" not in full

    log = run / "vae" / "log.jsonl"  # trained further, and not measured again
    last = json.loads(log.read_text().splitlines()[-1])
    log.write_text(json.dumps({**last, "step": 9}) + "\n")
    (run / "vae" / "trained.json").write_text('{"step": 9}')
    with pytest.warns(UserWarning, match="report.json is of step 4, the model of step 9"):
        later = run_card(run, "me/shapes")
    assert "dB on" not in later and "Nobody has measured" in later


BEYOND = '{"step": 7, "loss": 1.0, "skipped": 2, "examples_per_second": 1.0}\n'


@pytest.mark.parametrize(("lines", "skipped"), [("", ""), (BEYOND, ", 0 skipped")])
def test_the_card_is_of_the_steps_that_the_model_has_seen(runs, tmp_path, lines, skipped):
    "A log may be gone, or go on where training was killed before the model was saved again."
    run = tmp_path / "run"
    shutil.copytree(runs / "strange", run)
    log = run / "vae" / "log.jsonl"
    log.write_text(log.read_text() + lines if lines else "")
    (run / "report.json").write_text(
        json.dumps({"vae": {"steps": 4}, "run": {"held_out_images": 6}, "psnr": {"autoencoder": 20.0}})
    )
    card = run_card(run)
    assert f"| 4 of 4{skipped} |" in card and "20.0 dB on 6 held-out images" in card
    assert "Guidance makes" in card and "Guidance" not in run_card(runs / "unlabelled").split("## Limits")[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pipe", 3, "3 is no pipeline"),
        ("data", None, "data is None"),
        ("recipe", 5, "recipe is 5"),
        ("limits", " ", "limits is ' '"),
        ("figures", [("a", "b")], "give names and values"),
        ("repo_id", None, "'None' is no name on the hub"),
    ],
)
def test_a_card_is_made_of_texts(field, value, message):
    with pytest.raises(CfvaeError, match=message):
        model_card(**(CARD | {"pipe": build(()), field: value}))


def test_no_figure_breaks_the_table():
    card = model_card(build(()), **(CARD | {"figures": {"a|b": "c\n| d", "e": 3.5, r"f\|g": "h"}}))
    assert card.count("| a\\|b | c \\| d |\n| e | 3.5 |\n| f\\|g | h |\n") == 1


def test_the_card_holds_the_whole_recipe(runs):
    settings = run_card(runs / "unlabelled").split("```json")[1].split("```")[0]
    assert recipe_from_dict(json.loads(settings)).vae_training.steps == 4


def test_no_card_without_a_model(runs, tmp_path):
    with pytest.raises(CfvaeError, match="no model yet"):
        run_card(runs / "half")
    with pytest.raises(CfvaeError, match="not a run folder"):
        run_card(tmp_path)
    with pytest.raises(CfvaeError, match="the run is None: give its path"):
        run_card(None)


def test_the_card_keeps_the_folders_of_this_machine_to_itself(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "unlabelled", run)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"] = "folder:/home/somebody/private/cats"
    borrowed = {"source": "/home/somebody/models/kl", "size": 16, "latent_channels": 4, "factor": 4}
    recipe["autoencoder"] = borrowed
    (run / "recipe.json").write_text(json.dumps(recipe))
    card = run_card(run)
    assert "somebody" not in card
    assert "folder:cats" in card and "pretrained (kl)" in card


@pytest.mark.parametrize("name", ["x", "../x/y", "a/b/c", "a/b\x1b[31m", 'a/b")\nimport os#', "/b", "a/"])
def test_names_that_no_model_on_the_hub_has(name):
    for use in (hub.check_name, hub.load):
        with pytest.raises(CfvaeError, match="is no name on the hub: give owner/name"):
            use(name)


def test_names_that_models_on_the_hub_have():
    for name in ("me/cats", "stabilityai/sd-vae-ft-mse", "A.b_c/2-d.e"):
        hub.check_name(name)
