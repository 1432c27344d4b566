"""`report` and `demo`: the report of a run, and everything once."""

import shlex
from pathlib import Path

import torch

from ..core import check, get_device
from ..recipes import Recipe
from ..runs.folder import load_recipe
from ..runs.output import as_argument, say
from ..runs.report import write_report
from ..runs.threads import kept_threads
from .describing import newest_step
from .training import choose_recipe, train_or_exit

STEPS = 3000  # of the second stage; the preset, which experiments compare with, keeps to fewer


def report(
    run: Path,  # a run folder
    device: str,  # where to compute
) -> None:
    "Write the report of a run anew and say where it is."
    print(f"report: {write_report(run, device)}")


def demo(
    out: Path,  # the run folder; where a demo was interrupted, it goes on
) -> None:
    "Train the preset shapes-demo, with more steps, unless that is done, and write its report."
    folder = shlex.quote(as_argument(out))
    recipe = choose_recipe("shapes-demo", out, resume=False, changes={"vae_training.steps": STEPS})
    if (out / "recipe.json").exists():
        steps = load_recipe(out).vae_training.steps
        check(steps == STEPS, f"{out} is a run of {steps} steps, not the demo: choose another --out")
    all_steps = newest_step(out / "vae") == recipe.vae_training.steps
    if all_steps and (out / "pipeline" / "pipeline.json").exists():
        print(f"the demo in {out} is complete: only its report is written again")
    else:
        _choose_threads(recipe, out)
        train_or_exit(recipe, out, f"cfvae demo --out {folder}", resume=True)

    next_command = f"cfvae sample {folder} --mean-weight 1 --var-weight 1 --out samples.png"
    print(f"report: {write_report(out)}. Next: {next_command}")


def _choose_threads(recipe: Recipe, out: Path) -> None:
    "Train with one thread on the CPU, where a second's measurement shows that it is faster than several."
    if get_device(recipe.vae_training.device).type != "cpu":
        return
    many = torch.get_num_threads()
    threads = kept_threads(out)
    torch.set_num_threads(threads)
    if threads < many:
        say(f"training with one thread: it is faster here than {many}, whose cores other programs share")
