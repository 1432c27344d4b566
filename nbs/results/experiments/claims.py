"""The seven claims of the method, and what the stored results say of each: a finding, and its numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import Record, write_json

NOT_MEASURED = "not measured"
ABOUT = (
    "What the method promises, and what this project measured of it. The last column names the file, below "
    "nbs/results, that holds the runs."
)


def write_claims(
    results: Path,  # nbs/results
) -> None:
    "Write claims.json from what is stored."
    rows = []
    for number, (claim, measure) in enumerate(CLAIMS.items(), start=1):
        found = measure(results) or {"finding": NOT_MEASURED}
        rows.append({"": number, "claim": claim, **found})
    write_json(results / "claims.json", {"about": ABOUT, "rows": rows})


def read(
    path: Path,  # of a stored result
) -> Any:
    "Its content, or None where it has not been made."
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(
    share: float,  # 1 is all
) -> str:
    "A share in percent, without the sign."
    return f"{100 * share:.0f}"


def _runs(results: Path, name: str) -> dict[str, Record]:
    "The first run of every variant of a control."
    content = read(results / f"controls/{name}.json")
    return {run["variant"]: run for run in reversed(content["runs"])} if content else {}


def detail(results: Path) -> Record | None:
    "Claim 3."
    run = _runs(results, "shipped").get("pixels-plain")
    if run is None:
        return None
    fine, finest = percent(run["share_fine"]), percent(sum(run["rates"][6:]) / run["rate"])
    coarse, whole = percent(run["recognised_coarse"]), percent(run["recognised_all"])
    sentences = (
        f"The plain pixel model pays {fine} % of its {run['rate']:.0f} nats at 8 x 8 and 16 x 16,",
        f"{finest} % at 16 x 16 alone;",
        f"without them {coarse} % of the pictures are recognised, with them {whole} %.",
    )
    return {
        "finding": "In part: most nats are paid at 8 x 8, hardly any at 16 x 16, and what they buy is not "
        "mere detail. Without them most pictures are not recognised.",
        "numbers": " ".join(sentences),
        "n": run["n"],
        "seeds": "one training",
        "hardware": run["machine"],
        "file": "controls/shipped.json",
    }


def code_length(results: Path) -> Record | None:
    "Claim 4."
    run = _runs(results, "shipped").get("shapes")
    photographs = read(results / "cifar10/run.json")
    if run is None or photographs is None:
        return None
    judge = photographs["judge_one"]
    kept, original = 100 * run["recognised_all"], 100 * run["real_recognised"]
    decibels, rebuilt = photographs["stage_one"]["held_out_psnr"], judge["rows"][0]["recognised"]
    sentences = (
        f"`Shapes`: {run['numbers']} numbers in place of 3,072 keep {run['psnr']:.1f} dB;",
        f"{kept:.1f} % are recognised, {original:.1f} % of the originals.",
        f"CIFAR-10: 512 in place of 3,072 keep {decibels} dB;",
        f"{rebuilt} % are recognised, {judge['recognises_of_the_test_split']} % of the originals.",
    )
    return {
        "finding": "Confirmed, as far as classifiers see: with a twelfth of the numbers, or a sixth for "
        "photographs, nearly as many pictures are recognised.",
        "numbers": " ".join(sentences),
        "n": f"{run['n']:,} and {judge['n']:,}",
        "seeds": "one training each",
        "hardware": f"{run['machine']}; {photographs['hardware']['gpu']}",
        "file": "controls/shipped.json, cifar10/run.json",
    }


def budget(results: Path) -> Record | None:
    "Claim 5."
    content = read(results.parent / "stored/10_pixels_against_codes.json")
    if content is None:
        return None
    sides = {name: [run for run in content["runs"] if run["name"] == name] for name in ("pixels", "codes")}

    def both(key: str, factor: float = 1.0, digits: int = 0) -> str:
        words = [" and ".join(f"{factor * run[key]:.{digits}f}" for run in runs) for runs in sides.values()]
        return f"{words[0]} on pixels, {words[1]} on codes"

    sentences = (
        f"Seconds a step: {both('step_seconds', digits=2)}.",
        f"After {content['minutes']:g} minutes, the autoencoder's not counted,",
        f"samples recognised in %: {both('accuracy', 100)}.",
        "No step of either side had to be skipped.",
    )
    return {
        "finding": "Lighter: confirmed. More stable: not shown. After equal time, far more of what is drawn "
        "as codes is recognised; a larger model at the pixels' budget, and learning rates until one side "
        "diverges: not measured.",
        "numbers": " ".join(sentences),
        "n": 500,
        "seeds": len(sides["codes"]),
        "hardware": "one core",
        "file": "../stored/10_pixels_against_codes.json (lesson 10)",
    }


def fidelity(results: Path) -> Record | None:
    "Claim 6."
    content = read(results / "cifar10/run.json")
    if content is None:
        return None
    rows = {row["samples"]: row for row in content["judge_one"]["rows"]}
    parts = []
    for name in ("unguided", "unguided, temperature 0.9", "guidance 2 / 2", "guidance 3 / 0"):
        row = rows[name]
        parts.append(f"{name} {row['recognised']} / {row['precision']} / {row['recall']} / {row['frechet']}")
    shown = "; ".join(parts)
    return {
        "finding": "Guidance buys obedience and costs recall; precision does not rise on photographs "
        "(on `Shapes` it does, up to a weight of 2: lessons 11 and 13). Per resolution: lesson 11.",
        "numbers": "CIFAR-10, before the decoder was tuned (after: lesson 18), "
        f"recognised in % / precision / recall / Frechet distance: {shown}.",
        "n": content["judge_one"]["n"],
        "seeds": "one training, one set of noise",
        "hardware": content["hardware"]["gpu"],
        "file": "cifar10/run.json",
    }


def _compared(
    results: Path,
    styles: Mapping[str, Sequence[str]],  # ways to draw that are shown, by model
    finding: str,  # in sentences
) -> Record | None:
    "What a stored comparison on `Shapes` says of some models; None where it has not all of them."
    comparison = read(results / "comparison/shapes.json")
    if comparison is None or not styles.keys() <= comparison["models"].keys():
        return None
    (judge,) = comparison["judges"]
    chosen = [point for point in comparison["points"] if point["name"] in styles.get(point["model"], ())]
    shown = "; ".join(_drawn(point, judge, judge, digits=2) for point in reversed(chosen))
    return {
        "finding": finding,
        "numbers": f"At equal training FLOPs, recognised in % / Frechet distance / ms: {shown}.",
        "n": comparison["n"],
        "seeds": max(len(model["seeds"]) for model in comparison["models"].values()),
        "hardware": comparison["machine"]["name"],
        "file": "comparison/shapes.json (lesson 15)",
    }


def _drawn(
    point: Record,  # of a stored comparison
    labels: str,  # who recognises
    whole: str,  # whose distance
    digits: int,  # of the distance
) -> str:
    "A way to draw: recognised in %, distance and milliseconds."
    known = percent(point["measures"][labels]["accuracy"]["mean"])
    distance = point["measures"][whole]["frechet"]["mean"]
    milliseconds = 1000 * point["seconds_per_image"]
    return f"{point['model']}, {point['title']}: {known} / {distance:.{digits}f} / {milliseconds:.1f}"


def _on_photographs(results: Path) -> str:
    "What the stored comparison on CIFAR-10 says of the VAE and the flow, in a sentence; empty without it."
    comparison = read(results / "comparison/cifar10.json")
    if comparison is None:
        return ""
    labels, whole = comparison["judges"]
    points = {(point["model"], point["name"]): point for point in comparison["points"]}
    keys = (("vae", "plain"), ("vae", "w3"), ("flow", "euler-4-w1"), ("flow", "euler-16-w3"))
    shown = "; ".join(_drawn(points[key], labels, whole, digits=1) for key in keys)
    return f" CIFAR-10, one seed, distance by the judge of other classes: {shown}."


def one_pass(results: Path) -> Record | None:
    "Claim 1."
    styles = {
        "vae": ("plain", "w2"),
        "flow": ("euler-1", "euler-8", "euler-4-w1", "euler-16-w2", "euler-64-w2"),
    }
    finding = (
        "Of drawings (`Shapes`), in part: one pass is the fastest, and unguided about as often recognised "
        "as the flow at up to 64 steps; guided, the flow is recognised more often from four steps on, "
        "for 8 to 110 times the time. Of photographs (CIFAR-10), no: one pass is the fastest, and from "
        "four guided steps on the flow is recognised nearly twice as often, and nearer to them."
    )
    return _with_photographs(results, _compared(results, styles, finding), _on_photographs(results))


def _with_photographs(
    results: Path,
    record: Record | None,  # of `Shapes`
    numbers: str,  # of photographs
) -> Record | None:
    "Where there are photographs too: the numbers, the seed and the file besides."
    if record is None or read(results / "comparison/cifar10.json") is None:
        return record
    return record | {
        "numbers": record["numbers"] + numbers,
        "seeds": f"{record['seeds']} and 1",
        "file": "comparison/shapes.json, comparison/cifar10.json (lesson 15)",
    }


def autoregression(results: Path) -> Record | None:
    "Claim 2."
    styles = {"autoregressive": ("plain", "w2"), "pixel-autoregressive": ("plain", "w2")}
    finding = "Confirmed for a small budget; 16 x 16 pixels, the first stage's own training not counted."
    return _compared(results, styles, finding)


def families(results: Path) -> Record | None:
    "Claim 7."
    styles = {"vae": ("plain", "w2"), "flow": ("euler-64", "euler-64-w2"), "autoregressive": ("plain", "w2")}
    finding = (
        "At our scale only: the VAE is the fastest, the guided flow is recognised most, and on photographs "
        "by far. Published figures: lesson 16; nothing was measured at 64 x 64 or 256 x 256."
    )
    record = _compared(results, styles, finding)
    return _with_photographs(results, record, " CIFAR-10: as in claim 1.")


CLAIMS: dict[str, Callable[[Path], Record | None]] = {
    "One pass in place of many": one_pass,
    "Codes in place of pixels helped autoregressive models": autoregression,
    "Pixel VAEs spend bits on detail": detail,
    "The code is short and keeps what is perceived": code_length,
    "Lighter, more stable, and the same budget buys a larger model": budget,
    "Fidelity against diversity": fidelity,
    "Comparison with other families": families,
}
