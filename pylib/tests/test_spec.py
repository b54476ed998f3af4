"""How a tree is declared, and what is refused where it is written down."""

from typing import TYPE_CHECKING, Any

import pytest
import rebeam
from rebeam import Actor, ActorRef, SpecError, Supervisor, child

if TYPE_CHECKING:
    from rebeam._options import Shutdown


class Plain(Actor):
    def init(self, start: int = 0) -> None:
        self.n = start


def test_sup_001_defaults_are_otps_and_elixirs() -> None:
    spec = child(Plain)
    assert (spec.id, spec.name, spec.restart, spec.shutdown) == ("Plain", None, "permanent", 5.0)
    assert (spec.start_timeout, spec.significant, spec.mailbox[:2]) == (60.0, False, (10_000, 64 * 1024 * 1024))
    tree = Supervisor([])
    assert (tree.strategy, tree.max_restarts, tree.max_seconds, tree.shutdown) == ("one_for_one", 3, 5.0, "infinity")


def test_sup_046_the_default_limit_is_three_restarts_in_five_seconds() -> None:
    tree = Supervisor([Plain])
    assert (tree.max_restarts, tree.max_seconds) == (3, 5.0)


class Misspelt(Actor):
    def __init__(self, start: int) -> None:
        self.n = start


class Own(Actor):
    def __init__(self) -> None:
        self.n = 0


def test_an_init_with_underscores_that_takes_arguments_gets_a_hint() -> None:
    for arguments in ((), (3,)):
        with pytest.raises(SpecError, match=r"call it `Misspelt\.init`"):
            child(Misspelt, *arguments)
    assert child(Own).id == "Own"


def test_a_bare_class_is_a_child() -> None:
    (only,) = Supervisor([Plain]).children
    assert isinstance(only, rebeam.ChildSpec)
    assert only.class_name.endswith("test_spec.Plain")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"restart": "permenant"}, "did you mean 'permanent'"),
        ({"restart": 3}, "restart=3"),
        ({"shutdown": -1}, "shutdown=-1"),
        ({"shutdown": "brutal"}, "did you mean 'brutal_kill'"),
        ({"shutdown": float("nan")}, "shutdown=nan"),
        ({"start_timeout": 0}, "start_timeout=0"),
        ({"name": ""}, "name=''"),
        ({"name": "two\nlines"}, "line breaks"),
        ({"max_messages_waiting": 0}, "max_messages_waiting=0"),
        ({"nmae": "x"}, "did you mean `name`"),
        ({"kwargs": {"stat": 1}}, "unexpected keyword argument 'stat'"),
        ({"kwargs": [1]}, "kwargs=[1]: it must be a dict"),
        ({"kwargs": {1: 1}}, "kwargs={1: 1}: it must be a dict"),
        ({"env": ["A=1"]}, "env=['A=1']: it must be a dict"),
        ({"cpus": 1}, "cpus=1: it must be a list"),
        ({"cpus": "01"}, "cpus='01': it must be a list"),
        ({"cpus": [0.5]}, "cpus=0.5"),
    ],
)
def test_sup_002_sup_005_each_fault_is_named(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError) as raised:
        child(Plain, **options)  # type: ignore[arg-type]
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "one_for_two"}, "did you mean 'one_for_one'"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"max_restarts": 1.5}, "whole number"),
        ({"max_restarts": True}, "whole number"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"auto_shutdown": "any"}, "auto_shutdown='any'"),
        ({"max_second": 3}, "did you mean `max_seconds`"),
    ],
)
def test_sup_003_flags_are_checked_one_by_one(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError) as raised:
        Supervisor([], **options)  # type: ignore[arg-type]
    assert text in str(raised.value)


@pytest.mark.parametrize("timeout", ["3", True, float("nan"), [1]])
def test_a_timeout_is_a_number(timeout: Any) -> None:
    with pytest.raises(SpecError, match="timeout="):
        ActorRef("somebody").options(timeout=timeout)


def test_sup_004_every_shutdown_of_otp_is_accepted() -> None:
    given: list[Shutdown] = [0, 0.5, 7, "infinity", float("inf"), "brutal_kill"]
    assert [child(Plain, shutdown=it).shutdown for it in given] == [
        0.0,
        0.5,
        7.0,
        "infinity",
        "infinity",
        "brutal_kill",
    ]
