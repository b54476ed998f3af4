"""What tells items apart, and keys: one form for each value, the same in every run.

Values that are equal have the same form, whatever their types: `1`, `1.0`, `True` and numpy's `int64(1)` are the number
1; the text `"1"` is another. What has no such form is refused where it is made.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import operator
import os
import uuid
import zlib
from typing import Any, TypeAlias

Id: TypeAlias = int | str
"""A whole number of 64 bits, or text that can be written down."""

_LEAST, _MOST = -(2**63), 2**63 - 1


def canonical(value: Any) -> Id:
    """The form of an id.

    Numbers, text, bytes, dates and times, UUIDs, paths, None, enumerations, and tuples of these have one.

    Raises:
        TypeError: it is something else.
    """
    if type(value) is int and _LEAST <= value <= _MOST:
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, enum.Enum) and not isinstance(value, int):
        return f"<{type(value).__qualname__}.{value.name}>"
    if value is None:
        return "<None>"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{bytes(value)!r}>"
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, os.PathLike):
        return text(os.fsdecode(os.fspath(value)))
    if isinstance(value, datetime.datetime):
        # Two moments are one, wherever their clocks hang.
        return (value if value.tzinfo is None else value.astimezone(datetime.UTC)).isoformat()
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return str(value)
    if isinstance(value, tuple):
        return f"<({', '.join(repr(canonical(it)) for it in value)})>"
    return _number(value)


def key(value: Any) -> str:
    """The form of a key, by which items are gathered or kept in order: lists and dataclasses have one as well.

    Raises:
        TypeError: it is something that cannot be compared by value.
    """
    return repr(_key(value))


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_key(it) for it in value]
    if isinstance(value, (set, frozenset)):
        return sorted(key(it) for it in value), "set"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [_key(getattr(value, field.name)) for field in dataclasses.fields(value) if field.compare]
        return type(value).__qualname__, fields
    return canonical(value)


def _number(value: Any) -> Id:
    """Of a number, in whatever type; numpy's as Python's."""
    try:
        whole = operator.index(value)
    except TypeError:
        if hasattr(value, "dtype") and hasattr(value, "item"):
            plain = value.item()
            # Times of nanoseconds come as numbers.
            return canonical(plain) if plain is not value and value.dtype.kind not in "mM" else f"<{value}>"
        if not isinstance(value, (float, decimal.Decimal, fractions.Fraction)):
            name = type(value).__qualname__
            raise TypeError(
                f"a `{name}` tells no item from another: use a number, text, bytes, a date, or a tuple"
            ) from None
        if not math.isfinite(value):
            return f"<{str(float(value)).lower()}>"
        if value != int(value):
            # Those that are equal are equal as floats or, where no float is, as fractions.
            as_float = float(value)
            return f"<{as_float!r}>" if as_float == value else f"<{fractions.Fraction(value)}>"
        whole = int(value)
    return whole if _LEAST <= whole <= _MOST else f"<{whole:#x}>"


def text(value: str) -> str:
    """Text that can be written down: lone surrogates, as of a file's name, are escaped."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode()
    # Without a class of its own.
    return str.__str__(value)


def digest(id: Id) -> int:
    """64 bits by which an item is known again; seldom another has the same."""
    if isinstance(id, int):
        return 1 << 62 | id & 0x3FFF_FFFF_FFFF_FFFF
    written = id.encode()
    return 1 << 63 | (len(written) & 0x3FFF_FFFF) << 32 | zlib.crc32(written)


def record_digest(number: int) -> int:
    """The same for a record of the source that has no id yet."""
    return 3 << 62 | number & 0x3FFF_FFFF_FFFF_FFFF
