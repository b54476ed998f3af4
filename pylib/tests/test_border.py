"""What Rust makes of a declaration: what it does not know is an error, never a default."""

from dataclasses import replace
from typing import Any

import pytest
from rebeam import Actor, Supervisor, _rebeam, child


class Nothing(Actor):
    pass


class Odd(Supervisor):
    kind = "banana"


def read(tree: Supervisor) -> None:
    _rebeam.Node(tree)


def unknown(attribute: str) -> Any:
    return pytest.raises(ValueError, match=f"^{attribute}='banana' is not known; it is one of '")


def test_an_unknown_kind_of_supervisor_is_an_error() -> None:
    with unknown("kind"):
        read(Odd([child(Nothing)]))


@pytest.mark.parametrize("attribute", ["strategy", "auto_shutdown"])
def test_an_unknown_word_of_a_supervisor_is_an_error(attribute: str) -> None:
    tree = Supervisor([child(Nothing)])
    setattr(tree, attribute, "banana")
    with unknown(attribute):
        read(tree)


@pytest.mark.parametrize("attribute", ["restart", "shutdown", "on_giveup"])
def test_an_unknown_word_of_a_child_is_an_error(attribute: str) -> None:
    words: dict[str, Any] = {attribute: "banana"}
    with unknown(attribute):
        read(Supervisor([replace(child(Nothing), **words)]))


@pytest.mark.parametrize("attribute", ["on_full", "on_crash", "while_restarting"])
def test_an_unknown_word_of_a_mailbox_is_an_error(attribute: str) -> None:
    words: dict[str, Any] = {attribute: "banana"}
    made = child(Nothing)
    with unknown(attribute):
        read(Supervisor([replace(made, mailbox=made.mailbox._replace(**words))]))


def test_a_missing_field_is_an_error_that_names_it() -> None:
    limits: Any = (None, [], None, None, None, None)
    with pytest.raises(AttributeError, match="deadline"):
        read(Supervisor([replace(child(Nothing), limits=limits)]))
