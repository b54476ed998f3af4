"""Where results go. These sinks take part in the journal's transactions: nothing is in them twice.

A sink has two halves. `encode` runs in the workers and makes of a value what is written: the user's functions run
there. The rest runs beside the journal: it writes before the journal says that items are done, and remembers in the
journal's own transaction how far it had written; when a run goes on, what lies beyond that is taken back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from typing import TYPE_CHECKING, Any

from rebeam.batch._journal import sync_directory
from rebeam.batch._pipeline import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebeam.batch._ids import Id
    from rebeam.batch._journal import Journal


class Sink:
    """Something that results go to."""

    takes_values = True
    """Whether it wants results at all."""

    def encode(self, id: Id, value: Any) -> Any:
        """What is to be written of a value, as bytes or text.

        Raises:
            Exception: it cannot be written; the item is dead.
        """
        raise NotImplementedError

    def open(self, mark: str | None, journal: Journal, may_replace: bool) -> None:
        """Begins, or goes on from the mark of the last transaction.

        Raises:
            PipelineError: it would have to replace what is not its own.
        """

    def write(self, results: Iterable[tuple[Id, Any]]) -> list[tuple[Id, str]]:
        """Takes ids and what `encode` has made; gives the ids of those that it cannot write, each with the reason."""
        raise NotImplementedError

    def flush(self) -> str:
        """Makes what was written last, and gives a mark for it."""
        return ""

    def close(self) -> None:
        """Ends."""

    def forget(self, journal: Journal) -> None:
        """Removes what it has written, as far as that is known."""

    def describe(self) -> str:
        """Where it writes."""
        return type(self).__name__


class Nothing(Sink):
    """Behind a function that is the sink."""

    takes_values = False

    def write(self, results: Iterable[tuple[Id, Any]]) -> list[tuple[Id, str]]:
        return []


def _encoder(default: Callable[[Any], Any] | None) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=default)


def _json(value: Any, encoder: json.JSONEncoder) -> bytes:
    """A value as JSON (RFC 8259) that can be written down.

    Raises:
        ValueError, TypeError, RecursionError: JSON does not know it.
    """
    try:
        text = encoder.encode(value)
    except ValueError as error:
        found = _not_finite(value) if "Out of range" in str(error) else None
        raise ValueError(str(error) if found is None else f"{found} is no number that JSON knows") from None
    if isinstance(value, (dict, list, tuple)):
        _check_keys(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Lone surrogates, as of a file's name: as escapes they are valid.
        return json.dumps(value, default=encoder.default, allow_nan=False).encode()


def _not_finite(value: Any) -> float | None:
    for one in _walk(value):
        if isinstance(one, float) and not math.isfinite(one):
            return float(one)
    return None


def _walk(value: Any) -> Iterable[Any]:
    rest = [value]
    while rest:
        one = rest.pop()
        yield one
        if isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, (list, tuple)):
            rest += one


def _check_keys(value: Any) -> None:
    """Refuses keys that are one in JSON and were several: `1` and `"1"`."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            if not all(type(key) is str for key in one):
                written = {key if isinstance(key, str) else json.dumps(key, default=repr) for key in one}
                if len(written) < len(one):
                    raise ValueError("two keys of a dictionary are the same in JSON")
            rest += [it for it in one.values() if isinstance(it, (dict, list, tuple))]
        elif isinstance(one, (list, tuple)):
            rest += [it for it in one if isinstance(it, (dict, list, tuple))]


class _Jsonl(Sink):
    def __init__(self, path: str | os.PathLike[str], default: Callable[[Any], Any] | None) -> None:
        self._path, self._encoder = os.fspath(path), _encoder(default)
        self._file: Any = None

    def encode(self, id: Id, value: Any) -> bytes:
        return _json(value, self._encoder) + b"\n"

    def open(self, mark: str | None, journal: Journal, may_replace: bool) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        self._file = open(self._path, "ab")  # noqa: SIM115
        size = int(mark or 0)
        if mark is None and not may_replace and os.fstat(self._file.fileno()).st_size > 0:
            raise PipelineError(f"`{self._path}` is there, and not of this pipeline's journal: `--fresh` replaces it")
        if os.fstat(self._file.fileno()).st_size < size:
            raise ValueError(f"`{self._path}` is shorter than the journal says: it was changed by somebody else")
        self._file.truncate(size)

    def write(self, results: Iterable[tuple[Id, Any]]) -> list[tuple[Id, str]]:
        self._file.write(b"".join(line for _, line in results))
        return []

    def flush(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        return str(self._file.tell())

    def close(self) -> None:
        self._file.close()

    def describe(self) -> str:
        return f"jsonl {self._path}"


def jsonl(path: str | os.PathLike[str], *, default: Callable[[Any], Any] | None = None) -> Sink:
    """A file with one JSON value a line, in the order in which items are done.

    What JSON has no word for (NaN, infinities, keys that are one in JSON) makes its item dead.

    Args:
        path: the file. It is the pipeline's own: what is in it that the journal does not know of is taken back.
        default: as for `json.dumps`: makes what JSON does not know into something that it does.
    """
    return _Jsonl(path, default)


class _Files(Sink):
    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: Callable[[Any], Any] | None,
        content: Callable[[Any], Any] | None,
    ) -> None:
        self._directory, self._name, self._content = os.fspath(directory), name, content
        self._journal: Any = None
        self._may_replace = False

    def encode(self, id: Id, value: Any) -> tuple[str, bytes]:
        name = _name_of(id) if self._name is None else os.fspath(self._name(value))
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        content = self._content(value) if self._content is not None else value
        if not isinstance(content, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"a file is made of text or bytes, not of `{type(content).__qualname__}`")
        normal = os.path.normpath(name) if name else os.curdir
        if os.path.isabs(name) or normal == os.pardir or normal.startswith(os.pardir + os.sep):
            raise ValueError(f"`{name}` is outside `{self._directory}`")
        if normal == os.curdir or name.endswith(os.sep) or "\0" in name or os.path.basename(normal) == _PART:
            raise ValueError(f"`{name}` is no name for a file")
        # If the file system cannot have it, it is known here.
        os.fsencode(normal)
        return normal, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else bytes(content)

    def open(self, mark: str | None, journal: Journal, may_replace: bool) -> None:
        os.makedirs(self._directory, exist_ok=True)
        self._journal, self._may_replace = journal, may_replace
        # What the last run had begun to write and could not note.
        for name in journal.unfinished_outputs():
            self._remove(name)
            journal.disown(name)

    def write(self, results: Iterable[tuple[Id, Any]]) -> list[tuple[Id, str]]:
        results = list(results)
        refused: list[tuple[Id, str]] = []
        mine: list[tuple[Id, str, str, bytes]] = []
        claims: list[tuple[bytes, Id]] = []
        for id, (name, data) in results:
            path = os.path.join(self._directory, name)
            if self._journal.owner(os.fsencode(name)) is None and not self._may_replace and os.path.lexists(path):
                refused.append((id, f"`{path}` was there before, and is not of this journal: `--fresh` replaces it"))
                continue
            claims.append((os.fsencode(name), id))
            mine.append((id, name, path, data))
        # Before there is a file, the journal says whose it is: it may be the last that we say.
        owners = self._journal.claim(claims)
        folders: set[str] = set()
        for id, name, path, data in mine:
            owner = owners[os.fsencode(name)]
            if owner != id:
                refused.append((id, f"its name `{name}` is that of the result of `{owner}`"))
                continue
            why = self._put(path, data)
            if why is not None:
                self._journal.disown(os.fsencode(name))
                refused.append((id, why))
                continue
            folders.add(os.path.dirname(path))
        for folder in folders:
            sync_directory(folder)
        return refused

    def _put(self, path: str, data: bytes) -> str | None:
        """Writes a file, whole or not at all; says why not."""
        folder = os.path.dirname(path)
        # One at a time is written; its name is as short as a name can be.
        part = os.path.join(folder, _PART)
        try:
            os.makedirs(folder, exist_ok=True)
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            return f"its file cannot be written: {error}"
        return None

    def forget(self, journal: Journal) -> None:
        for name in journal.outputs():
            self._remove(name)

    def _remove(self, name: bytes) -> None:
        path = os.path.join(self._directory, os.fsdecode(name))
        if os.path.isfile(path) or os.path.islink(path):
            os.unlink(path)

    def describe(self) -> str:
        return f"files {self._directory}"


_PART = ".rebeam.part"
"""What a file is called while it is written."""


def _name_of(id: Id) -> str:
    """A file's name of an id: a path that is absolute, or that leads upwards, becomes one below the sink's folder."""
    parts = str(id).lstrip("/").split("/")
    return "/".join("%2E%2E" if part == os.pardir else part for part in parts)


def files(
    directory: str | os.PathLike[str],
    *,
    name: Callable[[Any], Any] | None = None,
    content: Callable[[Any], Any] | None = None,
) -> Sink:
    """One file for each result.

    Nothing is replaced that is not this item's own: two results of one name, and files that were there before, are dead
    items that say so. `--fresh` removes what the last run has written.

    Args:
        directory: where.
        name: makes a file's name of the result. Default: the item's id; of a path that is absolute, what is below `/`.
        content: makes its content, text or bytes. Default: the result itself.
    """
    return _Files(directory, name, content)


class _Sql(Sink):
    def __init__(self, path: str | os.PathLike[str], table: str) -> None:
        self._path, self._table, self._encoder = os.fspath(path), table, _encoder(None)
        self._connection: Any = None
        self._number = 0

    def encode(self, id: Id, value: Any) -> str:
        return _json(value, self._encoder).decode()

    def open(self, mark: str | None, journal: Journal, may_replace: bool) -> None:
        import sqlite3

        if os.path.dirname(self._path):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
        # SQLite would not go by the umask.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        self._connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=FULL")
        quoted = self._quoted(self._table)
        found = [row[1] for row in self._connection.execute(f"PRAGMA table_info({quoted})")]
        if found and (found != ["item_id", "value", "written"] or (mark is None and not may_replace)):
            raise PipelineError(
                f"`{self._path}` has a table `{self._table}` ({', '.join(found)}) that is not of this journal"
            )
        # The number 1 and the text `1` are two ids: SQLite keeps them apart where a column has no type.
        columns = "item_id PRIMARY KEY, value TEXT, written INTEGER"
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted} ({columns})")
        # What was written and not noted in the journal comes again, perhaps under other ids.
        self._number = int(mark or 0)
        self._connection.execute(f"DELETE FROM {quoted} WHERE written > ?", (self._number,))
        if mark is None:
            self._connection.execute(f"DELETE FROM {quoted}")
        self._connection.execute("BEGIN")

    def write(self, results: Iterable[tuple[Id, Any]]) -> list[tuple[Id, str]]:
        rows = [(id, text, self._number + 1) for id, text in results]
        self._connection.executemany(f"INSERT OR REPLACE INTO {self._quoted(self._table)} VALUES (?, ?, ?)", rows)
        return []

    def flush(self) -> str:
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")
        self._number += 1
        return str(self._number)

    def close(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.close()

    def describe(self) -> str:
        return f"sql {self._path} {self._table}"

    @staticmethod
    def _quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'


def sql(path: str | os.PathLike[str], table: str) -> Sink:
    """A table of an SQLite file, with the columns `item_id`, `value` (JSON) and `written`, by which a run goes on.

    Args:
        path: the file.
        table: the table. It is the pipeline's own: what a new run finds in it is replaced.
    """
    return _Sql(path, table)


__all__ = ["Sink", "files", "jsonl", "sql"]
