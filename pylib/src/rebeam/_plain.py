"""Plain data beyond what JSON has: what goes to a node from outside, and comes back, without a pickle.

`_rebeam` asks here for what it does not know itself. Numbers and arrays of numpy go as Python's own numbers and lists.
"""

from __future__ import annotations

import datetime
import decimal
import sys
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], object]]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda it: f"{it.days},{it.seconds},{it.microseconds}",
        lambda text: datetime.timedelta(*map(int, text.split(","))),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
}
"""What has a text by which it is made again."""


def kind_and_text(object: object) -> tuple[str, str] | None:
    """What an object is, and its text; None if it is nothing that is known here."""
    for kind, (cls, text, _) in _KINDS.items():
        # What is built on one of them has more, which would be lost.
        if type(object) is cls:
            return kind, text(object)
    return None


def made(kind: str, text: str) -> object:
    """The object again.

    Raises:
        ValueError: it is nothing that is known here.
    """
    if kind not in _KINDS:
        raise ValueError(f"a plain value of the unknown kind `{kind}`")
    return _KINDS[kind][2](text)


def simpler(value: Any) -> Any:
    """What is sent in the place of a value of numpy's; None if it is none."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    # Times of numpy's become bare numbers there, and objects are what they are.
    if isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biufcSU":
        return value.tolist()
    return None
