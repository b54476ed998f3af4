"""Where results go. These sinks take part in the journal's transactions: nothing is in them twice.

A sink writes before the journal says that items are done, and remembers in the journal's own transaction how far it had
written; when a run goes on, what lies beyond that is taken back.
"""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

from rebeam.batch._journal import sync_directory
from rebeam.batch._pipeline import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Sink:
    """Something that results go to."""

    takes_values = True
    """Whether it wants results at all."""

    def open(self, mark: str | None, may_replace: bool) -> None:
        """Begins, or goes on from the mark of the last transaction.

        Raises:
            PipelineError: it would have to replace what is not its own.
        """

    def write(self, results: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
        """Takes `(id, value)` pairs; gives the ids of those that it cannot take, each with the reason."""
        raise NotImplementedError

    def flush(self) -> str:
        """Makes what was written last, and gives a mark for it."""
        return ""

    def close(self) -> None:
        """Ends."""

    def describe(self) -> str:
        """Where it writes."""
        return type(self).__name__


class Nothing(Sink):
    """Behind a function that is the sink."""

    takes_values = False

    def write(self, results: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
        return []


def _json(value: Any, default: Callable[[Any], Any] | None) -> str:
    """A value as JSON that can be written down."""
    text = json.dumps(value, ensure_ascii=False, default=default)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Lone surrogates, as of a file's name: as escapes they are valid.
        return json.dumps(value, default=default)
    return text


class _Jsonl(Sink):
    def __init__(self, path: str, default: Callable[[Any], Any] | None) -> None:
        self._path, self._default = path, default
        self._file: Any = None

    def open(self, mark: str | None, may_replace: bool) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        self._file = open(self._path, "ab")  # noqa: SIM115
        size = int(mark or 0)
        if mark is None and not may_replace and os.fstat(self._file.fileno()).st_size > 0:
            raise PipelineError(f"`{self._path}` is there, and not of this pipeline's journal: `--fresh` replaces it")
        if os.fstat(self._file.fileno()).st_size < size:
            raise ValueError(f"`{self._path}` is shorter than the journal says: it was changed by somebody else")
        self._file.truncate(size)

    def write(self, results: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
        lines, refused = [], []
        for id, value in results:
            try:
                lines.append(_json(value, self._default))
            except Exception as error:
                refused.append((id, f"it is nothing that JSON knows: {type(error).__qualname__}: {error}"))
        if lines:
            self._file.write(("\n".join(lines) + "\n").encode())
        return refused

    def flush(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        return str(self._file.tell())

    def close(self) -> None:
        self._file.close()

    def describe(self) -> str:
        return f"jsonl {self._path}"


def jsonl(path: str, *, default: Callable[[Any], Any] | None = None) -> Sink:
    """A file with one JSON value a line, in the order in which items are done.

    Args:
        path: the file. It is the pipeline's own: what is in it that the journal does not know of is taken back.
        default: as for `json.dumps`: makes what JSON does not know into something that it does.
    """
    return _Jsonl(path, default)


class _Files(Sink):
    def __init__(self, directory: str, name: Callable[[Any], str] | None, content: Callable[[Any], Any] | None) -> None:
        self._directory, self._name, self._content = directory, name, content

    def open(self, mark: str | None, may_replace: bool) -> None:
        os.makedirs(self._directory, exist_ok=True)

    def write(self, results: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
        refused = []
        folders: set[str] = set()
        for id, value in results:
            try:
                name = self._name(value) if self._name else id
                content = self._content(value) if self._content else value
                path = os.path.normpath(os.path.join(self._directory, name))
            except Exception as error:
                refused.append((id, f"its name or content: {type(error).__qualname__}: {error}"))
                continue
            if os.path.relpath(path, self._directory).startswith(os.pardir):
                refused.append((id, f"`{name}` is outside `{self._directory}`"))
                continue
            if not isinstance(content, (str, bytes, bytearray, memoryview)):
                refused.append((id, f"a file is made of text or bytes, not of `{type(content).__qualname__}`"))
                continue
            data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                # Whole or not at all; once more is the same.
                with open(f"{path}.part", "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(f"{path}.part", path)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                    raise
                refused.append((id, f"its file cannot be written: {error}"))
                continue
            folders.add(os.path.dirname(path))
        for folder in folders:
            sync_directory(folder)
        return refused

    def describe(self) -> str:
        return f"files {self._directory}"


def files(
    directory: str, *, name: Callable[[Any], str] | None = None, content: Callable[[Any], Any] | None = None
) -> Sink:
    """One file for each result.

    Args:
        directory: where.
        name: makes a file's name of the result. Default: the item's id.
        content: makes its content, text or bytes. Default: the result itself.
    """
    return _Files(directory, name, content)


class _Sql(Sink):
    def __init__(self, path: str, table: str) -> None:
        self._path, self._table = path, table
        self._connection: Any = None
        self._number = 0

    def open(self, mark: str | None, may_replace: bool) -> None:
        import sqlite3

        self._connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=FULL")
        quoted = self._quoted(self._table)
        found = [row[1] for row in self._connection.execute(f"PRAGMA table_info({quoted})")]
        if found and (found != ["item_id", "value", "written"] or (mark is None and not may_replace)):
            raise PipelineError(
                f"`{self._path}` has a table `{self._table}` ({', '.join(found)}) that is not of this journal"
            )
        columns = "item_id TEXT PRIMARY KEY, value TEXT, written INTEGER"
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted} ({columns})")
        # What was written and not noted in the journal comes again, perhaps under other ids.
        self._number = int(mark or 0)
        self._connection.execute(f"DELETE FROM {quoted} WHERE written > ?", (self._number,))
        if mark is None:
            self._connection.execute(f"DELETE FROM {quoted}")
        self._connection.execute("BEGIN")

    def write(self, results: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
        rows, refused = [], []
        for id, value in results:
            try:
                rows.append((id, _json(value, None), self._number + 1))
            except Exception as error:
                refused.append((id, f"it is nothing that JSON knows: {type(error).__qualname__}: {error}"))
        insert = f"INSERT OR REPLACE INTO {self._quoted(self._table)} VALUES (?, ?, ?)"
        self._connection.executemany(insert, rows)
        return refused

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


def sql(path: str, table: str) -> Sink:
    """A table of an SQLite file, with the columns `item_id`, `value` (JSON) and `written`, by which a run goes on.

    Args:
        path: the file.
        table: the table. It is the pipeline's own: what a new run finds in it is replaced.
    """
    return _Sql(path, table)


__all__ = ["Sink", "files", "jsonl", "sql"]
