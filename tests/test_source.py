"What holds for every line of the package, read off its syntax trees."

import ast
from collections.abc import Iterator
from pathlib import Path

import cfvae

PACKAGE = Path(cfvae.__file__).parent
UTF8 = ("'utf-8'", "'utf-8-sig'")
TEXT = ("read_text", "write_text")


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    "Every call of the package: where it stands, the last part of its name, the call."
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                yield f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}", name, node


def option(call: ast.Call, name: str) -> str | None:
    "A keyword's value as it is written; None where the call has none of that name."
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def test_text_is_utf8_whatever_the_machine_uses():
    found = [(place, call) for place, name, call in calls() if name in TEXT]
    assert len(found) > 10
    assert [place for place, call in found if option(call, "encoding") not in UTF8] == []
    opened = [(place, call) for place, name, call in calls() if name == "open"]
    added_to = [(place, call) for place, call in opened if "'a'" in map(ast.unparse, call.args)]
    assert len(added_to) > 0
    assert [place for place, call in added_to if option(call, "encoding") not in UTF8] == []


def test_pickles_are_read_as_plain_tensors():
    "Also by a PyTorch whose default is another: a file from a stranger must not run code."
    found = [(place, call) for place, name, call in calls() if ast.unparse(call.func) == "torch.load"]
    assert len(found) > 2
    assert [place for place, call in found if option(call, "weights_only") != "True"] == []


def test_folders_are_made_with_those_above_them_and_may_be_there_already():
    "But for the one that an archive or a cache is filled in, which has to be new."
    found = [(place, option(call, "parents"), option(call, "exist_ok")) for place, name, call in calls()
             if name == "mkdir"]  # fmt: skip
    assert len(found) > 15
    assert {parents for _, parents, _ in found} == {"True"}
    assert [place.partition(":")[0] for place, _, there in found if there != "True"] == ["files/store.py"]


def test_what_another_process_may_remove_is_removed_if_it_is_there():
    "But for the shares of this very encoding."
    found = [(place, option(call, "ignore_errors")) for place, name, call in calls() if name == "rmtree"]
    assert len(found) > 5
    assert [place.partition(":")[0] for place, ignored in found if ignored != "True"] == ["files/codes.py"]


def test_json_that_others_read_has_no_word_for_nan():
    asked = [option(call, "allow_nan") for place, name, call in calls() if name == "dumps"]
    assert set(asked) == {None, "False"} and asked.count("False") > 1


def test_the_same_figure_gives_the_same_bytes():
    "Without the version of the library that drew it."
    found = [(place, option(call, "metadata")) for place, name, call in calls() if name == "savefig"]
    assert len(found) > 2
    assert [place for place, metadata in found if metadata is None] == []
