"""ACCEPTANCE.md is true: each test that it names exists, and it lists every scenario."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_PAGE = (TESTS / "ACCEPTANCE.md").read_text()
_NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", _PAGE)))
_ROW = re.compile(r"^\| F(\d+) \| \[([x ])\] \|.*\| (.*) \|$", re.MULTILINE)
_SCENARIOS = range(1, 40)


@cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize(("file", "name"), _NAMED)
def test_each_named_test_exists(file: str, name: str) -> None:
    assert name in _tests_in(file)


def test_each_scenario_has_one_row_in_order() -> None:
    assert [int(number) for number, _, _ in _ROW.findall(_PAGE)] == list(_SCENARIOS)


def test_ticked_rows_name_a_test_and_others_a_reason() -> None:
    for number, ticked, tests in _ROW.findall(_PAGE):
        assert bool(re.search(r"`[\w/]+\.py::\w+`", tests)) == (ticked == "x"), f"F{number}"
        assert tests.strip(), f"F{number}"


def test_ticked_list_items_name_a_test() -> None:
    lines = re.findall(r"^- \[x\] .*(?:\n {6}.*)*", _PAGE, re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.search(r"\.py::\w+`", line)] == []
