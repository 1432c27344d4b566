"""The seven claims of the method, and what the stored results say of each, in sentences."""

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs import Record, write_json
from summary import mean_and_error

NOT_MEASURED = "not measured"
ABOUT = (
    "What the method promises, and what this project measured of it. A value with an error is a mean over "
    "seeds with its standard error. The last column names the file that holds the runs."
)


def write_claims(
    results: Path,  # nbs/results
) -> None:
    "Write claims.json from what is stored."
    rows = []
    for number, (claim, measure) in enumerate(CLAIMS.items(), start=1):
        found = measure(results) or {"measured": NOT_MEASURED}
        rows.append({"": number, "claim": claim, **found})
    write_json(results / "claims.json", {"about": ABOUT, "rows": rows})


def read(
    path: Path,  # of a stored result
) -> Any:
    "Its content, or None where it has not been made."
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shown(
    values: Iterable[float],  # one a seed
    factor: float = 1.0,  # 100 for percent
    digits: int = 0,  # after the point
) -> str:
    "Mean and standard error, as a sentence has them."
    found = mean_and_error([factor * value for value in values])
    error = found["se"]
    mean = f"{found['mean']:.{digits}f}"
    return mean if error is None else f"{mean} ± {error:.{max(digits, 1)}f}"


def detail(results: Path) -> Record | None:
    "Claim 3."
    path = results / "lessons/09-reweighting.json"
    content = read(path)
    if content is None:
        return None
    plain = [record for record in content["records"] if record["name"] == "pixels-plain"]
    fine = [sum(record["rates"][4:]) / sum(record["rates"]) for record in plain]
    halves = [(record["error_by_depth"][3], record["error_by_depth"][-1]) for record in plain]
    coarse, whole = map(statistics.fmean, zip(*halves, strict=True))
    known = [record["recognised_by_depth"][3] for record in plain]
    return {
        "measured": f"The layers at 8 x 8 and 16 x 16 hold {shown(fine, 100)} % of a pixel model's nats. "
        f"They take the error from {coarse:.0f} to {whole:.0f} grey levels; {shown(known, 100)} % of the "
        "pictures are recognised without them.",
        "n": 1000,
        "seeds": len(plain),
        "hardware": content["device"],
        "file": "lessons/09-reweighting.json",
    }


def code_length(results: Path) -> Record | None:
    "Claim 4."
    content = read(results / "controls/code_length.json")
    if content is None:
        return None
    by_length: dict[int, list[Record]] = {}
    for run in content["runs"]:
        by_length.setdefault(run["numbers"], []).append(run)
    parts = []
    for numbers, runs in by_length.items():
        psnr = shown([run["psnr"] for run in runs], digits=1)
        recognised = shown([run["recognised"] for run in runs], 100)
        parts.append(f"{numbers} numbers: {psnr} dB, {recognised} % recognised")
    return {
        "measured": "Of 3,072 numbers of a picture, " + "; ".join(parts) + ".",
        "n": content["runs"][0]["n"],
        "seeds": len(content["seeds"]),
        "hardware": ", ".join(content["hardware"]),
        "file": "controls/code_length.json",
    }


def budget(results: Path) -> Record | None:
    "Claim 5."
    content = read(results / "lessons/10-budget.json")
    if content is None:
        return None
    arms: dict[str, list[Record]] = {}
    for record in content["records"]:
        if record.get("schedule", "coarse first") == "coarse first" and not record.get("with_autoencoder"):
            arms.setdefault(record["side"], []).append(record)
    parts = []
    for side, records in arms.items():
        recognised = shown([record["samples_recognised"] for record in records], 100)
        size, steps = records[0]["parameters"] / 1e6, records[0]["steps"]
        parts.append(f"{side} ({size:.1f} M parameters, {steps:,} steps) {recognised} %")
    return {
        "measured": "Samples recognised after equally many training operations: " + ", ".join(parts) + ".",
        "n": 1000,
        "seeds": len({record["seed"] for record in content["records"]}),
        "hardware": content["device"],
        "file": "lessons/10-budget.json",
    }


def fidelity(results: Path) -> Record | None:
    "Claim 6."
    content = read(results / "lessons/11-shapes.json")
    if content is None:
        return None
    parts = []
    for title, mean, temperature in (
        ("plain", 0.0, 1.0),
        ("mean weight 2", 2.0, 1.0),
        ("temperature 0.8", 0.0, 0.8),
        ("both", 2.0, 0.8),
    ):
        setting = {"mean": mean, "var": 0.0, "temperature": temperature}
        same = [record for record in content["records"] if record["setting"] == setting]
        names = ("recognised", "precision", "recall")
        values = [shown([record[name] for record in same], 100) for name in names]
        parts.append(f"{title} " + " / ".join(values))
    return {
        "measured": "Recognised / precision / recall in %: " + "; ".join(parts) + ".",
        "n": 600,
        "seeds": f"{len({record['seed'] for record in content['records']})} of noise",
        "hardware": content["device"],
        "file": "lessons/11-shapes.json",
    }


CLAIMS: dict[str, Callable[[Path], Record | None]] = {
    "One pass in place of many": lambda results: None,
    "Codes in place of pixels helped autoregressive models": lambda results: None,
    "Pixel VAEs spend bits on detail": detail,
    "The code is short and keeps what is perceived": code_length,
    "Lighter, more stable, and the same budget buys a larger model": budget,
    "Fidelity against diversity": fidelity,
    "Comparison with other families": lambda results: None,
}
