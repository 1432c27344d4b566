"""Tables and figures from the records of all jobs. A run that is missing changes no other's numbers."""

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import autoencoders
import figures
from jobs import Job, Record, write_json
from plan import jobs_of

COMMAND = "python nbs/results/experiments"
FIXED = ("seed", "seconds", "processor_seconds")  # numbers about a run, not results of it
ABOUT = {
    "shipped": (
        "The shipped models of `Shapes`, one training each, on 1,000 held-out images: "
        "where the nats of the pixel models (16 x 16) sit, what their layers at 1 x 1 and 4 x 4 know alone, "
        "and what the autoencoder's code (32 x 32) keeps. "
        "Errors in grey levels; recognised by the shipped classifier."
    ),
    "ablations": (
        "One change at a time to stage two of preset shapes-demo (1,250 steps of 48), "
        "on the codes of the shipped autoencoder. Judged by the shipped classifier: 1,000 samples against "
        "1,000 real images. Guided: mean weight 2. Raw: the weights themselves in place of their average."
    ),
    "02_autoencoder": (
        "The autoencoder of lesson 02 (16 x 16 pixels), trained for longer, and linear codes beside it."
    ),
    "06_vae": (
        "The one-layer VAE of lesson 06 (16 x 16 pixels), trained as in the lesson and for longer. "
        "Information, hole, open and network are exact sums over all 2,304,000 pictures that the generator "
        "can draw, a mean over draws (of the first held-out images); all else is for 256 images."
    ),
    "code_length": (
        "The demo's autoencoder (32 x 32 pixels, 1,000 steps of 32) with codes of 1, 2, 4 and 8 channels of "
        "8 x 8. 1,000 held-out images, recognised by the shipped classifier."
    ),
}

ALT = {
    "ablations": "Dots, one a seed, a row a variant: left the share recognised, right the Frechet distance",
    "06_vae": "Dots, one a seed, against steps: left what latents leave open, right the network's error",
    "code_length": "Dots, one a seed, against the numbers in the code: left PSNR, right share recognised",
}
COLUMNS = {  # that the site shows
    "shipped": (
        "rate",
        "share_fine",
        "error_coarse",
        "error_all",
        "recognised_coarse",
        "recognised_all",
        "real_recognised",
        "numbers",
        "psnr",
    ),
    "ablations": (
        "recognised",
        "recognised_guided",
        "frechet",
        "frechet_guided",
        "precision",
        "recall",
        "rate",
        "distortion",
        "raw_recognised",
        "raw_frechet",
    ),
    "02_autoencoder": (
        "steps",
        "images",
        "psnr_train",
        "psnr_test",
        "psnr_moved",
        "error_near_edges",
        "error_elsewhere",
    ),
    "06_vae": (
        "steps",
        "images",
        "distortion",
        "rate",
        "information",
        "hole",
        "open",
        "network",
        "total",
        "chance_of_kind",
        "draws",
        "corner_error",
    ),
    "code_length": ("numbers", "psnr", "mean_error", "recognised"),
}


def restore(
    stored: Path,  # nbs/results
    records: Path,  # the folder of records
) -> None:
    "Records of the trainings that the tables hold already, so that others can be added to them."
    for experiment in ABOUT:
        path = _table_of(experiment, stored)
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        for run in runs:
            record = records / f"{Job(experiment, run['variant'], run['seed'], 0).name}.json"
            if not record.exists():
                write_json(record, {"experiment": experiment} | run)


def _table_of(
    experiment: str,  # a key of `ABOUT`
    out: Path,  # nbs/results
) -> Path:
    folder, name = ("ablations", "table") if experiment == "ablations" else ("controls", experiment)
    return out / folder / f"{name}.json"


def summarise(
    records: Path,  # the folder of records
    out: Path,  # nbs/results
) -> None:
    "Write every experiment's JSON, its figure, and the pictures that lessons show."
    for experiment, about in ABOUT.items():
        paths = [records / f"{job.name}.json" for job in jobs_of(experiment)]
        own = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if not own:
            continue
        path = _table_of(experiment, out)
        write_json(path, table(own, about) | extras(experiment))
        figures.draw(experiment, own, path.parent)
    controls = out / "controls"
    controls.mkdir(parents=True, exist_ok=True)
    for path in [*records.glob("06_*.png"), *records.glob("06_*.safetensors")]:
        shutil.copy(path, controls / path.name)
    _pictures_of_02(records, controls / "02_pictures.png")


def _pictures_of_02(
    records: Path,  # the folder of records
    path: Path,  # what lesson 02 shows
) -> None:
    "Seven rows, seed 0: reconstructions after more and more steps, and what the longest run invents."
    names = [name for name, (channels, _, _) in autoencoders.RUNS.items() if channels == 4]
    jobs = [job for job in jobs_of("02_autoencoder") if job.variant in names and job.seed == 0]
    sheets = [records / f"{job.name}.png" for job in jobs]
    if all(sheet.exists() for sheet in sheets):
        figures.stack_pictures(sheets).save(path, optimize=True)


def table(
    runs: list[Record],  # of one experiment
    about: str,  # what it is
) -> Record:
    "What was done, a row for every variant, and every run by itself."
    machines = sorted({run["machine"] for run in runs})
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    return {
        "about": about,
        "command": COMMAND,
        "hardware": machines,
        "seeds": sorted({run["seed"] for run in runs}),
        "rows": [row([run for run in runs if run["variant"] == variant]) for variant in variants],
        "runs": [{key: value for key, value in run.items() if key != "experiment"} for run in runs],
    }


def extras(
    experiment: str,  # a key of `ABOUT`
) -> Record:
    "What the site needs beside the numbers."
    alt = {"alt": ALT[experiment]} if experiment in ALT else {}
    return alt | {"columns": ["variant", "seeds", *COLUMNS[experiment]]}


def row(
    runs: list[Record],  # of one variant, a seed each
) -> Record:
    "Every number's mean over the seeds and the standard error of that mean."
    first = runs[0]
    line: Record = {"variant": first["variant"], "seeds": len(runs)}
    for key, value in first.items():
        if key in FIXED or not isinstance(value, int | float):
            continue
        values = [run[key] for run in runs if key in run]
        line[key] = value if len(set(values)) == 1 and isinstance(value, int) else mean_and_error(values)
    return line


def mean_and_error(
    values: list[float],  # one a seed
) -> dict[str, Any]:
    "Mean and standard error; no error for a single value."
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "se": error}
