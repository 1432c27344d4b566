"Tests of cfvae.pretrained: borrowed autoencoders behave like our own, and bad sources are named."

import dataclasses
import json
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cfvae import pretrained
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.pretrained import (
    PretrainedAutoencoder,
    PretrainedConfig,
    describe_pretrained,
    import_diffusers,
    load_pretrained,
)

pytest.importorskip("diffusers")

BLOCKS = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
KINDS = {
    "AutoencoderKL": BLOCKS | {"latent_channels": 4},
    "VQModel": BLOCKS | {"latent_channels": 3, "num_vq_embeddings": 8},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (32, 32),
        "decoder_block_out_channels": (32, 32),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Folders of small autoencoders with random weights, one per kind, and the models themselves."
    root, library = tmp_path_factory.mktemp("pretrained"), import_diffusers()
    seed_everything(0)
    models = {kind: getattr(library, kind)(**sizes).eval() for kind, sizes in KINDS.items()}
    for kind, model in models.items():
        model.save_pretrained(root / kind)
    return root, models


def images(n=3, size=16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=make_generator(0)) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "shape"), [("AutoencoderKL", (4, 8, 8)), ("VQModel", (3, 8, 8)), ("AutoencoderTiny", (4, 8, 8))]
)
def test_equals_diffusers_by_hand(saved, kind, shape):
    root, models = saved
    stage = load_pretrained(describe_pretrained(str(root / kind), 16))
    assert stage.config.latent_shape == shape and type(stage.model).__name__ == kind
    with torch.no_grad():
        coded = models[kind].encode(images())
        z = coded.latent_dist.mean if kind == "AutoencoderKL" else coded.latents
        decoded = models[kind].decode(z).sample
    assert stage.encode(images()).shape == (3, *shape)
    assert torch.allclose(stage.encode(images()), z, atol=1e-5) and torch.allclose(
        stage.decode(z), decoded, atol=1e-5
    )
    assert torch.equal(stage.encode(images()), stage.encode(images()))  # no chance left
    assert torch.allclose(stage(images()), decoded, atol=1e-5)


def test_quantisation_is_the_decoders(saved):
    stage = load_pretrained(describe_pretrained(str(saved[0] / "VQModel"), 16))
    entries = stage.model.quantize.embedding.weight
    z = stage.encode(images())
    vectors = z.permute(0, 2, 3, 1)
    nearest = (
        entries[torch.cdist(vectors.flatten(0, 2), entries).argmin(1)].view_as(vectors).permute(0, 3, 1, 2)
    )
    assert (z - nearest).abs().max() > 1e-3 and torch.allclose(
        stage.decode(z), stage.decode(nearest), atol=1e-5
    )


def test_frozen_and_in_evaluation_mode(saved):
    stage = load_pretrained(describe_pretrained(str(saved[0] / "AutoencoderKL"), 16))
    nn.Sequential(stage).train()
    assert (
        not stage.training
        and not any(m.training for m in stage.model.modules())
        and not any(p.requires_grad for p in stage.parameters())
    )
    assert not stage(images()).requires_grad


def test_large_images_go_in_parts(saved, monkeypatch):
    stage = load_pretrained(describe_pretrained(str(saved[0] / "AutoencoderTiny"), 16))
    seen, real = [], stage.model.encode
    monkeypatch.setattr("cfvae.pretrained._PIXELS_AT_ONCE", 2 * 16 * 16)
    monkeypatch.setattr(stage.model, "encode", lambda x: seen.append(len(x)) or real(x))
    together = stage.encode(images(5))
    assert seen == [2, 2, 1]
    monkeypatch.setattr("cfvae.pretrained._PIXELS_AT_ONCE", 1)  # never less than one image
    assert torch.allclose(stage.encode(images(5)), together, atol=1e-5) and seen[3:] == [1] * 5


@pytest.mark.parametrize("kind", [*KINDS, "pixels"])
def test_save_and_load(saved, tmp_path, kind):
    stage = load_pretrained(
        describe_pretrained(
            "pixels" if kind == "pixels" else str(saved[0] / kind),
            16,
            0.0 if kind == "pixels" else 0.5,
            1.0 if kind == "pixels" else 2.0,
        )
    )
    stage.save_pretrained(tmp_path / "stage")
    again = PretrainedAutoencoder.from_pretrained(tmp_path / "stage")
    assert torch.equal(again(images()), stage(images()))
    assert dataclasses.replace(again.config, source="") == dataclasses.replace(stage.config, source="")
    again.save_pretrained(tmp_path / "copy")
    for note in [*tmp_path.rglob("first_stage.json"), *tmp_path.rglob("config.json")]:
        text = note.read_text()
        assert str(saved[0]) not in text and str(tmp_path) not in text  # nobody else has these folders
    if kind != "pixels":  # whoever trains on the folder gets the scale along with it
        assert describe_pretrained(str(tmp_path / "stage"), 16).scale == 2.0


def test_pixels_are_themselves():
    config = describe_pretrained("pixels", 16)
    stage = load_pretrained(config)
    assert (config.latent_shape, config.shift, config.scale) == ((3, 16, 16), 0.0, 1.0)
    assert torch.equal(stage.encode(images()), images()) and torch.equal(stage.decode(images()), images())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_channels": 4}, "pixels"),
        ({"factor": 2}, "pixels"),
        ({"source": "x", "size": 30, "factor": 4}, "multiple of the factor"),
        ({"shift": 1.0}, "belong together"),
        ({"shift": 0.0, "scale": 0.0}, "above 0"),
        ({"source": "x", "latent_channels": 0}, "at least 1"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(CfvaeError, match=message):
        PretrainedConfig(**fields)


def test_shapes_are_checked(saved):
    for source, code in ((str(saved[0] / "AutoencoderKL"), (4, 8, 8)), ("pixels", (3, 16, 16))):
        stage = load_pretrained(describe_pretrained(source, 16))
        for x in (images(size=8), images()[:0], images().byte(), images().numpy(), images().tolist(), None):
            with pytest.raises(CfvaeError, match=r"images: .*\(n, 3, 16, 16\), is needed, not"):
                stage.encode(x)
        for z in (torch.zeros(1, *code)[:, :2], torch.zeros(1, *code).long(), None):
            with pytest.raises(CfvaeError, match="codes: .*is needed, not"):
                stage.decode(z)
        assert torch.allclose(stage.encode(images().double()), stage.encode(images()))
    with pytest.raises(CfvaeError, match="Linear is no autoencoder"):
        PretrainedAutoencoder(nn.Linear(1, 1), PretrainedConfig())


@pytest.mark.parametrize("fields", [{"factor": 4}, {"latent_channels": 3}])
def test_a_config_that_is_another_models_is_refused(saved, tmp_path, fields):
    "A recipe may say anything; codes of other sizes would be decoded to pictures of another size."
    stage = load_pretrained(describe_pretrained(str(saved[0] / "AutoencoderKL"), 16))
    told = r"AutoencoderKL has \{'latent_channels': 4, 'factor': 2\}: these are needed"
    with pytest.raises(CfvaeError, match=told):
        load_pretrained(dataclasses.replace(stage.config, **fields))
    stage.save_pretrained(tmp_path)
    note = tmp_path / "first_stage.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | fields))
    with pytest.raises(CfvaeError, match=told):
        PretrainedAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("channels", ["in_channels", "out_channels"])
def test_a_model_of_grey_images_is_refused(tmp_path, channels):
    import_diffusers().AutoencoderKL(**BLOCKS, **{channels: 1}).save_pretrained(tmp_path)
    with pytest.raises(CfvaeError, match="channels in and .* out, but images have three: take another"):
        describe_pretrained(str(tmp_path), 16)


def test_sources_and_places_that_are_none(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = load_pretrained(describe_pretrained("pixels", 16))
    for value in ("", " ", None, 5):
        with pytest.raises(CfvaeError, match=f"source is {value!r}: give a folder"):
            describe_pretrained(value, 16)
        for use in (stage.save_pretrained, PretrainedAutoencoder.from_pretrained):
            with pytest.raises(CfvaeError, match=f"the folder is {value!r}: give its path"):
                use(value)
    with pytest.raises(CfvaeError, match="'pixels' is no PretrainedConfig: describe_pretrained makes one"):
        load_pretrained("pixels")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_not_told_either(saved, tmp_path):
    shutil.copytree(saved[0] / "AutoencoderKL", tmp_path / "mine")
    stage = load_pretrained(describe_pretrained(str(tmp_path / "mine"), 16))
    shutil.rmtree(tmp_path / "mine")
    stage.save_pretrained(tmp_path / "saved")
    for name in ("first_stage.json", "config.json"):
        text = (tmp_path / "saved" / name).read_text()
        assert str(tmp_path) not in text and '"mine"' in text


def test_sources_that_are_not_there(saved, tmp_path, monkeypatch):
    with pytest.raises(CfvaeError, match="which autoencoder"):
        load_pretrained(PretrainedConfig("", 16, 4, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CfvaeError, match="holds no autoencoder"):
        describe_pretrained(str(tmp_path / "empty"), 16)
    (tmp_path / "other").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps({"size": 32, "widths": [64]}))  # cfvae's own
    with pytest.raises(CfvaeError, match="own is not in diffusers' form; .* or VQModel is needed"):
        describe_pretrained(str(tmp_path / "own"), 16)
    for mark in ("recipe.json", "pipeline.json"):
        (tmp_path / mark).write_text("{}")
        with pytest.raises(CfvaeError, match="is cfvae's own, .* or VQModel is needed"):
            describe_pretrained(str(tmp_path), 16)
        (tmp_path / mark).unlink()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CfvaeError, match="UNet2DModel"):
        describe_pretrained(str(tmp_path / "other"), 16)
    with pytest.raises(CfvaeError, match="no pretrained autoencoder"):
        PretrainedAutoencoder.from_pretrained(tmp_path / "empty")


JSON_DAMAGES = [b"", b"{", b"[]", b"3", b"{}", b'{"a": 1}', b"\xff\xfe", 100_000 * b"["]
OTHER_VALUES = (None, True, "x", -1, 0.5, [], ["x"], {})


@pytest.mark.parametrize("content", JSON_DAMAGES, ids=lambda content: str(content[:9]))
def test_a_damaged_config_is_named(saved, tmp_path, content):
    shutil.copytree(saved[0] / "AutoencoderKL", tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_bytes(content)
    with pytest.raises(CfvaeError, match="theirs"):
        describe_pretrained(str(tmp_path / "theirs"), 16)


@pytest.mark.parametrize("field", ["_class_name", "block_out_channels", "latent_channels"])
@pytest.mark.parametrize("value", OTHER_VALUES)
def test_values_of_a_config_that_cannot_be_right(saved, tmp_path, field, value):
    shutil.copytree(saved[0] / "AutoencoderKL", tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CfvaeError):
        load_pretrained(describe_pretrained(str(tmp_path / "theirs"), 16))


@pytest.mark.parametrize("content", JSON_DAMAGES, ids=lambda content: str(content[:9]))
def test_a_damaged_note_of_what_was_borrowed_is_named(saved, tmp_path, content):
    stage = load_pretrained(describe_pretrained(str(saved[0] / "AutoencoderKL"), 16))
    stage.save_pretrained(tmp_path)
    (tmp_path / "first_stage.json").write_bytes(content)
    for read in (PretrainedAutoencoder.from_pretrained, lambda path: describe_pretrained(str(path), 16)):
        with pytest.raises(CfvaeError, match="first_stage.json cannot be read"):
            read(tmp_path)


def test_a_hub_id_without_network_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CfvaeError, match="nobody/nothing is no folder here, and the Hugging Face hub gave no such model"
    ) as caught:
        describe_pretrained("nobody/nothing", 16)
    assert len(str(caught.value).splitlines()) == 1


def test_subfolders_of_hub_models(monkeypatch):
    seen = []
    monkeypatch.setattr(
        import_diffusers().AutoencoderKL,
        "load_config",
        lambda place, subfolder=None: (
            seen.append((place, subfolder)) or KINDS["AutoencoderKL"] | {"_class_name": "AutoencoderKL"}
        ),
    )
    assert describe_pretrained("owner/name/vae", 16).latent_shape == (4, 8, 8)
    describe_pretrained("owner/name", 16)
    assert seen == [("owner/name", "vae"), ("owner/name", None)]


def without_one(weights) -> None:
    del weights[min(weights)]


def with_nan(weights) -> None:
    weights[min(weights)].fill_(torch.nan)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
@pytest.mark.parametrize(
    ("damage", "complaint"), [(without_one, "tensors are missing"), (with_nan, "numbers are not finite")]
)
def test_a_borrowed_model_is_whole(saved, tmp_path, kind, damage, complaint):
    folder = tmp_path / "theirs"
    saved[1][kind].save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path)
    with pytest.raises(CfvaeError, match=f"theirs: {complaint}"):
        load_pretrained(describe_pretrained(str(folder), 16))


def test_what_diffusers_says_of_its_own_ways_is_not_passed_on(recwarn):
    def load(*args, **options):
        warnings.warn("The `local_dir_use_symlinks` argument is deprecated", UserWarning, stacklevel=1)
        warnings.warn("this one matters", UserWarning, stacklevel=1)

    pretrained._fetch(load, "owner/name")
    assert [str(warning.message) for warning in recwarn] == ["this one matters"]


@pytest.mark.parametrize(
    ("options", "name"),
    [({"safe_serialization": False}, "model.bin"), ({"variant": "fp16"}, "model.fp16.safetensors")],
)
def test_weights_of_another_name_are_named_and_not_read(saved, tmp_path, options, name):
    folder = tmp_path / "other"
    saved[1]["AutoencoderKL"].save_pretrained(folder, **options)
    with pytest.raises(CfvaeError, match=rf"holds no autoencoder.*{name} is not read: load the model"):
        load_pretrained(describe_pretrained(str(folder), 16))


def test_without_diffusers(monkeypatch):
    import builtins

    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: (
            (_ for _ in ()).throw(ImportError(name)) if name.startswith("diffusers") else real(name, *rest)
        ),
    )
    with pytest.raises(CfvaeError, match=r"cfvae\[pretrained\]"):
        import_diffusers()
    assert load_pretrained(describe_pretrained("pixels", 16)).config.size == 16  # pixels need no library


def test_a_torchvision_that_does_not_import_is_left_out(monkeypatch):
    import_utils = pytest.importorskip("diffusers.utils.import_utils")
    monkeypatch.setattr(import_utils, "_torchvision_available", True)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert import_diffusers().__name__ == "diffusers"
    assert import_utils._torchvision_available is False
