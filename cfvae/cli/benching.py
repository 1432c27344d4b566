"""`bench`: how fast this machine is with a preset."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..checkpoints import write_synced
from ..core import check, get_device
from ..runs import bench as speed
from ..runs.free import check_writable, refuse_foreign
from ..runs.machine import Machine
from ..runs.presets import preset
from ..runs.scaling import Scaling, draw_scaling, measure_scaling


def bench(
    name: str | None,  # of a preset; None: the one that suits the machine
    device: str,  # auto, cpu or cuda
    scale: bool,  # measure how costs grow, too
    out: str | None,  # a folder for the numbers; None: print them only
) -> None:
    "Measure a preset on this machine, print tables, and write the numbers where that is asked for."
    place = get_device(device)
    recipe = preset(speed.default_preset(place) if name is None else name)
    folder = None if out is None else _prepare_folder(out)

    benchmark = speed.bench(recipe, device)
    print_benchmark(benchmark)
    if folder is not None:
        _write_json(folder / "bench.json", benchmark.to_dict())

    if scale:
        scaling = measure_scaling(recipe, device)
        print_scaling(scaling)
        if folder is not None:
            _write_json(folder / "bench-scale.json", scaling.to_dict())
            _write_figure(folder / "bench-scale.png", draw_scaling(scaling))


# --- tables


def print_benchmark(
    benchmark: speed.Benchmark,  # as from `runs.bench.bench`
) -> None:
    "Print what was measured, a line for each of training, sampling and encoding."
    machine = benchmark.machine
    print(f"{benchmark.preset} on {_describe_machine(machine)}")
    rates = [f"{precision} {rate:.3g}" for precision, rate in machine.matrix_tflops.items()]
    print(f"matrix products: {', '.join(rates)} TFLOP/s")

    table = Table(box=SIMPLE)
    table.add_column("")
    headings = ("batch", "precision", "examples/s", "ms", "GFLOP an\nexample", "TFLOP/s")
    for heading in (*headings, "share of the\nmatrix rate", "peak memory\n(GB)"):
        table.add_column(heading, justify="right")
    table.add_row("training step", *_cells(benchmark.training))
    samples = "guided sampling" if benchmark.guided else "sampling"
    table.add_row(samples, *_cells(benchmark.sampling))
    if benchmark.encoding is not None:
        table.add_row("encoding", *_cells(benchmark.encoding))
    _print_table(table)

    waiting = benchmark.training.data_share or 0.0
    print(f"{waiting:.1%} of a step's time goes into fetching data; peak memory: {machine.memory}")
    if benchmark.encoding is None:
        print("the first stage is pretrained and was left out: samples are codes")


def _describe_machine(machine: Machine) -> str:
    versions = [f"{name} {version}" for name, version in machine.versions.items()]
    threads = f"{machine.cores} cores, {machine.threads} used by PyTorch"
    return f"{machine.device}: {machine.name}, {threads}; {', '.join(versions)}"


def _cells(cost: speed.Cost) -> list[str]:
    "A row of the table, after its name."
    memory = "" if cost.peak_memory is None else f"{cost.peak_memory / 1e9:.2f}"
    return [
        str(cost.batch_size),
        cost.precision,
        f"{cost.examples_per_second:,.4g}",
        f"{cost.milliseconds:.4g}",
        f"{cost.gflop_per_example:.3g}",
        f"{cost.tflops:.3g}",
        f"{cost.matrix_share:.1%}",
        memory,
    ]


def print_scaling(
    scaling: Scaling,  # as from `runs.scaling.measure_scaling`
) -> None:
    "Print what every size costs."
    table = Table(box=SIMPLE, title="how costs grow", title_justify="left")
    table.add_column("axis")
    for heading in ("size", "training step (ms)", "batch of samples (ms)"):
        table.add_column(heading, justify="right")
    for point in scaling.points:
        step = f"{point.step_milliseconds:.4g}"
        sample = f"{point.sample_milliseconds:.4g}"
        table.add_row(point.axis, str(point.size), step, sample)
    _print_table(table)
    base = f"resolutions {_listed(scaling.vae.resolutions)}, layers {_listed(scaling.vae.layers)}"
    smaller = ": smaller than the preset, for a CPU" if scaling.smaller else ""
    print(f"around {base}, widths {_listed(scaling.vae.widths)}, batch {scaling.batch_size}{smaller}")
    if scaling.left_out:
        print(f"left out for want of memory: {', '.join(scaling.left_out)}")


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _print_table(table: Table) -> None:
    console = Console(width=120, force_jupyter=False)
    console.print(table)


# --- files


def _prepare_folder(out: str) -> Path:
    "Make sure, before the work, that the folder can be written to."
    check(bool(out.strip()), "--out is empty: give a folder for the numbers, such as bench")
    folder = Path(out)
    refuse_foreign(folder, ("bench.json",), {"machine", "training"})
    refuse_foreign(folder, ("bench-scale.json", "bench-scale.png"), {"machine", "points"})
    check_writable(folder)
    return folder


def _write_json(path: Path, numbers: dict[str, Any]) -> None:
    text = json.dumps(numbers, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, text.encode())
    print(f"written: {path}")


def _write_figure(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    no_version = {"Software": None}  # so that the same figure gives the same bytes
    figure.savefig(buffer, format="png", dpi=130, metadata=no_version)
    write_synced(path, buffer.getvalue())
    print(f"written: {path}")
