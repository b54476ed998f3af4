"""Exceptions on their way to another process: the same class, the same text, the same attributes.

`pickle` makes an exception again by calling its class with its `args`, which many constructors do not take, or make
another text of. Here it is put together from its parts, and no constructor runs but that of the class of Python's own
that it is built on. A class that says itself how it is pickled is asked first; what it makes counts if its text is the
same.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
from types import MemberDescriptorType
from typing import Any

from rebeam import _main

_ADDRESS = re.compile("0x[0-9a-f]+")


class NotSent:
    """Stands for a part of an exception that cannot be sent, such as an open connection; has its text."""

    def __init__(self, text: str, shown: str) -> None:
        self._text = text
        self._shown = shown

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._shown


def dumps(error: BaseException) -> bytes | None:
    """An exception's pickle, by which it is made again with its class and text; None if it has none."""
    for pickler in (_Pickler, _PicklerOfWhatIsPicklable):
        try:
            pickled = _dumps(pickler(), error)
            if _is_as(error, pickle.loads(pickled)):
                return pickled
        except Exception:
            continue
    return None


def _is_as(error: BaseException, copy: object) -> bool:
    return type(copy) is type(error) and _text_of(copy) == _text_of(error)


def _text_of(error: BaseException) -> str:
    # Of an object without a text of its own, the text says where in memory it is.
    return _ADDRESS.sub("0x", str(error))


def base_of(cls: type) -> Any:
    """The class of Python's own that an exception's class is built on."""
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _set_later(error: BaseException, args: tuple[Any, ...]) -> dict[str, Any]:
    """What a class of Python's own keeps beside `args`, where it is not what they say: a `lineno`, an `errno`."""
    own = [cls for cls in base_of(type(error)).__mro__ if cls not in (Exception, BaseException, object)]
    names = [name for cls in own for name, value in vars(cls).items() if isinstance(value, MemberDescriptorType)]
    # An object without the attribute that was asked for may be anything, and `pickle` leaves it behind, too.
    names = [name for name in names if name != "obj"]
    if not names:
        return {}
    made = _make(type(error), args)
    pairs = [(name, getattr(error, name), getattr(made, name)) for name in names]
    return {name: kept for name, kept, said in pairs if kept is not said and kept != said}


class _Pickler(_main.Pickler):
    """Takes exceptions apart, unless their class says how they are pickled, and is right.

    Args:
        asked: an exception whose class is to say so, right or wrong.
    """

    def __init__(self, asked: BaseException | None = None) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, 5)
        self._asked = asked

    def reducer_override(self, object: Any) -> Any:
        if isinstance(object, BaseException) and object is not self._asked and not _says_itself(object):
            return self._parts(object)
        return super().reducer_override(object)

    def _parts(self, error: BaseException) -> tuple[Any, ...]:
        cls = type(error)
        _, args, *rest = base_of(cls).__reduce__(error)
        state = dict(rest[0]) if rest and rest[0] else {}
        slots: list[str] = copyreg._slotnames(cls)  # type: ignore[attr-defined]
        state.update((name, getattr(error, name)) for name in slots if hasattr(error, name))
        state.update(_set_later(error, args))
        state = {name: self._value(value) for name, value in state.items()}
        # The state comes last, since it may refer to the exception itself.
        return _make, (cls, self._value(args)), state, None, None, _set_state

    def _value(self, value: Any) -> Any:
        return value


class _PicklerOfWhatIsPicklable(_Pickler):
    """The same, with something in the place of what cannot be pickled."""

    def _value(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(self._value(item) for item in value)
        try:
            pickle.loads(_dumps(_Pickler(), value))
        except Exception:
            if isinstance(value, BaseException):
                return value
            if isinstance(value, list):
                return [self._value(item) for item in value]
            return NotSent(str(value), repr(value))
        return value


def _dumps(pickler: _Pickler, object: object) -> bytes:
    pickler.dump(object)
    return pickler.file.getvalue()


def _says_itself(error: BaseException) -> bool:
    cls = type(error)
    base = base_of(cls)
    if all(getattr(cls, name, None) is getattr(base, name, None) for name in _SAYS_ITSELF):
        return False
    try:
        return _is_as(error, pickle.loads(_dumps(_Pickler(error), error)))
    except Exception:
        return False


_SAYS_ITSELF = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")


def _make(cls: Any, args: tuple[Any, ...]) -> Any:
    base = base_of(cls)
    try:
        error = base.__new__(cls, *args)
    except TypeError:
        # A class written in C keeps things of its own in it, and only it can make them.
        error = cls.__new__(cls, *args)
    base.__init__(error, *args)
    return error


def _set_state(error: BaseException, state: dict[str, Any]) -> None:
    for name, value in state.items():
        # Of whatever the class may do there, nothing is wanted.
        object.__setattr__(error, name, value)
