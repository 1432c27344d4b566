"""Run the stored experiments on `Shapes`, and make tables and figures of them: README.md says how."""

import argparse
import os
from pathlib import Path

import torch

import ablations
from cfvae.core import check
from jobs import Setting, run_all
from plan import EXPERIMENTS, jobs_of

ROOT = Path(__file__).parents[3]


def main() -> None:
    arguments = _parser().parse_args()
    setting = Setting(arguments.work, arguments.device, arguments.scale)
    check(0 < setting.scale <= 1, f"--scale is {setting.scale}: a number above 0 and up to 1 is needed")
    out = arguments.out or (ROOT / "nbs/results" if setting.scale == 1 else setting.records / "tables")
    if arguments.add:
        import summary

        summary.restore(ROOT / "nbs/results", setting.records)
    if not arguments.tables_only:
        chosen = arguments.only or list(EXPERIMENTS)
        prepare(setting, chosen)
        jobs = [job for experiment in chosen for job in jobs_of(experiment)]
        run_all(jobs, setting, EXPERIMENTS, arguments.jobs, arguments.minutes)
    if not arguments.records_only:
        import claims  # these draw, which a machine that only computes need not be able to do
        import summary

        summary.summarise(setting.records, out)
        claims.write_claims(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python nbs/results/experiments", description=__doc__)
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, help="may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a core each (default: 2)")
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing that would end later")
    parser.add_argument("--device", default="cpu", help="trains ablations and code_length: cpu or cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: shorter, to try the programs")
    work = ROOT / "build/experiments"
    parser.add_argument("--work", type=Path, default=work, help="for records (default: build/experiments)")
    out = "for tables and figures (default: nbs/results; with --scale, a folder beside the records)"
    parser.add_argument("--out", type=Path, help=out)
    kept = "trainings that nbs/results holds are kept, and only the others are made"
    parser.add_argument("--add", action="store_true", help=kept)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--records-only", action="store_true", help="leave the tables to a later call")
    part.add_argument("--tables-only", action="store_true", help="run nothing: summarise what there is")
    return parser


def prepare(
    setting: Setting,  # of the run
    chosen: list[str],  # experiments
) -> None:
    "Encode what several jobs share, on all cores."
    setting.records.mkdir(parents=True, exist_ok=True)
    if "ablations" in chosen:
        torch.set_num_threads(os.cpu_count() or 1)
        ablations.training_codes(setting.work, setting.count(ablations.TRAINING_IMAGES))


if __name__ == "__main__":
    main()
