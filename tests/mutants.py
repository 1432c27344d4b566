"""Break one line of the package at a time, and see whether a test notices.

    python tests/mutants.py --jobs 16 --minutes 40 --out mutants.json

The lines are drawn by seed over the syntax tree, half of them from the method and half from the tools. Every
worker has a copy of the tree, so that the one you edit is left alone. What survives is either a test that is
missing or a change that changes nothing; which of the two, a reader has to say, in argued.toml.

Four kinds are not drawn at all. How something looks that says the same: size, colours and margins of figures,
how a table is set on a terminal, how JSON is indented; what a figure or a table says is drawn. `strict=` of
zip: it asserts that lists made here are of one length, which no input changes. On what device PyTorch makes a
tensor: the workers have no GPU, and on a CPU it is the same. And types: annotations, TypeVar.
"""

import argparse
import ast
import itertools
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEMORY = 16 << 30  # bytes of one process: a loop that no longer ends shall not take the machine with it
BASELINE_SECONDS = 900  # for one file of tests, unbroken
ARGUED = Path(__file__).with_name("argued.toml")  # changes that change nothing, each with the reason
FIRST = ("tests/test_source.py", "tests/test_values.py")  # of every change, for they take seconds
FOR_ALL = ("method/test_pinned", "method/test_devices")  # of the method
LEFT_OUT = ("runs/recorded.py",)  # needs a GPU, and the workers are kept from it

LOOKS = {  # arguments by which the same numbers and words look otherwise: in figures, tables and JSON
    *"alpha capsize color dpi figsize fontsize ha labelsize layout linewidth ncols rotation va".split(),
    *"zorder box justify no_wrap overflow title_justify indent".split(),
}
ALL_LOOKS = {"Console", "set_style", "set_ylim", "tick_params"}  # calls and functions for nothing else

TESTS = {  # the tests of modules that have none of their own name, or more; a folder's, for all that is in it
    "cli/__init__": ["cli/test_main", "cli/test_output", "cli/test_errors"],
    "cli/benching": ["cli/test_listings", "cli/test_benching"],
    "cli/comparing": ["cli/test_listings", "cli/test_comparing"],
    "cli/evaluating": ["cli/test_listings", "cli/test_evaluating"],
    "cli/looking": ["cli/test_listings", "cli/test_looking"],
    "files/cache": ["files/test_cache", "method/test_edges"],
    "files/codes": ["files/test_one_channel", "files/test_codes"],
    "cli/commands": ["cli/test_main", "cli/test_train_command", "cli/test_drawing"],
    "cli/describing": ["cli/test_looking", "cli/test_converting"],
    "cli/options": ["cli/test_main", "cli/test_train_command", "cli/test_drawing"],
    "cli/parsing": ["cli/test_drawing", "cli/test_reconstructing"],
    "cli/training": ["cli/test_train_command", "cli/test_output", "cli/test_killed"],
    "cli/writing": ["cli/test_drawing"],
    "data": ["method/test_data", "method/test_pinned"],
    "published": ["method/test_published", "method/test_pinned"],
    "files/arrays": ["files/test_cache", "files/test_codes"],
    "files/names": ["files/test_folders", "files/test_open", "files/test_cache"],
    "files/suspicions": ["files/test_folders"],
    "runs/compare": ["runs/test_compare_parts", "runs/test_compare", "cli/test_comparing"],
    "runs/evaluation_page": ["runs/test_evaluate"],
    "runs/image_sets": ["runs/test_evaluate"],
    "runs/judges": ["runs/test_evaluate"],
    "runs/judging": ["runs/test_evaluate"],
    "runs/layers": ["runs/test_evaluate"],
    "runs/logs": ["runs/test_callbacks", "runs/test_train"],
    "runs/machine": ["runs/test_bench"],
    "runs/opened": ["runs/test_measure", "runs/test_report", "runs/test_next_steps"],
    "runs/output": ["cli/test_output", "runs/test_callbacks"],
    "runs/pixel_models": ["runs/test_weights"],
    "runs/presets": ["runs/test_presets"],
    "runs/published_presets": ["method/test_published", "runs/test_presets"],
    "runs/steps": ["runs/test_bench", "runs/test_train"],
}

OPPOSITE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass
class Mutant:
    "One change of one line."

    module: str  # below cfvae, without .py
    line: int
    owner: str  # the function, class or constant of the module that it is in
    kind: str
    before: str
    after: str
    span: tuple[int, int]  # the bytes of the module that are replaced
    verdict: str = "not run"
    seconds: float = 0.0
    killed_by: str = ""  # the first test that failed
    tests: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        "Of the module, in the tree."
        return f"cfvae/{self.module}.py"

    def break_source(self, source: str) -> str:
        "The module with the change in it."
        start, stop = self.span
        whole = source.encode()
        return (whole[:start] + self.after.encode() + whole[stop:]).decode()


# --- where a line can be broken


def changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    "Pairs of (kind, other text) for one node."
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
        operators = [OPPOSITE[type(node.ops[0])](), *node.ops[1:]]
        yield "comparison", ast.unparse(ast.Compare(node.left, operators, node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE:
        yield "arithmetic", ast.unparse(ast.BinOp(node.left, OPPOSITE[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        yield "and, or", ast.unparse(ast.BoolOp(OPPOSITE[type(node.op)](), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign", ast.unparse(node.operand)
    elif isinstance(node, ast.IfExp):
        yield "condition", ast.unparse(ast.IfExp(node.test, node.orelse, node.body))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "true, false", repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        is_float = isinstance(node.value, float)
        yield "number", repr((2 * node.value or 1.0) if is_float else node.value + 1)
    elif isinstance(node, ast.Call) and node.keywords and may_lose(node):
        yield "argument", ast.unparse(ast.Call(node.func, node.args, node.keywords[:-1]))


def statement_changes(node: ast.stmt) -> Iterator[tuple[ast.AST, str, str]]:
    "Triples of (what is replaced, kind, other text) for one statement."
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, "call", "pass"
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPPOSITE:
        other = ast.AugAssign(node.target, OPPOSITE[type(node.op)](), node.value)
        yield node, "arithmetic", ast.unparse(other)
    elif isinstance(node, (ast.If, ast.While)):
        yield node.test, "condition", f"not ({ast.unparse(node.test)})"


def last_name(node: ast.AST) -> str:
    "Of what is called or defined, without what it belongs to."
    called = getattr(node, "func", node)
    return getattr(called, "attr", None) or getattr(called, "id", None) or getattr(called, "name", "")


def is_left_out(node: ast.AST) -> bool:
    "Whether nothing in it is drawn, for a reason that the docstring gives."
    if isinstance(node, ast.Expr):
        return is_left_out(node.value)
    if isinstance(node, ast.keyword):
        return node.arg in LOOKS | {"strict", "non_blocking"}
    if isinstance(node, ast.Subscript):
        return last_name(node.value) == "PALETTE"
    if isinstance(node, (ast.Call, ast.FunctionDef)):
        return last_name(node) in ALL_LOOKS or last_name(node) == "TypeVar"
    return isinstance(node, ast.JoinedStr)  # the text of a message


def may_lose(call: ast.Call) -> bool:
    "Whether it is drawn without its last argument."
    last = call.keywords[-1]
    by_pytorch = ast.unparse(call.func).startswith("torch.")
    return not is_left_out(last) and not (by_pytorch and last.arg == "device")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    "The nodes that compute, without what is left out."
    if is_left_out(node):
        return
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child)


def name_of(statement: ast.stmt) -> str:
    "What a statement of a module defines; empty for one that defines nothing."
    target = getattr(statement, "target", None) or next(iter(getattr(statement, "targets", [])), None)
    return getattr(statement, "name", None) or getattr(target, "id", "")


def mutants_of(path: Path) -> Iterator[Mutant]:
    "Every change of one module."
    source = path.read_text(encoding="utf-8")
    lines = source.encode().splitlines(keepends=True)
    ends = [0, *itertools.accumulate(map(len, lines))]
    module = path.relative_to(ROOT / "cfvae").with_suffix("").as_posix()
    for statement in ast.parse(source).body:
        for node in walk(statement):
            found = [(node, kind, f"({text})") for kind, text in changes(node)]
            if isinstance(node, ast.stmt):
                found += statement_changes(node)
            for replaced, kind, text in found:
                start = ends[replaced.lineno - 1] + replaced.col_offset
                stop = ends[replaced.end_lineno - 1] + replaced.end_col_offset
                before = " ".join(source.encode()[start:stop].decode().split())
                owner = name_of(statement)
                yield Mutant(module, replaced.lineno, owner, kind, before, text, (start, stop))


def compiles(mutant: Mutant) -> bool:
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    try:
        compile(mutant.break_source(source), mutant.module, "exec")
    except SyntaxError:
        return False
    return True


def draw(count: int, seed: int) -> list[Mutant]:
    "Mutants in turn of the method and of the tools; every kind is equally likely, whatever its number."
    paths = sorted((ROOT / "cfvae").rglob("*.py"))
    paths = [path for path in paths if not path.as_posix().endswith(LEFT_OUT)]
    everything = [mutant for path in paths for mutant in mutants_of(path)]
    method = [mutant for mutant in everything if "/" not in mutant.module]
    tools = [mutant for mutant in everything if "/" in mutant.module]
    print(f"{len(method)} changes of the method and {len(tools)} of the tools are possible")

    rng = random.Random(seed)
    chosen: list[Mutant] = []
    while len(chosen) < count:
        room = (method, tools)[len(chosen) % 2]
        kind = rng.choice(sorted({mutant.kind for mutant in room}))
        mutant = rng.choice([mutant for mutant in room if mutant.kind == kind])
        room.remove(mutant)
        if compiles(mutant):
            chosen.append(mutant)
    return chosen


# --- which tests concern it


def tests_of(mutant: Mutant) -> list[str]:
    "What holds for all, the module's own tests, then all that import it and mention what was changed."
    room, _, name = mutant.module.rpartition("/")
    usual = [f"{room}/test_{name}"] if room else [f"method/test_{name}", *FOR_ALL]
    own = [f"tests/{test}.py" for test in TESTS.get(mutant.module, TESTS.get(room, usual))]
    dotted = re.escape("cfvae." + mutant.module.replace("/", "."))
    above = re.escape(f"cfvae.{room}".replace("/", ".").rstrip("."))
    imported = re.compile(rf"{dotted}\b|from {above} import .*\b{name}\b")
    mentioned = re.compile(rf"\b{re.escape(mutant.owner)}\b")
    others = []
    for path in sorted((ROOT / "tests").glob("[mfrc]*/test_*.py")):
        text = path.read_text(encoding="utf-8")
        if mutant.owner and imported.search(text) and mentioned.search(text):
            others.append(path.relative_to(ROOT).as_posix())
    found = [test for test in own if (ROOT / test).exists()]
    return list(dict.fromkeys([*FIRST, *found, *others]))


# --- running them


@dataclass
class Baseline:
    "A file of tests as it runs on the unbroken package."

    seconds: float
    failing: list[str]  # tests that fail anyway, and are not asked
    usable: bool


def run_tests(folder: Path, arguments: list[str], limit: float) -> tuple[int | None, str]:
    "Exit code (None: it ran out of time) and output of pytest in a copy of the tree."
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    command += [f"--basetemp={folder.parent / (folder.name + '-tmp')}", *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # a stale one may have the time and size of the new source
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
            return None, ""
    return process.returncode, output


def failures(output: str) -> list[str]:
    "The names of the tests that pytest's summary says have failed."
    return re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)


def measure(folder: Path, test: str) -> Baseline:
    started = time.monotonic()
    code, output = run_tests(folder, [test], BASELINE_SECONDS)
    failing = failures(output)
    return Baseline(time.monotonic() - started, failing, code == 0 or (code == 1 and bool(failing)))


def is_argued(mutant: Mutant) -> bool:
    "Whether somebody has said why nothing notices this change. A list stands for any of its entries."
    for argued in tomllib.loads(ARGUED.read_text(encoding="utf-8"))["mutant"]:
        del argued["why"]
        choices = {name: one if isinstance(one, list) else [one] for name, one in argued.items()}
        if all(getattr(mutant, name) in some for name, some in choices.items()):
            return True
    return False


def read_baselines(out: Path) -> dict[str, Baseline]:
    "Of an earlier run, as `write` wrote them."
    unbroken = json.loads(out.read_text(encoding="utf-8"))["unbroken"]
    return {test: Baseline(**fields) for test, fields in unbroken.items()}


def judge(folder: Path, mutant: Mutant, baselines: dict[str, Baseline]) -> None:
    "Break the copy, run the tests, mend the copy."
    tests = [test for test in mutant.tests if baselines[test].usable]
    mutant.tests = tests
    if not tests:
        mutant.verdict = "without tests"
        return
    deselected = [f"--deselect={name}" for test in tests for name in baselines[test].failing]
    limit = 60 + 4 * sum(baselines[test].seconds for test in tests)
    path = folder / mutant.path
    unbroken = path.read_text(encoding="utf-8")
    started = time.monotonic()
    path.write_text(mutant.break_source(unbroken), encoding="utf-8")
    try:
        code, output = run_tests(folder, ["-x", *deselected, *tests], limit)
    finally:
        path.write_text(unbroken, encoding="utf-8")
    mutant.seconds = round(time.monotonic() - started, 1)
    mutant.verdict = {None: "timed out", 0: "survived"}.get(code, "killed")
    if mutant.verdict == "survived" and is_argued(mutant):
        mutant.verdict = "changes nothing"
    if mutant.verdict == "killed":
        mutant.killed_by = next(iter(failures(output)), output[-300:])


def copy_tree(folder: Path) -> Path:
    "A copy to break. What is large and never written to is linked."
    linked = ("nbs", "docs", "cfvae/weights")
    skipped = shutil.ignore_patterns(".*", "__pycache__", *(Path(name).name for name in linked))
    shutil.copytree(ROOT, folder, ignore=skipped)
    for name in linked:
        (folder / name).symlink_to(ROOT / name)
    return folder


VERDICTS = ("killed", "timed out", "survived", "changes nothing", "without tests", "not run")


def count_verdicts(mutants: list[Mutant]) -> dict[str, int]:
    return {verdict: sum(one.verdict == verdict for one in mutants) for verdict in VERDICTS}


def share_killed(mutants: list[Mutant]) -> float:
    "Of the changes that change something; a test that ran out of time has noticed too."
    counts = count_verdicts(mutants)
    counted = sum(counts.values()) - counts["changes nothing"] - counts["not run"]
    return (counts["killed"] + counts["timed out"]) / max(1, counted)


def write(out: Path, seed: int, mutants: list[Mutant], baselines: dict[str, Baseline]) -> None:
    unbroken = {test: asdict(baseline) for test, baseline in baselines.items()}
    everything = {
        "seed": seed,
        "verdicts": count_verdicts(mutants),
        "killed": share_killed(mutants),
        "mutants": [asdict(mutant) for mutant in mutants],
        "unbroken": unbroken,
    }
    out.write_text(json.dumps(everything, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=60, help="begin no mutant after so long")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unbroken", type=Path, help="an earlier run's output, with how tests run unbroken")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))

    mutants = draw(options.count, options.seed)
    for mutant in mutants:
        mutant.tests = tests_of(mutant)
    baselines = read_baselines(options.unbroken) if options.unbroken else {}
    tests = sorted({test for mutant in mutants for test in mutant.tests} - baselines.keys())

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folders: queue.Queue[Path] = queue.Queue()
        for worker in range(options.jobs):
            folders.put(copy_tree(Path(temporary) / f"worker{worker}"))

        def in_a_folder(work, *arguments):
            folder = folders.get()
            try:
                return work(folder, *arguments) if time.monotonic() < deadline else None
            finally:
                folders.put(folder)

        def measure_one(test: str) -> None:
            baselines[test] = in_a_folder(measure, test) or Baseline(0, [], False)
            if not baselines[test].usable or baselines[test].failing:
                print(f"unbroken, {test} has failures: {baselines[test].failing}", flush=True)

        def judge_one(mutant: Mutant) -> None:
            in_a_folder(judge, mutant, baselines)
            change = f"{mutant.path}:{mutant.line}  {mutant.before}  ->  {mutant.after}"
            print(f"{mutant.verdict:13} {mutant.seconds:5.0f} s  {change}", flush=True)
            write(options.out, options.seed, mutants, baselines)

        list(pool.map(measure_one, tests))
        seconds = sum(baseline.seconds for baseline in baselines.values())
        print(f"{len(baselines)} files of tests take {seconds:.0f} s unbroken", flush=True)
        list(pool.map(judge_one, mutants))

    write(options.out, options.seed, mutants, baselines)
    for verdict, number in count_verdicts(mutants).items():
        print(f"{verdict}: {number}")
    print(f"killed, of those that change something: {share_killed(mutants):.1%}")
    for mutant in mutants:
        if mutant.verdict == "survived":
            print(f"\n{mutant.path}:{mutant.line} ({mutant.kind})\n- {mutant.before}\n+ {mutant.after}")


if __name__ == "__main__":
    main()
