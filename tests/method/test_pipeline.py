"Tests of cfvae.pipeline: any number of images, shared noise, what comes out, and a folder that gives back every bit."

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.latents import LatentScaler
from cfvae.pipeline import LatentVAEPipeline
from cfvae.pretrained import describe_pretrained, load_pretrained

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
    "A pipeline of random weights; everything that starts at zero or close to it is shaken, so that labels and priors matter."
    seed_everything(seed)
    vae = HierarchicalVAE(HierarchicalVAEConfig(**SIZES, num_classes=len(classes)))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    autoencoder = Autoencoder(AutoencoderConfig(size=16, widths=(8, 8), groups=4))
    return LatentVAEPipeline(
        autoencoder, vae, LatentScaler([0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0], 3.5), classes
    )


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
    assert (
        draw(build(), n=3).shape[0] == 3
    )  # a conditional model draws unconditionally where it is given no labels
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
    assert torch.allclose(
        draw(pipe, [1] * 7, eps=noise), draw(pipe, [1] * 7, eps=noise, batch_size=3), atol=1e-6
    )


def test_labels_as_list_array_or_tensor(pipe):
    noise = pipe.vae.noise(3, make_generator(0))
    wanted = draw(pipe, [2, 0, 1], eps=noise)
    for labels in (
        torch.tensor([2, 0, 1]),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
        np.array([2, 0, 1]),
        (2, 0, 1),
    ):
        assert torch.equal(draw(pipe, labels, eps=noise), wanted)
    assert not torch.allclose(draw(pipe, [0, 0, 0], eps=noise), wanted, atol=1e-3)


def test_integer_guidance_weights(pipe):
    noise = pipe.vae.noise(3, make_generator(0))
    whole, real = (draw(pipe, [0, 1, 2], guidance=g, eps=noise) for g in (Guidance(2, 4), Guidance(2.0, 4.0)))
    plain = draw(pipe, [0, 1, 2], eps=noise)
    assert torch.equal(whole, real) and not torch.allclose(whole, plain, atol=1e-3)
    assert torch.equal(draw(pipe, [0, 1, 2], guidance=Guidance(0, 0), eps=noise), plain)
    assert torch.allclose(
        draw(pipe, [0, 1, 2], guidance=Guidance((2, 2), (4, 4)), eps=noise), whole, atol=1e-6
    )


def test_temperature(pipe):
    cold = draw(pipe, [1] * 4, temperature=0, generator=make_generator(0))
    assert torch.allclose(cold, cold[:1].expand_as(cold), atol=1e-5)
    with pytest.raises(CfvaeError, match="temperature"):
        pipe([0], temperature=(1.0, 1.0, 1.0))


def test_output_types(pipe):
    noise = pipe.vae.noise(2, make_generator(0))
    tensor, array, pictures = (
        pipe([0, 1], eps=noise, output_type=kind).images for kind in ("pt", "np", "pil")
    )
    assert tensor.dtype == torch.float32 and 0 <= tensor.min() and tensor.max() <= 1
    assert array.dtype == np.uint8 and array.shape == (2, 16, 16, 3)
    assert all(isinstance(p, Image.Image) and p.mode == "RGB" and p.size == (16, 16) for p in pictures)
    assert np.array_equal(np.asarray(pictures[1]), array[1])
    assert np.abs(array / 255 - tensor.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6
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
    code = pipe.autoencoder.encode(x)
    shift, scale = pipe.scaler.shift, pipe.scaler.scale
    assert torch.allclose(pipe.encode(x), ((code - shift) / scale).clamp(-3.5, 3.5), atol=1e-6)
    assert torch.allclose(pipe.decode((code - shift) / scale), pipe.autoencoder(x), atol=1e-5)
    z = pipe.vae.sample(2, [0, 1], eps=pipe.vae.noise(2, make_generator(0)))
    assert torch.allclose(
        draw(pipe, [0, 1], generator=make_generator(0)) * 2 - 1,
        pipe.autoencoder.decode(z * scale + shift).clamp(-1, 1),
        atol=1e-6,
    )


def test_reconstruct_depths(pipe):
    x, labels = torch.rand(3, 3, 16, 16, generator=make_generator(2)) * 2 - 1, [0, 1, 2]
    alone = pipe.reconstruct(x, depth=0)  # needs no labels: the VAE is not asked
    assert torch.allclose(alone, pipe.decode(pipe.encode(x)), atol=1e-6)
    full, third, first = (
        pipe.reconstruct(x, labels),
        pipe.reconstruct(x, labels, 3),
        pipe.reconstruct(x, torch.tensor(labels), 1),
    )
    assert torch.equal(full, third) and full.shape == x.shape and not full.requires_grad
    z = pipe.encode(x)
    assert torch.allclose(
        first,
        pipe.decode(
            pipe.vae.decode(pipe.vae.posterior_means(z, torch.tensor(labels))[:1], torch.tensor(labels))
        ),
        atol=1e-6,
    )
    assert not torch.allclose(first, full, atol=1e-3)
    for depth in (-1, 4):
        with pytest.raises(CfvaeError, match=f"depth is {depth}"):
            pipe.reconstruct(x, labels, depth)
    with pytest.raises(CfvaeError, match="needs labels"):
        pipe.reconstruct(x)
    with pytest.raises(CfvaeError, match="images of shape"):
        pipe.reconstruct(torch.zeros(1, 3, 8, 8), [0])


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "deep" / "model")
    again = LatentVAEPipeline.from_pretrained(tmp_path / "deep" / "model")
    assert (
        again.classes == CLASSES
        and again.vae.config == pipe.vae.config
        and again.autoencoder.config == pipe.autoencoder.config
    )
    for a, b in ((pipe.vae, again.vae), (pipe.autoencoder, again.autoencoder)):
        ours, theirs = a.state_dict(), b.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not again.vae.training and not again.autoencoder.training and again.scaler.clip == pipe.scaler.clip
    x = torch.full((1, 3, 16, 16), 0.3)
    assert torch.equal(
        draw(pipe, [0, 1, 2], generator=make_generator(9)),
        draw(again, [0, 1, 2], generator=make_generator(9)),
    )
    assert torch.equal(pipe.reconstruct(x, [1]), again.reconstruct(x, [1]))


def test_half_precision_files(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "full")
    pipe.save_pretrained(str(tmp_path / "half"), dtype=torch.float16)
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / name).rglob("*.safetensors")) for name in ("full", "half")
    ]
    assert sizes[1] < 0.7 * sizes[0]
    half = LatentVAEPipeline.from_pretrained(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in half.vae.parameters())  # computing stays in float32
    assert next(pipe.vae.parameters()).dtype == torch.float32  # and saving changed nothing here
    ours, theirs = (draw(p, [0, 1, 2], generator=make_generator(9)) for p in (pipe, half))
    assert 0 < (ours - theirs).abs().max() < 0.02


def test_no_pipeline(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CfvaeError, match="holds no pipeline"):
            LatentVAEPipeline.from_pretrained(path)


@pytest.mark.parametrize(
    "damage", ["short", "empty", "missing", "pickle", "about", "foreign", "fields", "version"]
)
def test_damaged_folder(pipe, tmp_path, damage):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    weights, about = folder / "vae" / "model.safetensors", folder / "pipeline.json"
    content = json.loads(about.read_text())
    if damage == "short":
        weights.write_bytes(weights.read_bytes()[:999])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "missing":
        shutil.rmtree(folder / "vae")
    elif damage == "pickle":
        torch.save(pipe.vae.state_dict(), weights)
    elif damage == "about":
        about.write_text('{"format": 1, ')
    elif damage == "foreign":
        about.write_text("[]")
    elif damage == "fields":
        about.write_text(json.dumps({key: value for key, value in content.items() if key != "scale"}))
    elif damage == "version":
        about.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(CfvaeError, match="model") as caught:
        LatentVAEPipeline.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) <= 2


def test_wrong_labels_and_names(pipe):
    assert pipe.class_indices(["<owl> & co", "cat"]) == [2, 0]
    with pytest.raises(CfvaeError, match="no class 'owl'.*cat, dog"):
        pipe.class_indices(["owl"])
    for labels in ([4], [-1]):
        with pytest.raises(CfvaeError, match="labels must be 0 to 2"):
            pipe(labels)
    assert draw(pipe, [3]).shape[0] == 1  # the null label


def test_parts_must_fit(pipe):
    with pytest.raises(CfvaeError, match="3 classes, but 2 names"):
        LatentVAEPipeline(pipe.autoencoder, pipe.vae, pipe.scaler, CLASSES[:2])
    with pytest.raises(CfvaeError, match=r"\(4, 8, 8\), but the VAE models \(4, 4, 4\)"):
        LatentVAEPipeline(
            Autoencoder(AutoencoderConfig(size=32, widths=(8, 8), groups=4)), pipe.vae, pipe.scaler, CLASSES
        )


def test_unwritable_folder(pipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CfvaeError, match="cannot save the pipeline"):
        pipe.save_pretrained(tmp_path / "file")


def test_pixels_as_first_stage(tmp_path):
    seed_everything(0)
    stage = load_pretrained(describe_pretrained("pixels", 4))
    pixels = LatentVAEPipeline(
        stage,
        HierarchicalVAE(HierarchicalVAEConfig(**(SIZES | {"data_channels": 3}))),
        LatentScaler(0.0, 1.0),
    )
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.equal(pixels.reconstruct(images, depth=0), images)
    pixels.save_pretrained(tmp_path)
    again = LatentVAEPipeline.from_pretrained(tmp_path)
    assert torch.equal(
        draw(again, n=3, generator=make_generator(0)), draw(pixels, n=3, generator=make_generator(0))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    pipe = build()
    wanted = draw(pipe, [0, 1, 2], guidance=Guidance(1, 1), generator=make_generator(0))
    pipe.to("cuda")
    found = draw(pipe, [0, 1, 2], guidance=Guidance(1, 1), generator=make_generator(0))
    assert pipe.device.type == "cuda" and torch.allclose(found.cpu(), wanted, atol=1e-3)
    assert pipe.reconstruct(torch.zeros(2, 3, 16, 16), [0, 1]).device.type == "cuda"
