"""Tables in the process of a test mean what they mean with processes: the scenarios of `integration-tests`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import pytest
import rebeam
from rebeam.testing import running

if TYPE_CHECKING:
    from types import ModuleType

FIXTURES = Path(__file__).resolve().parents[2] / "integration-tests" / "fixtures"


def _scenarios() -> ModuleType:
    sys.path.append(str(FIXTURES))
    spec = importlib.util.spec_from_file_location("tables_fixture", FIXTURES / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables_fixture"] = module
    spec.loader.exec_module(module)
    return module


fixture = _scenarios()
_border = inspect.getsource(fixture).split("\n").index(f'PROCESSES = "{fixture.PROCESSES}"')
SCENARIOS = [
    name
    for name, function in vars(fixture).items()
    if inspect.isfunction(function)
    and list(inspect.signature(function).parameters) == ["t"]
    and function.__code__.co_firstlineno <= _border
]


def _tester() -> rebeam.ActorRef[Any]:
    return rebeam.ref(fixture.Tester, "tester").options(timeout=60)


def test_scenarios_are_found() -> None:
    assert len(SCENARIOS) > 10


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    with running(fixture.tree):
        assert _tester().call(fixture.Tester.run, name) == "ok"


def test_tables_end_with_their_node() -> None:
    for _ in range(2):
        with running(fixture.tree):
            assert len(fixture.shared) == 0
            fixture.shared["a"] = 1
            assert fixture.shared["a"] == 1
            assert _tester().call(fixture.Tester.whoami) == "tester"
    with pytest.raises(rebeam.NotAnActor):
        fixture.shared["a"]


def _types(table: rebeam.Table[str, int]) -> None:
    assert_type(table["a"], int)
    assert_type(table.first(), str | None)
    assert_type(list(table.items()), list[tuple[str, int]])
    assert_type(table.update("a", lambda value: value + 1), int)
    assert_type(table.snapshot()["a"], int)
    table[1] = 2  # type: ignore[index]  # pyright: ignore[reportArgumentType]
    anything: Any = rebeam.table("x")
    del anything
