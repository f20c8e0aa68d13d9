"""The list of what is owed is true: each test that it names is there, and no scenario is left out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_LIST = (TESTS / "ACCEPTANCE.md").read_text()
_NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", _LIST)))
_ROW = re.compile(r"^\| F(\d+) \| \[([x ])\] \|.*\| (.*) \|$", re.MULTILINE)
_SCENARIOS = range(1, 40)


@cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize(("file", "name"), _NAMED)
def test_each_test_named_is_there(file: str, name: str) -> None:
    assert name in _tests_in(file)


def test_each_scenario_has_one_line_in_order() -> None:
    assert [int(number) for number, _, _ in _ROW.findall(_LIST)] == list(_SCENARIOS)


def test_what_is_ticked_names_a_test_and_what_is_not_says_why() -> None:
    for number, ticked, tests in _ROW.findall(_LIST):
        assert bool(re.search(r"`[\w/]+\.py::\w+`", tests)) == (ticked == "x"), f"F{number}"
        assert tests.strip(), f"F{number}"


def test_every_ticked_line_of_the_lists_names_its_test() -> None:
    lines = re.findall(r"^- \[x\] .*(?:\n {6}.*)*", _LIST, re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.search(r"\.py::\w+`", line)] == []
