"""Objects with large buffers: copies that can be written to."""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar, TypeVar

from rebeam import _rebeam

T = TypeVar("T")


_PythonPickler: Any = pickle._Pickler
"""The one that is written in Python, and can be changed."""


class _Pickler(_PythonPickler):  # type: ignore[misc]
    """Leaves all buffers out of band, and none of them read-only."""

    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def save_picklebuffer(self, buffer: pickle.PickleBuffer) -> None:
        self._buffer_callback(buffer)
        self.write(pickle.NEXT_BUFFER)

    dispatch[pickle.PickleBuffer] = save_picklebuffer


def writable(object: T, /) -> T:
    """A copy of an object that can be written to.

    Memory that came from another actor, or from `share`, is copied page by page, as it is written; other memory at
    once.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, 5, buffer_callback=buffers.append).dump(object)
    views = []
    for buffer in buffers:
        raw = buffer.raw()
        view = _rebeam.private_view(raw) if raw.nbytes else None
        views.append(bytearray(raw) if view is None else view)
    copy: T = pickle.loads(file.getvalue(), buffers=views)
    return copy
