"""Plain data beyond what JSON has: what goes to a node from outside, and comes back, without a pickle.

`_rebeam` asks here for what it does not know itself. Numbers, times and arrays of numpy go as Python's own.
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
    # Of more than 128 bits.
    "int": (int, str, int),
}
"""What has a text by which it is made again."""


def kind_and_text(object: object) -> tuple[str, str] | None:
    """What an object is, and its text; None if it is nothing that is known here."""
    for kind, (cls, text, _) in _KINDS.items():
        # What is built on one of them has more, which would be lost.
        if type(object) is cls:
            return kind, text(object)
    return None


def is_plain(value: object) -> bool:
    """Whether a value is plain data, as all that comes from outside and goes there."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return True
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain, value))
    return kind_and_text(value) is not None or simpler(value) is not None


def made(kind: str, text: str) -> object:
    """The object again.

    Raises:
        ValueError: it is nothing that is known here.
    """
    if kind not in _KINDS:
        raise ValueError(f"a plain value of the unknown kind `{kind}`")
    return _KINDS[kind][2](text)


def simpler(value: Any) -> tuple[Any] | None:
    """What is sent in the place of a buffer, or of a value of numpy's or pandas'; None if it is none, or would lose."""
    if isinstance(value, (bytearray, memoryview)):
        return (bytes(value),)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        # Objects are what they are.
        return (value.tolist(),) if value.dtype.kind in "biufcSU" else _times(numpy, value)
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.Timestamp) and not value.nanosecond:
        return (value.to_pydatetime(),)
    if pandas is not None and isinstance(value, pandas.Timedelta) and not value.nanoseconds:
        return (value.to_pytimedelta(),)
    return None


def _times(numpy: Any, value: Any) -> tuple[Any] | None:
    """Times of numpy's as Python has them; None if it has not: parts of a microsecond, the year 10,000, months."""
    if value.dtype.kind not in "mM":
        return None
    whole = value.astype(f"{value.dtype.kind}8[us]") if numpy.datetime_data(value.dtype)[0] in _FINER else value
    times = numpy.asarray(whole).reshape(-1).tolist()
    if not numpy.array_equal(whole, value, equal_nan=True) or any(type(time) is int for time in times):
        return None
    return (whole.tolist(),)


_FINER = ("ns", "ps", "fs", "as")
