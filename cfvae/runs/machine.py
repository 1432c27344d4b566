"""The machine that figures are measured on: what it is, how fast it multiplies, and a clock for it."""

import dataclasses
import functools
import os
import platform
import statistics
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import __version__

REPEATS = 5  # of whatever is timed, at least
LARGEST_MATRIX = 8192  # rows of the largest matrix that is multiplied
LONG_ENOUGH = 0.01  # seconds of a product that a clock can be trusted with

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Machine:
    "Hardware, versions, and what the hardware can do at most."

    device: str  # as PyTorch calls it
    name: str  # of the GPU, or of the CPU
    cores: int  # of the CPU
    threads: int  # that PyTorch uses on the CPU
    versions: dict[str, str]  # of cfvae, Python and PyTorch; on a GPU, of CUDA
    matrix_tflops: dict[str, float]  # precision -> measured rate of a matrix product, in TFLOP/s
    memory: str  # what is meant by peak memory


def describe_machine(
    device: torch.device,  # what is going to be measured
) -> Machine:
    "What the machine is. Multiplying matrices to find out takes about a second."
    versions = {
        "cfvae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = "allocated on the GPU"
        versions["cuda"] = str(torch.version.cuda)
    else:
        name = _cpu_name()
        memory = "of the whole process so far"

    return Machine(
        device=str(device),
        name=name,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        versions=versions,
        matrix_tflops={precision: matrix_rate(device, dtype) / 1e12 for precision, dtype in _DTYPES.items()},
        memory=memory,
    )


def _cpu_name() -> str:
    "As Linux calls it; elsewhere what Python knows."
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


# --- the clock


def finish(
    device: torch.device,  # where something may still be computed
) -> None:
    "Wait until a GPU has done all that it was asked for."
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(
    call: Callable[[], typing.Any],  # what is timed
    device: torch.device,  # where it computes
    seconds: float = 0.0,  # go on for so long, and for `REPEATS` calls at least
) -> list[float]:
    "Seconds of every call. Two calls before them warm up and do not count."
    call()
    call()
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < seconds:
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
    return times


def matrix_rate(
    device: torch.device,  # where to multiply
    dtype: torch.dtype,  # of the numbers
) -> float:
    """FLOP/s of the product of two large matrices: what a model could reach at best.

    The matrices grow until a product takes long enough. On a GPU float32 means TF32, as it does in
    convolutions by default."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        rows = 256
        seconds = _time_product(rows, device, dtype)
        while seconds < LONG_ENOUGH and rows < LARGEST_MATRIX:
            rows *= 2
            seconds = _time_product(rows, device, dtype)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * rows**3 / seconds


def _time_product(rows: int, device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.randn(rows, rows, device=device, dtype=dtype)
    times = time_calls(functools.partial(torch.mm, matrix, matrix), device)
    return statistics.median(times)


def faster_threads(
    seconds: float = 0.5,  # that either number is tried for
) -> int:
    """One thread, or as many as PyTorch takes now: with which a small convolution is over sooner.

    Threads wait for each other in every operation. Where another program holds one of the cores all of them
    wait for that one, and a single thread may be faster."""
    many = torch.get_num_threads()
    if many == 1:
        return 1
    x, weight = torch.randn(48, 64, 8, 8), torch.randn(64, 64, 3, 3)
    call = functools.partial(F.conv2d, x, weight, padding=1)
    means = {}
    try:
        for threads in (1, many):
            torch.set_num_threads(threads)
            means[threads] = statistics.fmean(time_calls(call, torch.device("cpu"), seconds))
    finally:
        torch.set_num_threads(many)
    return min(means, key=lambda threads: means[threads])


# --- memory


def forget_peak(
    device: torch.device,  # what is going to be measured
) -> None:
    "Measure the peak of a GPU's memory from now on. That of a process cannot be forgotten."
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(
    device: torch.device,  # what was measured
) -> int | None:
    "Bytes, as `Machine.memory` says which; None where the system does not tell."
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return peak * unit
