"""Pixels against codes, six minutes of one core each: what made the JSON and the PNG of the same name.

`python nbs/stored/10_pixels_against_codes.py` takes half an hour of one core and writes both anew."""

import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cfvae.autoencoder import Autoencoder, psnr
from cfvae.core import image_grid, make_generator, seed_everything, shipped_weights
from cfvae.data import Shapes
from cfvae.evaluation import class_accuracy, shapes_classifier
from cfvae.files.codes import encode_dataset
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.objective import ObjectiveConfig, vae_loss
from cfvae.training import Callback, StopTraining, TrainingConfig, fit

held_out = Shapes(256, seed=1)

good = Autoencoder.from_pretrained(shipped_weights("shapes") / "autoencoder").eval()
common = {"multipliers": 0, "encoder_blocks": 1, "latent_channels": 8, "num_classes": 10}
MODELS = {
    "pixels": HierarchicalVAEConfig(
        data_channels=3,
        resolutions=(1, 4, 8, 16, 32),
        widths=(48, 48, 48, 32, 16),
        encoder_widths=(48, 48, 48, 32, 16),
        layers=(2, 3, 2, 2, 1),
        **common,
    ),
    "codes": HierarchicalVAEConfig(
        data_channels=4,
        resolutions=(1, 4, 8),
        widths=48,
        encoder_widths=48,
        layers=(2, 3, 2),
        **common,
    ),
}

halving = {"schedule": "constant-per-resolution", "label_drop": 0}
OBJECTIVES = {
    "pixels": ObjectiveConfig(sigma_q=0.035, values=(16, 8, 4, 2, 1), **halving),
    "codes": ObjectiveConfig(sigma_q=0.1, values=(4, 2, 1), **halving),
}


def budget_training(steps, seed=0):
    return TrainingConfig(
        steps=steps,
        batch_size=32,
        learning_rate=3e-3,
        final_learning_rate=3e-5,
        ema_decay=0.99,
        seed=seed,
        precision="fp32",
        device="cpu",
    )


class Budget(Callback):
    """Ends training after so many seconds of computing by this process.

    Keeps every gradient norm, and what `look` sees nine times, off the clock."""

    def __init__(self, seconds=math.inf, look=None):
        self.seconds, self.look = seconds, look
        self.spent = 0.0
        self.steps, self.norms, self.marks = [], [], []

    def on_start(self, state):
        self.clock = time.process_time()

    def on_step(self, state, metrics):
        self.steps.append(time.process_time() - self.clock)
        self.spent += self.steps[-1]
        self.norms.append(float(metrics["gradient_norm"]))

        next_mark = len(self.marks) + 1
        if self.look and next_mark < 10 and self.spent >= next_mark * self.seconds / 10:
            measures = self.look(state.ema.module.eval())
            self.marks.append({"minutes": self.spent / 60, "step": state.step, **measures})
        if self.spent >= self.seconds:
            raise StopTraining
        self.clock = time.process_time()


def time_a_step(name, data, steps):
    "Median seconds of computing for a step."
    seed_everything(0)
    watch = Budget()
    model = HierarchicalVAE(MODELS[name])
    fit(model, data, vae_loss(OBJECTIVES[name]), budget_training(steps), [watch])
    return float(np.median(watch.steps[3:]))


judge = shapes_classifier()


@torch.no_grad()
def look(model, to_data, to_picture, count, drawn):
    "Measures of a model's reconstructions of `count` held-out images and of `drawn` samples, as pictures."
    x, labels = held_out.batch(range(count))
    data = to_data(x)
    again = to_picture(model.reconstruct(data, labels))
    asked = torch.arange(drawn) % 10
    samples = to_picture(model.sample(drawn, asked, generator=make_generator(1)))
    out = model(data, labels, generator=make_generator(0))
    return {
        "psnr": float(psnr(again, x)),
        "accuracy": class_accuracy(judge, samples, asked),
        "rate": float(out.rates.sum(1).mean()),
        "kept": class_accuracy(judge, again, labels),
    }


@torch.no_grad()
def seven_of_each(model, to_data, to_picture):
    "A row of reconstructions, and two rows of samples that have their labels."
    x, labels = held_out.batch(range(256))
    rows = [to_picture(model.reconstruct(to_data(x), labels))[:7]]
    for seed in range(2):
        samples = model.sample(7, labels[:7], generator=make_generator(seed))
        rows.append(to_picture(samples))
    return torch.cat(rows)


def unsteadiness(norms, dims):
    "What a record of gradient norms says about stability, from step 101 on, when the warm-up is over."
    norms = np.array(norms[100:])

    # against the median of the 51 steps around it: the slow decline does not count
    padded = np.pad(norms, 25, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, 51)
    local = norms / np.median(around, axis=1)
    return {
        "median": float(np.median(norms) / dims),
        "variation": float(norms.std() / norms.mean()),
        "largest": float(norms.max() / np.median(norms)),
        "local_largest": float(local.max()),
        "local_variation": float(local.std()),
        "local_over_3": float((local > 3).mean()),
        "skipped": int((norms >= 300 * dims).sum()),
        "not_finite": int((~np.isfinite(norms)).sum()),
    }


def thinned(norms, dims):
    "Median and largest norm of 120 stretches, to draw."
    numbers = []
    for stretch in np.array_split(np.array(norms), 120):
        numbers += [np.median(stretch) / dims, stretch.max() / dims]
    return [float(f"{number:.4g}") for number in numbers]


def run(name, data, to_data, to_picture, seed, minutes):
    "One training within the budget: what came of it, and pictures."
    # the learning rate's cosine ends where the budget does, or nearly
    steps = int(60 * minutes / time_a_step(name, data, 20))
    budget = Budget(60 * minutes, lambda model: look(model, to_data, to_picture, 64, 200))
    seed_everything(seed)
    model = HierarchicalVAE(MODELS[name])
    state = fit(model, data, vae_loss(OBJECTIVES[name]), budget_training(steps, seed), [budget])

    average = state.ema.module.eval()
    dims = to_data(held_out.batch([0])[0]).numel()
    record = {
        "name": name,
        "seed": seed,
        "planned": steps,
        "steps": state.step,
        "minutes": budget.spent / 60,
        "step_seconds": float(np.median(budget.steps)),
        **look(average, to_data, to_picture, 256, 500),
        **unsteadiness(budget.norms, dims),
        "skipped_live": state.skipped,
        "marks": budget.marks,
        "norms": thinned(budget.norms, dims),
    }
    return record, seven_of_each(average, to_data, to_picture)


STORED = Path(__file__).with_suffix(".json")


def save(record, pictures):
    "Numbers to four digits, and one sheet of pictures."
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.4g}"))
    STORED.write_text(json.dumps(rounded), encoding="utf-8")

    rows = torch.cat([held_out.batch(range(7))[0], pictures["pixels"], pictures["codes"]])
    sheet = image_grid(rows, columns=7, padding=0)
    sheet = sheet.point(lambda v: round(v / 6) * 6)  # every sixth level: half the bytes
    sheet.save(STORED.with_suffix(".png"), optimize=True)


def both_sides(training, folder):
    "What either model is trained on, with the ways from pictures to its data and back."
    codes = encode_dataset(good, training, folder, progress=False)

    def to_codes(x):
        return codes.scaler(good.encode(x))

    def to_pictures(z):
        return good.decode(codes.scaler.invert(z))

    return {"pixels": (training, lambda x: x, lambda x: x), "codes": (codes, to_codes, to_pictures)}


def compare(minutes=6.0, seeds=(0, 1)):
    """Pixels and codes in turn, so that a busy spell of the machine falls on both.

    Writes numbers and pictures into `stored`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Shapes(20000)
    records, pictures = [], {}
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        sides = both_sides(training, Path(place) / "codes")
        encoding = (time.process_time() - began) / 60
        for seed in seeds:
            for name, side in sides.items():
                record, drawn = run(name, *side, seed, minutes)
                records.append(record)
                pictures.setdefault(name, drawn)
                print({k: v for k, v in record.items() if k not in ("norms", "marks")}, flush=True)
    torch.set_num_threads(threads)
    save({"minutes": minutes, "encoding_minutes": encoding, "runs": records}, pictures)


if __name__ == "__main__":
    compare()
