"""The autoencoder of lesson 02, trained longer, and what the length of a code buys (claim 4)."""

import dataclasses
import functools

import torch
import torch.nn.functional as F

from cfvae.autoencoder import Autoencoder, AutoencoderConfig, psnr, reconstruction_loss
from cfvae.core import image_grid, make_generator, randn, seed_everything
from cfvae.data import Shapes, ShuffledBatches
from cfvae.evaluation import class_accuracy
from cfvae.runs.presets import preset
from cfvae.runs.recorded import RecordedStep
from cfvae.training import fit
from jobs import Job, Record, Setting
from judging import N, REFERENCE_SEED, judge, shapes

# channels of the code, steps, training images
RUNS: dict[str, tuple[int, int, int]] = {
    "4 channels 600 steps": (4, 600, 2000),
    "4 channels 2400 steps": (4, 2400, 2000),
    "4 channels 9600 steps": (4, 9600, 2000),
    "4 channels 38400 steps": (4, 38400, 40000),
    "1 channels 600 steps": (1, 600, 2000),
    "2 channels 600 steps": (2, 600, 2000),
    "8 channels 600 steps": (8, 600, 2000),
    "1 channels 9600 steps": (1, 9600, 2000),
    "2 channels 9600 steps": (2, 9600, 2000),
    "8 channels 9600 steps": (8, 9600, 2000),
}
LINEAR = "linear codes"  # a variant without a training
LONGEST = "4 channels 38400 steps"
LENGTHS = (1, 2, 4, 8)  # channels of 8 x 8
LENGTH_STEPS = 1000


def long_autoencoder(job: Job, setting: Setting) -> Record:
    "Lesson 02's model and loop with other numbers of steps, and all that the lesson measures."
    if job.variant == LINEAR:
        return _linear_codes()
    channels, steps, images = RUNS[job.variant]
    data = shapes(setting.count(images), size=16)
    model = _train(channels, setting.steps(steps), data, job.seed)
    with torch.no_grad():
        record = {
            "channels": channels,
            "steps": setting.steps(steps),
            "images": len(data),
            "psnr_train": float(psnr(model(_images(data)), _images(data))),
            **_errors(model),
            "distance_to_data": {name: _distance(model.decode(z)) for name, z in _codes(model).items()},
        }
        if job.seed == 0:
            invented = _invented(model) if job.variant == LONGEST else []
            _save_rows([model(unseen()[:12]), *invented], job, setting)
    return record


def _save_rows(rows: list[torch.Tensor], job: Job, setting: Setting) -> None:
    "Rows of twelve pictures, each pixel a pixel."
    setting.records.mkdir(parents=True, exist_ok=True)
    sheet = image_grid(torch.cat(rows), columns=12, padding=0)
    sheet.save(setting.records / f"{job.name}.png")


def _train(channels: int, steps: int, data: Shapes, seed: int) -> Autoencoder:
    "The loop of lesson 02."
    batch_size, rate = 16, 5e-3
    seed_everything(seed)
    model = Autoencoder(AutoencoderConfig(size=16, widths=(32,), patch=4, latent_channels=channels))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    order = ShuffledBatches(len(data), batch_size, seed)
    loss_fn = reconstruction_loss()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss, _ = loss_fn(model, data.batch(order.batch(step)), None, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def _images(data: Shapes, n: int = 256) -> torch.Tensor:
    return data.batch(range(min(n, len(data))))[0]


@functools.cache
def unseen() -> torch.Tensor:
    "Lesson 02's unseen pictures, (256, 3, 16, 16)."
    return _images(shapes(256, 1, 16))


@functools.cache
def lesson_images() -> torch.Tensor:
    "Lesson 02's training pictures, (2000, 3, 16, 16)."
    return _images(shapes(2000, size=16), 2000)


def _errors(model: Autoencoder) -> Record:
    x = unseen()
    moved = x.roll(4, dims=3)
    again = model(x)
    near, elsewhere = _by_edge(x, again)
    return {
        "psnr_test": float(psnr(again, x)),
        "psnr_moved": float(psnr(model(moved), moved)),
        "lost_by_frequency": lost_by_frequency(x, again),
        "error_near_edges": near,
        "error_elsewhere": elsewhere,
    }


def lost_by_frequency(
    x: torch.Tensor,  # (n, 3, 16, 16)
    again: torch.Tensor,  # their reconstructions
) -> list[float]:
    "The share of the power that is lost, for waves of 0 to 8 periods per picture."
    lost = _power_by_frequency(again - x) / _power_by_frequency(x)
    return lost.tolist()


def _power_by_frequency(x: torch.Tensor) -> torch.Tensor:
    waves = torch.fft.fftfreq(16) * 16
    ring = (waves[:, None] ** 2 + waves**2).sqrt().round()
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
    return torch.stack([power[ring == k].mean() for k in range(9)])


def _by_edge(x: torch.Tensor, again: torch.Tensor) -> tuple[float, float]:
    "Mean error near edges, and elsewhere."
    error = (again - x).abs().mean(1)
    slope = torch.zeros_like(error)
    slope[:, 1:] += (x[:, :, 1:] - x[:, :, :-1]).abs().mean(1)
    slope[:, :, 1:] += (x[..., 1:] - x[..., :-1]).abs().mean(1)
    edge = slope > 0.2
    return float(error[edge].mean()), float(error[~edge].mean())


def _codes(model: Autoencoder, n: int = 256) -> dict[str, torch.Tensor]:
    "Real codes, and n that were invented with more or less care."
    z = model.encode(unseen())
    noise = randn((n, *z.shape[1:]), make_generator(1))
    keys = torch.rand(z.shape, generator=make_generator(2))
    return {
        "reconstructions": z[:n],
        "shuffled entries": z.gather(0, keys.argsort(0))[:n],
        "careful noise": z.mean(0) + z.std(0) * noise,
        "standard noise": noise,
    }


def _distance(images: torch.Tensor) -> float:
    "Mean distance to the nearest training picture, a root mean square over pixels."
    nearest = torch.cdist(images.flatten(1), lesson_images().flatten(1)).min(1).values
    return float(nearest.mean()) / 768**0.5


def _invented(model: Autoencoder) -> list[torch.Tensor]:
    codes = _codes(model, 12)
    return [model.decode(codes[name]) for name in ("standard noise", "careful noise", "shuffled entries")]


def _linear_codes() -> Record:
    "The best linear codes of the same lengths."
    x = unseen()
    moved = x.roll(4, dims=3)
    record: Record = {}
    for images in (2000, 40000):
        flat = _images(shapes(images, size=16), images).flatten(1)
        mean, directions = principal_directions(flat)

        again = linear(x, mean, directions[:64])
        record[f"of the whole picture, {images} images"] = {
            "psnr_test": float(psnr(again, x)),
            "psnr_moved": float(psnr(linear(moved, mean, directions[:64]), moved)),
            "lost_by_frequency": lost_by_frequency(x, again),
        }
    squares = F.pixel_unshuffle(lesson_images(), 4).movedim(1, 3).flatten(0, 2)
    mean, directions = principal_directions(squares)
    for channels in LENGTHS:
        parts = F.pixel_unshuffle(x, 4).movedim(1, 3)
        again = F.pixel_shuffle(linear(parts, mean, directions[:channels], 3).movedim(3, 1), 4)
        record[f"of squares, {channels} channels"] = {"psnr_test": float(psnr(again, x))}
    return {"linear": record}


def principal_directions(
    rows: torch.Tensor,  # (n, d)
) -> tuple[torch.Tensor, torch.Tensor]:
    "Their mean, (d,), and the directions in which they vary, most first, (d, d)."
    mean = rows.mean(0)
    _, vectors = torch.linalg.eigh(torch.cov(rows.double().T))  # ascending
    return mean, vectors.flip(1).T.to(rows.dtype)


def linear(
    x: torch.Tensor,  # (..., d) from dimension `start` on
    mean: torch.Tensor,  # (d,)
    directions: torch.Tensor,  # (k, d)
    start: int = 1,  # where the numbers of one example begin
) -> torch.Tensor:
    "x through k numbers and back."
    z = (x.flatten(start) - mean) @ directions.T
    return (z @ directions + mean).view_as(x)


def code_length(job: Job, setting: Setting) -> Record:
    "The demo's autoencoder with a code of another length: error, and whether the judge knows the pictures."
    channels = int(job.variant.split()[0])
    recipe = preset("shapes-demo")
    assert isinstance(recipe.autoencoder, AutoencoderConfig)
    config = dataclasses.replace(recipe.autoencoder, latent_channels=channels)
    training = dataclasses.replace(
        recipe.autoencoder_training,
        steps=setting.steps(LENGTH_STEPS),
        seed=job.seed,
        device=setting.device,
    )
    seed_everything(job.seed)
    data = shapes(setting.count(10000))
    state = fit(Autoencoder(config), data, reconstruction_loss(), training, [], RecordedStep())
    model = state.ema.module.cpu()

    n = setting.count(N)
    x, labels = shapes(n, REFERENCE_SEED).batch(range(n))
    with torch.no_grad():
        again = torch.cat([model(part) for part in x.split(250)])
    return {
        "channels": channels,
        "numbers": channels * 64,
        "steps": training.steps,
        "n": n,
        "psnr": float(psnr(again, x)),
        "mean_error": float((again - x).abs().mean()),
        "recognised": class_accuracy(judge(), again, labels),
    }
