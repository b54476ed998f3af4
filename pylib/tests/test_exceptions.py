"""Exceptions arrive with their class, their text and their attributes, whatever their constructors do."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import threading
from typing import Any

import pytest
from rebeam import _errors, _failure


class BuildsError(Exception):
    def __init__(self, user: str) -> None:
        super().__init__(f"no user {user}")
        self.user = user


class KeywordOnlyError(Exception):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class TextFromAttributesError(Exception):
    def __init__(self, path: str, line: int) -> None:
        self.path, self.line = path, line

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class SystemError(OSError):
    def __init__(self, name: str, why: str) -> None:
        super().__init__(5, why, name)


class MadeByNewError(Exception):
    def __new__(cls, one: int, two: int) -> MadeByNewError:
        return super().__new__(cls, one)

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one * two)


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int
    why: str

    def __str__(self) -> str:
        return f"{self.why} ({self.code})"


class HoldsAConnectionError(Exception):
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.host = "example.org"

    def __str__(self) -> str:
        return f"{self.connection!r} to {self.host}"


class WrongReduceError(Exception):
    """As some libraries have it: what it says of itself loses its text."""

    def __init__(self, pool: Any, reason: str) -> None:
        super().__init__(f"{pool}: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return WrongReduceError, (None, self.reason)


class RightReduceError(Exception):
    made = 0

    def __init__(self, text: str) -> None:
        super().__init__(text.upper())
        RightReduceError.made += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _right, (str(self),)


def _right(text: str) -> RightReduceError:
    return RightReduceError(text.lower())


class RefersToItselfError(Exception):
    def __init__(self) -> None:
        super().__init__("round")
        self.own = self
        self.others = [self, {"self": self}]


class ReadOnlyPropertyError(Exception):
    def __init__(self) -> None:
        super().__init__("read only")
        self._kind = "a kind"

    @property
    def kind(self) -> str:
        return self._kind


def _class_in_c(base: type[Exception]) -> Any:
    """A class as an extension module makes it: an object has room for more, and only its own `__new__` makes one."""
    api, tp_new = ctypes.pythonapi, 65
    new_type = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_void_p)
    get_slot = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_int)(("PyType_GetSlot", api))
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object)(("PyType_FromSpecWithBases", api))
    new_of_base = new_type(get_slot(base, tp_new))
    new = new_type(lambda cls, args, kwargs: new_of_base(cls, args, kwargs))

    class Slot(ctypes.Structure):
        _fields_ = [("slot", ctypes.c_int), ("value", ctypes.c_void_p)]

    class Spec(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p),
            ("basicsize", ctypes.c_int),
            ("itemsize", ctypes.c_int),
            ("flags", ctypes.c_uint),
            ("slots", ctypes.POINTER(Slot)),
        ]

    slots = (Slot * 2)(Slot(tp_new, ctypes.cast(new, ctypes.c_void_p)), Slot(0, None))
    may_be_built_on = 1 << 10
    spec = Spec(b"test_exceptions.InC", base.__basicsize__ + 8, 0, may_be_built_on, slots)
    # All that C would keep for good.
    _class_in_c.kept = (new_of_base, new, slots, spec)  # type: ignore[attr-defined]
    return make(ctypes.addressof(spec), (base,))


class InCError(_class_in_c(SyntaxError)):  # type: ignore[misc]
    pass


def with_attributes(error: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def raised(do: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        do()
    return caught.value


def no_system_error() -> SystemError:
    return SystemError("disk", "broken")


CASES: dict[str, Any] = {
    "builds its text": lambda: BuildsError("bob"),
    "keyword only": lambda: KeywordOnlyError("not found", status=404),
    "text from attributes": lambda: TextFromAttributesError("a.txt", 7),
    "built on OSError": no_system_error,
    "made by __new__": lambda: MadeByNewError(3, 4),
    "slots": lambda: SlottedError(3),
    "frozen dataclass": lambda: FrozenError(5, "broken"),
    "lock": lambda: HoldsAConnectionError(threading.Lock()),
    "socket": lambda: HoldsAConnectionError(socket.socket()),
    "in a list": lambda: HoldsAConnectionError([1, threading.Lock()]),
    "in its arguments": lambda: ValueError("bad", threading.Lock()),
    "wrong reduce": lambda: WrongReduceError("pool", "down"),
    "wrong reduce within": lambda: ConnectionError(WrongReduceError("pool", "down")),
    "right reduce": lambda: RightReduceError("text"),
    "refers to itself": RefersToItselfError,
    "read-only property": ReadOnlyPropertyError,
    "group": lambda: ExceptionGroup(
        "many", [BuildsError("ann"), KeywordOnlyError("gone", status=410), WrongReduceError("p", "q")]
    ),
    "key": lambda: KeyError("k"),
    "unicode": lambda: raised(lambda: b"\xff".decode()),
    "json": lambda: raised(lambda: json.loads("{")),
    "process": lambda: raised(lambda: subprocess.run(["false"], check=True)),
    "file": lambda: raised(lambda: os.stat("/nonexistent/x")),
    "import": lambda: raised(lambda: __import__("no_such_module")),
    "syntax": lambda: raised(lambda: compile("x =", "f.py", "exec")),
    "asyncio": lambda: asyncio.IncompleteReadError(b"ab", 4),
    "no text": lambda: ValueError(),
    "of a class in C": lambda: InCError("tag mismatch"),
    "of a class in C, set later": lambda: with_attributes(InCError("tag mismatch"), lineno=3, filename="a.xml"),
    "line set later": lambda: with_attributes(SyntaxError("odd"), lineno=1000, filename="b.py"),
    "errno set later": lambda: with_attributes(OSError(2, "gone"), errno=1000, filename="c"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exception_arrives_as_it_was_raised(name: str) -> None:
    error = CASES[name]()
    if name != "frozen dataclass":
        error.add_note("noted")
    arrived = _errors.remote(*_failure.describe(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert getattr(arrived, "__notes__", None) == getattr(error, "__notes__", None)
    for attribute in ("user", "status", "errno", "filename", "code", "host", "name", "lineno", "partial", "_kind"):
        assert getattr(arrived, attribute, None) == getattr(error, attribute, None), attribute


class UnaskableError(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_an_exception_that_cannot_be_asked_for_anything_is_told_all_the_same() -> None:
    kind, message, traceback, _ = _failure.describe(raised(lambda: (_ for _ in ()).throw(UnaskableError("told"))))
    assert kind.endswith("UnaskableError")
    assert message == "told"
    assert "UnaskableError: told" in traceback


def test_a_group_brings_the_exceptions_in_it() -> None:
    arrived: Any = _errors.remote(*_failure.describe(CASES["group"]()))
    assert [str(it) for it in arrived.exceptions] == ["no user ann", "gone", "p: q"]
    assert arrived.exceptions[1].status == 410


def test_no_constructor_runs() -> None:
    class_made = RightReduceError.made
    made: list[str] = []

    def init(self: BuildsError, user: str) -> None:
        made.append(user)
        Exception.__init__(self, user)

    original = BuildsError.__init__
    BuildsError.__init__ = init  # type: ignore[method-assign]
    try:
        _errors.remote(*_failure.describe(BuildsError("bob")))
    finally:
        BuildsError.__init__ = original  # type: ignore[method-assign]
    assert made == ["bob"]
    assert RightReduceError.made == class_made


def test_what_cannot_be_had_there_is_a_remote_error_with_the_text() -> None:
    class LocalError(Exception):
        pass

    arrived = _errors.remote(*_failure.describe(LocalError("of here")))
    assert isinstance(arrived, _errors.RemoteError)
    assert arrived.message == "of here"


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_without_a_text_is_told_all_the_same() -> None:
    arrived = _errors.remote(*_failure.describe(NoTextError()))
    assert isinstance(arrived, _errors.RemoteError)
    assert "RuntimeError" in arrived.message
