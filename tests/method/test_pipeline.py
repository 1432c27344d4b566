"Tests of cfvae.pipeline: any number of images, shared noise, and a folder that gives back every bit."

import errno
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cfvae import pipeline
from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig, TopDownBlock
from cfvae.latents import LatentScaler
from cfvae.onnx_export import SamplingHalf
from cfvae.pipeline import LatentVAEPipeline, find_model, load_first_stage, resolve_precision
from cfvae.pretrained import describe_pretrained, import_diffusers, load_pretrained
from cfvae.runs.saved import save_whole

CLASSES = ("cat", "dog", "<owl> & co")
SIZES = {
    "data_channels": 4,
    "resolutions": (1, 4),
    "widths": 8,
    "encoder_widths": 8,
    "multipliers": 1,
    "layers": (1, 2),
    "encoder_blocks": 1,
    "latent_channels": 2,
}


def build(classes=CLASSES, seed=0) -> LatentVAEPipeline:
    "A pipeline of random weights, shaken so that what starts close to zero, labels and priors, matters."
    seed_everything(seed)
    vae = HierarchicalVAE(HierarchicalVAEConfig(**SIZES, num_classes=len(classes)))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    autoencoder = Autoencoder(AutoencoderConfig(size=16, widths=(8, 8), groups=4))
    scaler = LatentScaler([0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0], 3.5)
    return LatentVAEPipeline(autoencoder, vae, scaler, classes)


@pytest.fixture(scope="module")
def pipe():
    return build()


def draw(pipe, *arguments, **options) -> torch.Tensor:
    return pipe(*arguments, output_type="pt", **options).images


@pytest.mark.parametrize(("n", "batch_size"), [(1, 64), (5, 2), (6, 3), (7, 64), (3, 1)])
def test_exactly_n(pipe, n, batch_size):
    images = draw(pipe, [0] * n, batch_size=batch_size, generator=make_generator(0))
    assert images.shape == (n, 3, 16, 16)
    assert len(images.flatten(1).unique(dim=0)) == n  # no batch repeats the noise of another


def test_n_without_labels():
    free = build(())
    assert draw(free).shape[0] == 1 and draw(free, n=5, batch_size=2).shape[0] == 5
    assert draw(build(), n=3).shape[0] == 3  # no labels: a conditional model draws unconditionally
    with pytest.raises(CfvaeError, match="0 images"):
        free(n=0)
    with pytest.raises(CfvaeError, match="without classes"):
        free([0, 1])
    with pytest.raises(CfvaeError, match="0 images"):
        build()([])


def test_same_seed_same_images(pipe):
    first, second, other = (draw(pipe, [0, 1, 2], generator=make_generator(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_given_noise_does_not_depend_on_batches(pipe):
    noise = pipe.vae.noise(7, make_generator(0))
    together = draw(pipe, [1] * 7, eps=noise)
    apart = draw(pipe, [1] * 7, eps=noise, batch_size=3)
    assert torch.allclose(together, apart, atol=1e-6)


def test_labels_as_list_array_or_tensor(pipe):
    noise = pipe.vae.noise(3, make_generator(0))
    expected = draw(pipe, [2, 0, 1], eps=noise)
    tensor = torch.tensor([2, 0, 1])
    for labels in (tensor, tensor.to(torch.uint8), tensor.numpy(), (2, 0, 1)):
        assert torch.equal(draw(pipe, labels, eps=noise), expected)
    assert not torch.allclose(draw(pipe, [0, 0, 0], eps=noise), expected, atol=1e-3)


def test_integer_guidance_weights(pipe):
    noise = pipe.vae.noise(3, make_generator(0))

    def guided(mean_weight, var_weight):
        return draw(pipe, [0, 1, 2], guidance=Guidance(mean_weight, var_weight), eps=noise)

    plain = draw(pipe, [0, 1, 2], eps=noise)
    whole = guided(2, 4)
    assert torch.equal(whole, guided(2.0, 4.0))
    assert not torch.allclose(whole, plain, atol=1e-3)
    assert torch.equal(guided(0, 0), plain)
    assert torch.allclose(guided((2, 2), (4, 4)), whole, atol=1e-6)


def test_temperature(pipe):
    cold = draw(pipe, [1] * 4, temperature=0, generator=make_generator(0))
    assert torch.allclose(cold, cold[:1].expand_as(cold), atol=1e-5)
    with pytest.raises(CfvaeError, match="temperature"):
        pipe([0], temperature=(1.0, 1.0, 1.0))


def test_precision_that_auto_stands_for(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32" and resolve_precision("bf16", cpu) == "bf16"
    for fast, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(pipeline, "bf16_is_fast", lambda device, fast=fast: fast)
        assert resolve_precision("auto", cpu) == name


def test_bf16_draws_almost_the_same(pipe, monkeypatch):
    request = {"guidance": Guidance(1, 1), "eps": pipe.vae.noise(3, make_generator(0))}
    exact = draw(pipe, [0, 1, 2], **request)
    coarse = draw(pipe, [0, 1, 2], precision="bf16", **request)
    assert 0 < (exact - coarse).abs().max() < 0.05
    assert torch.equal(exact, draw(pipe, [0, 1, 2], **request))  # nothing of it is left behind

    monkeypatch.setattr(pipeline, "bf16_is_fast", lambda device: True)
    assert torch.equal(coarse, draw(pipe, [0, 1, 2], precision="auto", **request))
    with torch.autocast("cpu", torch.bfloat16):  # of somebody else
        assert torch.equal(exact, draw(pipe, [0, 1, 2], **request))


def test_bf16_reconstructs_almost_the_same(pipe):
    x = 2 * torch.rand(2, 3, 16, 16, generator=make_generator(0)) - 1
    for depth in (0, None):
        exact, coarse = (pipe.reconstruct(x, [0, 1], depth, precision) for precision in ("fp32", "bf16"))
        assert 0 < (exact - coarse).abs().max() < 0.1 and coarse.dtype == torch.float32


def test_the_state_of_the_decoder_stays_in_float32(monkeypatch):
    "Where the width changes, too: there the state leaves a convolution, which computes in bf16."
    vae = HierarchicalVAE(HierarchicalVAEConfig(**SIZES | {"widths": (16, 8)}, num_classes=len(CLASSES)))
    uneven = LatentVAEPipeline(build().autoencoder, vae, LatentScaler(0.0, 1.0), CLASSES)
    types = []
    original = TopDownBlock.merge

    def merge(self, h, z, residual, label):
        types.append((h.dtype, residual.dtype))
        return original(self, h, z, residual, label)

    monkeypatch.setattr(TopDownBlock, "merge", merge)
    uneven([0], precision="bf16")
    assert types == [(torch.float32, torch.bfloat16)] * 3


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_a_vae_of_another_type_is_named(kind):
    other = build()
    other.vae.to(kind)
    for use in (lambda: other([0]), lambda: other.reconstruct(PICTURES, [0, 1])):
        with pytest.raises(CfvaeError, match=rf"the VAE is of the type {kind}: vae.float\(\) first"):
            use()


def test_a_drawing_that_fails_leaves_the_model_as_it_was(pipe):
    with pytest.raises(CfvaeError, match="temperature"):
        pipe([0], temperature=-1, precision="bf16")
    assert not any(up._forward_hooks for up in pipe.vae.decoder.ups)


def test_output_types(pipe):
    noise = pipe.vae.noise(2, make_generator(0))
    tensor = pipe([0, 1], eps=noise, output_type="pt").images
    array = pipe([0, 1], eps=noise, output_type="np").images
    pictures = pipe([0, 1], eps=noise, output_type="pil").images
    assert tensor.dtype == torch.float32 and 0 <= tensor.min() and tensor.max() <= 1
    assert array.dtype == np.uint8 and array.shape == (2, 16, 16, 3)
    for picture, pixels in zip(pictures, array, strict=True):
        assert isinstance(picture, Image.Image) and picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), pixels)
    rounding = np.abs(array / 255 - tensor.permute(0, 2, 3, 1).numpy())
    assert rounding.max() <= 0.5 / 255 + 1e-6
    with pytest.raises(CfvaeError, match="output_type is 'jpg'"):
        pipe([0], output_type="jpg")


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_wild_decoder_is_clipped(pipe, kind, monkeypatch):
    monkeypatch.setattr(pipe.autoencoder, "decode", lambda z: torch.full((len(z), 3, 16, 16), 7.0))
    assert pipe([0], output_type=kind).images.max() == (1 if kind == "pt" else 255)
    monkeypatch.setattr(pipe.autoencoder, "decode", lambda z: torch.full((len(z), 3, 16, 16), -7.0))
    assert pipe([0], output_type=kind).images.max() == 0


def test_stages_are_joined_by_the_scaler(pipe):
    x = torch.rand(2, 3, 16, 16, generator=make_generator(1)) * 2 - 1
    shift, scale = pipe.scaler.shift, pipe.scaler.scale
    standardised = (pipe.autoencoder.encode(x) - shift) / scale
    assert torch.allclose(pipe.encode(x), standardised.clamp(-3.5, 3.5), atol=1e-6)
    assert torch.allclose(pipe.decode(standardised), pipe.autoencoder(x), atol=1e-5)

    z = pipe.vae.sample(2, [0, 1], eps=pipe.vae.noise(2, make_generator(0)))
    by_hand = pipe.autoencoder.decode(z * scale + shift).clamp(-1, 1)
    drawn = draw(pipe, [0, 1], generator=make_generator(0)) * 2 - 1
    assert torch.allclose(drawn, by_hand, atol=1e-6)


def test_reconstruct_depths(pipe):
    x = torch.rand(3, 3, 16, 16, generator=make_generator(2)) * 2 - 1
    labels = torch.tensor([0, 1, 2])
    z = pipe.encode(x)
    alone = pipe.reconstruct(x, depth=0)  # needs no labels: the VAE is not asked
    assert torch.allclose(alone, pipe.decode(z), atol=1e-6)

    full = pipe.reconstruct(x, labels)
    assert full.shape == x.shape and not full.requires_grad
    assert torch.equal(full, pipe.reconstruct(x, labels.tolist(), 3))
    first = pipe.reconstruct(x, labels, 1)
    means = pipe.vae.posterior_means(z, labels)
    assert torch.allclose(first, pipe.decode(pipe.vae.decode(means[:1], labels)), atol=1e-5)
    assert not torch.allclose(first, full, atol=1e-3)

    for depth in (-1, 4):
        with pytest.raises(CfvaeError, match=f"depth is {depth}"):
            pipe.reconstruct(x, labels, depth)
    with pytest.raises(CfvaeError, match="needs labels"):
        pipe.reconstruct(x)
    with pytest.raises(CfvaeError, match=r"images: .* \(n, 3, 16, 16\)"):
        pipe.reconstruct(torch.zeros(1, 3, 8, 8), [0])


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:999", 3])
def test_devices_that_no_pipeline_computes_on(pipe, device):
    with pytest.raises(CfvaeError, match="device '.*'"):
        pipe.to(device)
    assert pipe.to("cpu").to(torch.device("cpu")).device.type == "cpu"


def test_a_class_is_found_however_its_accents_are_coded():
    composed, apart = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    assert composed != apart
    for name in (composed, apart):
        pipe = build(("b", name))
        assert pipe.class_indices([composed, apart, "b"]) == [1, 1, 0]
    both = build((composed, apart))
    assert both.class_indices([apart, composed]) == [1, 0]  # where both are there, each is itself
    with pytest.raises(CfvaeError, match="no class 'x': it knows b"):
        pipe.class_indices(["x"])


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
@pytest.mark.parametrize("far", [{"temperature": 1e25}, {"guidance": Guidance(1e30)}])
def test_draws_that_are_no_pictures_are_told_of(pipe, far, kind):
    with pytest.warns(UserWarning, match="not finite.*guidance"):
        pipe([0, 1], generator=make_generator(0), output_type=kind, **far)


def test_save_and_load(pipe, tmp_path):
    folder = tmp_path / "deep" / "model"
    pipe.save_pretrained(folder)
    again = LatentVAEPipeline.from_pretrained(folder)
    assert again.classes == CLASSES and again.scaler.clip == pipe.scaler.clip
    for saved, loaded in ((pipe.vae, again.vae), (pipe.autoencoder, again.autoencoder)):
        assert loaded.config == saved.config and not loaded.training
        expected = saved.state_dict()
        state = loaded.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)

    drawn = draw(pipe, [0, 1, 2], generator=make_generator(9))
    assert torch.equal(draw(again, [0, 1, 2], generator=make_generator(9)), drawn)
    x = torch.full((1, 3, 16, 16), 0.3)
    assert torch.equal(pipe.reconstruct(x, [1]), again.reconstruct(x, [1]))


def test_the_files_of_a_pipeline(pipe, tmp_path):
    "What version 0.2 wrote: a folder that either version reads."
    pipe.save_pretrained(tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    first = ["autoencoder/config.json", "autoencoder/model.safetensors"]
    assert files == [*first, "pipeline.json", "vae/config.json", "vae/model.safetensors"]
    about = json.loads((tmp_path / "pipeline.json").read_text())
    assert list(about) == ["format", "classes", "shift", "scale", "clip"]
    assert about["format"] == 1 and about["classes"] == list(CLASSES)


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mine", ["vae/config.json", "autoencoder/README.md", "pipeline.json", "README.md"])
def test_what_is_no_pipeline_is_kept(pipe, tmp_path, mine):
    "A run has folders of the same names, and others have their own."
    path = tmp_path / "there" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for folder in (tmp_path / "there", tmp_path / "new" / ".." / "there"):
        with pytest.raises(CfvaeError, match=f"there holds {mine.split('/')[0]}, but no pipeline"):
            pipe.save_pretrained(folder, card="a card")
    assert files_of(tmp_path / "there") == {mine: b"mine"}


def on_pixels() -> LatentVAEPipeline:
    "With no first stage."
    seed_everything(0)
    stage = load_pretrained(describe_pretrained("pixels", 4))
    vae = HierarchicalVAE(HierarchicalVAEConfig(**(SIZES | {"data_channels": 3})))
    return LatentVAEPipeline(stage, vae, LatentScaler(0.0, 1.0))


def test_a_pipeline_takes_the_place_of_one_of_another_kind(pipe, tmp_path):
    other = on_pixels()
    for number, saved in enumerate((pipe, other, pipe)):
        saved.save_pretrained(tmp_path / "one")
        (tmp_path / "one" / "vae" / "notes.txt").write_text("mine")
        saved.save_pretrained(tmp_path / str(number))
        expected = files_of(tmp_path / str(number)) | {"vae/notes.txt": b"mine"}
        assert files_of(tmp_path / "one") == expected
        assert type(LatentVAEPipeline.from_pretrained(tmp_path / "one").autoencoder) is type(
            saved.autoencoder
        )


def test_a_pipeline_is_never_one_half_of_an_earlier_one(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    before = files_of(tmp_path)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HierarchicalVAE, "save_pretrained", fail)
        with pytest.raises(CfvaeError, match="No space left on device.*free some space"):
            build(seed=1).save_pretrained(tmp_path)
    assert files_of(tmp_path) == before

    moved = []
    original = os.replace

    def stop(source, target):  # Ctrl-C after one of the four files was moved
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            build(seed=1).save_pretrained(tmp_path)
    with pytest.raises(CfvaeError, match="holds no pipeline"):
        LatentVAEPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "value, dtype, way_out",
    [(torch.nan, torch.float32, "train it again"), (1e6, torch.float16, "save it in torch.float32")],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, value, dtype, way_out):
    broken = build()
    with torch.no_grad():
        broken.vae.embedding.weight[0, 0] = value
    with pytest.raises(
        CfvaeError, match=rf"the vae in {dtype}: .*not finite \(embedding.weight\): {way_out}"
    ):
        broken.save_pretrained(tmp_path, dtype)
    assert not list(tmp_path.iterdir())


def weight_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_half_precision_files(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "full")
    pipe.save_pretrained(str(tmp_path / "half"), dtype=torch.float16)
    assert weight_bytes(tmp_path / "half") < 0.7 * weight_bytes(tmp_path / "full")
    half = LatentVAEPipeline.from_pretrained(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in half.vae.parameters())  # computing stays in float32
    assert next(pipe.vae.parameters()).dtype == torch.float32  # and saving changed nothing here
    drawn = draw(pipe, [0, 1, 2], generator=make_generator(9))
    by_half = draw(half, [0, 1, 2], generator=make_generator(9))
    assert 0 < (drawn - by_half).abs().max() < 0.02


def test_who_may_read_the_config_may_read_the_weights(saved, tmp_path):
    save_whole(Autoencoder.from_pretrained(saved / "autoencoder"), tmp_path / "alone")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(saved / "pipeline.json").stat().st_mode}
    assert sum(path.suffix == ".safetensors" for path in files) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_pipeline(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CfvaeError, match="holds no pipeline"):
            LatentVAEPipeline.from_pretrained(path)


def spoil(folder, damage: str) -> None:
    "Damage a saved pipeline."
    weights = folder / "vae" / "model.safetensors"
    about = folder / "pipeline.json"
    content = json.loads(about.read_text())
    if damage == "short":
        weights.write_bytes(weights.read_bytes()[:999])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "missing":
        shutil.rmtree(folder / "vae")
    elif damage == "pickle":
        torch.save({"weight": torch.zeros(3)}, weights)
    elif damage == "about":
        about.write_text('{"format": 1, ')
    elif damage == "foreign":
        about.write_text("[]")
    elif damage == "fields":
        del content["scale"]
        about.write_text(json.dumps(content))
    elif damage == "version":
        about.write_text(json.dumps(content | {"format": 2}))


DAMAGES = ("short", "empty", "missing", "pickle", "about", "foreign", "fields", "version")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(pipe, tmp_path, damage):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    spoil(folder, damage)
    way_out = ": a model is missing| again|: update cfvae"
    with pytest.raises(CfvaeError, match=f"model.*({way_out})") as caught:
        LatentVAEPipeline.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.fixture
def saved(pipe, tmp_path):
    "A folder that each test may damage in its own way."
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    return folder


def change_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def drop(weights, kept=0) -> None:
    for name in sorted(weights)[kept:]:
        del weights[name]


def first_becomes(value):
    def change(weights) -> None:
        weights[min(weights)].flatten()[0] = value

    return change


def cut_first(weights) -> None:
    name = min(weights)
    weights[name] = weights[name].flatten()[:1].clone()


def whole_numbers(weights):
    "As a tool may leave them that takes weights for indices: all that is small becomes 0."
    name = min(weights)
    weights[name] = weights[name].to(torch.int64)


def test_a_model_of_another_kind(saved):
    with pytest.raises(
        CfvaeError, match="Autoencoder settings are missing .*: give the folder of such a model"
    ):
        pipeline.load_local(Autoencoder, saved / "vae")


WEIGHT_DAMAGES = {
    "one_is_missing": (lambda weights: weights.pop(max(weights)), "tensors are missing"),
    "all_but_one_are_missing": (lambda weights: drop(weights, 1), r"tensors are missing \(.* more"),
    "all_are_missing": (drop, "tensors are missing"),
    "one_too_many": (lambda weights: weights.update(extra=torch.zeros(2)), "does not have.*extra"),
    "another_shape": (cut_first, "size mismatch for"),
    "another_kind": (whole_numbers, "numbers are whole, or are not"),
    "nan": (first_becomes(torch.nan), "numbers are not finite"),
    "infinite": (first_becomes(-torch.inf), "numbers are not finite"),
}


@pytest.mark.parametrize("part", ["vae", "autoencoder"])
@pytest.mark.parametrize("damage", WEIGHT_DAMAGES)
def test_weights_are_exactly_those_of_the_model(saved, part, damage):
    change, complaint = WEIGHT_DAMAGES[damage]
    change_weights(saved / part, change)
    with pytest.raises(CfvaeError, match=f"model.{part}.*{complaint}") as caught:
        LatentVAEPipeline.from_pretrained(saved)
    assert len(str(caught.value).splitlines()) == 1


def test_no_memory_is_taken_for_sizes_that_the_weights_do_not_have(saved, monkeypatch):
    path = saved / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"widths": [100_000, 100_000]}))
    monkeypatch.setattr(HierarchicalVAE, "from_pretrained", None)
    with pytest.raises(CfvaeError, match="model.vae: size mismatch for .*and by config.json"):
        LatentVAEPipeline.from_pretrained(saved)


@pytest.mark.parametrize("part", ["vae", "autoencoder"])
@pytest.mark.parametrize("name", ["adapter", "model-00002-of-00002", "model.fp16"])
def test_a_second_file_of_weights_is_refused(saved, part, name):
    weights = saved / part / "model.safetensors"
    shutil.copy(weights, weights.with_name(f"{name}.safetensors"))
    with pytest.raises(CfvaeError, match=f"{part}: .*{name}.safetensors.*: a model has one file of weights"):
        LatentVAEPipeline.from_pretrained(saved)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_weights_of_a_borrowed_first_stage(tmp_path, kind):
    pytest.importorskip("diffusers")
    seed_everything(0)
    getattr(import_diffusers(), kind)().save_pretrained(tmp_path / "theirs")
    stage = load_pretrained(describe_pretrained(str(tmp_path / "theirs"), 16))
    stage.save_pretrained(tmp_path / "ours")
    again = load_first_stage(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in stage.state_dict().items())

    path = tmp_path / "ours" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    for change, complaint in (WEIGHT_DAMAGES[name] for name in ("one_too_many", "nan")):
        weights = {name: tensor.clone() for name, tensor in whole.items()}
        change(weights)
        save_file(weights, path)
        with pytest.raises(CfvaeError, match=complaint):
            load_first_stage(tmp_path / "ours")
    save_file(whole, path)
    shutil.copy(path, path.with_name("model.safetensors"))
    with pytest.raises(CfvaeError, match="a model has one file of weights"):
        load_first_stage(tmp_path / "ours")


def test_numbers_of_the_scaler_are_finite_and_fit(saved):
    about = json.loads((saved / "pipeline.json").read_text())

    def complaint(**changed) -> str:
        (saved / "pipeline.json").write_text(json.dumps(about | changed))
        with pytest.raises(CfvaeError) as caught:
            LatentVAEPipeline.from_pretrained(saved)
        return str(caught.value)

    nan = float("nan")
    infinity = float("inf")
    for value in (nan, infinity, -infinity, 1e39, 10**400, True, "1", None, [1.0]):
        for field in ("shift", "scale"):
            assert f"pipeline.json: {field}" in complaint(**{field: [1.0, value, 1.0, 1.0]})
        assert "pipeline.json: clip" in complaint(clip=value)
    for value in (0, -1.0, 1e-60):
        assert "pipeline.json: scale" in complaint(scale=[1.0, 1.0, 1.0, value])
        assert "pipeline.json: clip" in complaint(clip=value)
    for value in ([], [1.0] * 3, [1.0] * 5, 1.0, "1234", None, {}):
        assert "list of 1 or 4 numbers" in complaint(shift=value)
        assert "list of 1 or 4 numbers" in complaint(scale=value)
    for value in ("abc", [1, 2, 3], ["a", "b", None], {"a": 0}, 3):
        assert "classes must be a list of names" in complaint(classes=value)
    assert "3 classes, but 2 names" in complaint(classes=["a", "b"]) and "model: " in complaint(classes=[])


def test_parts_of_two_pipelines(saved):
    larger = Autoencoder(AutoencoderConfig(size=32, widths=(8, 8), groups=4))
    larger.save_pretrained(saved / "autoencoder")
    with pytest.raises(CfvaeError, match="model: the autoencoder's code is"):
        LatentVAEPipeline.from_pretrained(saved)


def test_wrong_labels_and_names(pipe):
    assert pipe.class_indices(["<owl> & co", "cat"]) == [2, 0]
    with pytest.raises(CfvaeError, match="no class 'owl'.*cat, dog"):
        pipe.class_indices(["owl"])
    for names in ("cat", 5, None):
        with pytest.raises(CfvaeError, match=f"names is {names!r}: a list of class names is needed"):
            pipe.class_indices(names)
    for labels in ([4], [-1]):
        with pytest.raises(CfvaeError, match="labels must be 0 to 2"):
            pipe(labels)
    assert draw(pipe, [3]).shape[0] == 1  # the null label


@pytest.mark.parametrize("place", ["made", "saved and loaded", "exported"])
def test_a_model_that_never_dropped_a_label_takes_no_step_without_one(pipe, place, tmp_path):
    never = LatentVAEPipeline(pipe.autoencoder, pipe.vae, pipe.scaler, CLASSES, label_dropped=False)
    assert pipe.guidable and not never.guidable
    if place == "saved and loaded":
        never.save_pretrained(tmp_path)
        never = LatentVAEPipeline.from_pretrained(tmp_path)
    if place == "exported":
        assert "mean_weight" not in SamplingHalf(never).inputs
    assert len(draw(never, [0, 1])) == 2
    for labels, guidance in ((None, None), ([0, len(CLASSES)], None), ([0], Guidance(1.0))):
        with pytest.raises(CfvaeError, match="label_drop 0, and knows no state without a label"):
            never(labels, guidance=guidance)


@pytest.mark.parametrize("name", ["shapes", Path("cifar10")])
def test_a_folder_that_hides_a_shipped_model_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name, "dog").mkdir(parents=True)
    with pytest.raises(CfvaeError, match=f"the folder {name} holds no model, and hides the one"):
        LatentVAEPipeline.from_pretrained(name)
    Path(name, "pipeline.json").touch()
    assert find_model(name) == Path(name)


def test_parts_must_fit(pipe):
    with pytest.raises(CfvaeError, match="3 classes, but 2 names"):
        LatentVAEPipeline(pipe.autoencoder, pipe.vae, pipe.scaler, CLASSES[:2])
    larger = Autoencoder(AutoencoderConfig(size=32, widths=(8, 8), groups=4))
    with pytest.raises(CfvaeError, match=r"\(4, 8, 8\), but the VAE models \(4, 4, 4\)"):
        LatentVAEPipeline(larger, pipe.vae, pipe.scaler, CLASSES)
    parts = (pipe.autoencoder, pipe.vae, pipe.scaler)
    for wrong in ((None, *parts[1:]), (parts[1], parts[0], parts[2]), (*parts[:2], 1.0), "abc"):
        with pytest.raises(CfvaeError, match="in this order, not a (NoneType|HierarchicalVAE|float|str)$"):
            LatentVAEPipeline(*wrong, CLASSES)


def test_names_and_scaler_must_fit(pipe):
    for classes, complaint in ((("a", "a", "b"), "two classes are called a"), ((1, 2, 3), "a list of names")):
        with pytest.raises(CfvaeError, match=complaint):
            LatentVAEPipeline(pipe.autoencoder, pipe.vae, pipe.scaler, classes)
    with pytest.raises(CfvaeError, match="the scaler has numbers for 2 channels, but the code has 4"):
        LatentVAEPipeline(pipe.autoencoder, pipe.vae, LatentScaler([0.0, 0.0], 1.0), CLASSES)


def test_unwritable_folder(pipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CfvaeError, match="cannot save the pipeline"):
        pipe.save_pretrained(tmp_path / "file")


def test_pixels_as_first_stage(tmp_path):
    pixels = on_pixels()
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.equal(pixels.reconstruct(images, depth=0), images)
    pixels.save_pretrained(tmp_path)
    again = LatentVAEPipeline.from_pretrained(tmp_path)
    drawn = draw(pixels, n=3, generator=make_generator(0))
    assert torch.equal(draw(again, n=3, generator=make_generator(0)), drawn)


CONTRADICTIONS = {
    "noise_for_more": (lambda p: {"labels": [0], "eps": p.vae.noise(5)}, r"eps\[0\].*n is 1"),
    "noise_for_fewer": (lambda p: {"labels": [0] * 6, "eps": p.vae.noise(5)}, r"eps\[0\].*n is 6"),
    "noise_without_n": (lambda p: {"eps": p.vae.noise(5)}, r"eps\[0\].*n is 1"),
    "surplus_noise": (lambda p: {"n": 2, "eps": p.vae.noise(2) * 2}, "eps has 6 tensors.*3 stochastic"),
    "too_little_noise": (lambda p: {"n": 2, "eps": p.vae.noise(2)[:1]}, "eps has 1 tensors"),
    "one_tensor_as_noise": (lambda p: {"n": 2, "eps": p.vae.noise(2)[0]}, "eps must be a list"),
    "a_number_as_noise": (lambda p: {"eps": 3}, "eps must be a list"),
    "numbers_as_noise": (lambda p: {"eps": [1, 2, 3]}, r"eps\[0\]: a tensor of floats"),
    "noise_of_another_shape": (lambda p: {"eps": p.vae.noise(1)[::-1]}, r"eps\[0\]: .*\(n, 2, 1, 1\)"),
    "whole_noise": (lambda p: {"eps": [e.long() for e in p.vae.noise(1)]}, r"eps\[0\]: .*not of int64"),
    "noise_that_is_not_finite": (
        lambda p: {"eps": [e / 0 for e in p.vae.noise(1)]},
        r"eps\[0\]: finite numbers",
    ),
    "a_weight_as_guidance": (
        lambda p: {"labels": [1], "guidance": 3.0},
        r"guidance is 3.0: .*Guidance\(3.0\)",
    ),
    "weights_as_guidance": (lambda p: {"labels": [1], "guidance": (1, 2)}, r"guidance is \(1, 2\)"),
    "a_text_as_guidance": (lambda p: {"labels": [1], "guidance": "3"}, "guidance is '3'"),
    "a_truth_as_guidance": (lambda p: {"labels": [1], "guidance": True}, "guidance is True"),
    "labels_of_another_n": (lambda p: {"labels": [0, 1], "n": 5}, "n is 5, but there are 2 labels"),
    "fractions": (lambda p: {"labels": [0.5, 1.7]}, "whole numbers"),
    "truths": (lambda p: {"labels": [True, False]}, "whole numbers"),
    "names": (lambda p: {"labels": ["cat"]}, "class_indices"),
    "a_name": (lambda p: {"labels": "cat"}, "class_indices"),
    "names_in_an_array": (lambda p: {"labels": np.array(["cat"])}, "class_indices"),
    "a_number": (lambda p: {"labels": 3}, "one class index per image"),
    "a_column": (lambda p: {"labels": [[1], [2]]}, "one class index per image"),
    "nothing_in_a_list": (lambda p: {"labels": [None]}, "one class index per image"),
    "huge": (lambda p: {"labels": [2**70]}, "labels"),
    "unknown_class": (lambda p: {"labels": [0, 4]}, "labels must be 0 to 2"),
    "no_batch": (lambda p: {"labels": [0], "batch_size": 0}, "batch_size is 0"),
    "negative_batch": (lambda p: {"labels": [0], "batch_size": -1}, "batch_size is -1"),
    "half_a_batch": (lambda p: {"labels": [0], "batch_size": 1.5}, "batch_size is 1.5"),
    "half_an_image": (lambda p: {"n": 2.5}, "n is 2.5"),
    "n_as_text": (lambda p: {"n": "3"}, "n is '3'"),
    "fewer_than_none": (lambda p: {"n": -1}, "-1 images were asked for"),
    "a_seed_as_generator": (lambda p: {"n": 1, "generator": 42}, "make_generator"),
    "unknown_type": (lambda p: {"n": 1, "output_type": "jpg"}, "output_type is 'jpg'"),
    "no_type": (lambda p: {"n": 1, "output_type": None}, "output_type is 'None'"),
    "types": (lambda p: {"n": 1, "output_type": ["np"]}, "output_type is"),
    "half_precision": (lambda p: {"n": 1, "precision": "fp16"}, "precision is 'fp16': use auto"),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_contradictions_are_refused_before_anything_is_drawn(pipe, contradiction):
    make_request, complaint = CONTRADICTIONS[contradiction]
    request = {"generator": make_generator(0)} | make_request(pipe)
    before = make_generator(0).get_state()
    with pytest.raises(CfvaeError, match=complaint) as caught:
        pipe(**request)
    assert len(str(caught.value).splitlines()) == 1
    if isinstance(request["generator"], torch.Generator):
        assert torch.equal(request["generator"].get_state(), before)


def test_requests_that_only_look_strange(pipe):
    noise = pipe.vae.noise(2, make_generator(0))
    expected = draw(pipe, [0, 1], eps=noise)
    assert torch.equal(draw(pipe, [0, 1], n=2, eps=tuple(noise)), expected)
    assert torch.equal(draw(pipe, [0, 1], n=np.int64(2), batch_size=np.int64(9), eps=noise), expected)
    assert torch.equal(draw(pipe, [torch.tensor(0), torch.tensor(1)], eps=noise), expected)


def test_reconstruct_refuses_other_labels(pipe):
    x = torch.zeros(2, 3, 16, 16)
    for labels, complaint in (
        ([0], "2 examples need 2"),
        ([0.5, 1.0], "whole"),
        (["cat", "dog"], "class_indices"),
    ):
        with pytest.raises(CfvaeError, match=complaint):
            pipe.reconstruct(x, labels)


PICTURES = 2 * torch.rand(2, 3, 16, 16, generator=make_generator(0)) - 1


@pytest.mark.parametrize(
    "images",
    [
        PICTURES.byte(),
        PICTURES.numpy(),
        None,
        PICTURES[:0],
        PICTURES[0],
        PICTURES[:, :1],
        PICTURES[..., :8],
        127.5 * (PICTURES + 1),
        PICTURES / 0,
    ],
)
def test_images_that_are_none(pipe, images):
    for action in (pipe.encode, lambda x: pipe.reconstruct(x, [0, 1])):
        with pytest.raises(CfvaeError, match="^images: .*needed, not "):
            action(images)


def test_floats_of_every_width(pipe):
    noise = pipe.vae.noise(2, make_generator(0))
    expected, drawn = pipe.reconstruct(PICTURES, [0, 1]), draw(pipe, [0, 1], eps=noise)
    codes = pipe.encode(PICTURES)
    for kind in (torch.float64, torch.float16):
        assert torch.allclose(pipe.reconstruct(PICTURES.to(kind), [0, 1]), expected, atol=0.01)
        assert torch.allclose(draw(pipe, [0, 1], eps=[layer.to(kind) for layer in noise]), drawn, atol=0.01)
        assert torch.allclose(pipe.decode(codes.to(kind)), pipe.decode(codes), atol=0.01)


def test_codes_and_depths_that_are_none(pipe):
    codes = pipe.encode(PICTURES)
    for wrong in (codes[:, :3], codes.long(), codes.detach().numpy(), codes[:0], codes[0]):
        with pytest.raises(CfvaeError, match=r"^codes: .*\(n, 4, 4, 4\), is needed, not "):
            pipe.decode(wrong)
    for depth in (1.5, "all"):
        with pytest.raises(CfvaeError, match=f"depth is {depth!r}: a whole number"):
            pipe.reconstruct(PICTURES, [0, 1], depth)


def test_a_folder_and_a_type_to_save_as(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dtype in (torch.int8, torch.float64, "float16", None):
        with pytest.raises(CfvaeError, match="dtype is .*: use torch.float32"):
            pipe.save_pretrained("model", dtype)
    for path in ("", None, 5):
        with pytest.raises(CfvaeError, match=f"the folder is {path!r}: give its path"):
            pipe.save_pretrained(path)
        for load in (LatentVAEPipeline.from_pretrained, load_first_stage):
            with pytest.raises(CfvaeError, match=f"the model is {path!r}: give its path"):
                load(path)
    for card in (5, b"a card"):
        with pytest.raises(CfvaeError, match="the card is .*: a text is needed"):
            pipe.save_pretrained("model", card=card)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    pipe = build()
    on_cpu = draw(pipe, [0, 1, 2], guidance=Guidance(1, 1), generator=make_generator(0))
    noise = pipe.vae.noise(1)
    drawn, codes = draw(pipe, [0], eps=noise), pipe.encode(PICTURES)
    decoded = pipe.decode(codes)
    pipe.to("cuda")
    assert torch.allclose(draw(pipe, [0], eps=noise).cpu(), drawn, atol=1e-3)  # noise that lies elsewhere
    assert torch.allclose(pipe.decode(codes).cpu(), decoded, atol=1e-3)
    on_gpu = draw(pipe, [0, 1, 2], guidance=Guidance(1, 1), generator=make_generator(0))
    assert pipe.device.type == "cuda"
    assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-3)
    assert pipe.reconstruct(torch.zeros(2, 3, 16, 16), [0, 1]).device.type == "cuda"
