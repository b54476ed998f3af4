"""Where items come from. A source gives `(id, value)` pairs, in the same order each time if it can be read again."""

from __future__ import annotations

import glob as globbing
import itertools
import json
import os
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Id = int | str


class Source:
    """Something that items come from.

    Attributes:
        has_numbers: whether ids are positions, 0, 1, 2, …: then what is done of the beginning is skipped in one step.
        is_replayable: whether it can be read again from the beginning; else each item is written down when it is read.
    """

    has_numbers = True
    is_replayable = True

    def items(self) -> Iterator[tuple[Id, Any]]:
        """All items, from the first on."""
        raise NotImplementedError

    def describe(self) -> str:
        """What it reads: if that changes, so does this text."""
        raise NotImplementedError

    def count(self) -> int | None:
        """How many there are, if that is known without reading."""
        return None


class _Iterable(Source):
    def __init__(self, values: Iterable[Any] | Callable[[], Iterable[Any]], id: Callable[[Any], Id] | None) -> None:
        self._values, self._id = values, id
        self.has_numbers = id is None
        # A generator or a file can be read once only.
        self.is_replayable = callable(values) or iter(values) is not values

    def items(self) -> Iterator[tuple[Id, Any]]:
        values = self._values() if callable(self._values) else self._values
        if self._id is None:
            return enumerate(values)
        make = self._id
        return ((_valid(make(value)), value) for value in values)

    def describe(self) -> str:
        return f"iterable {getattr(self._values, '__qualname__', type(self._values).__qualname__)}"

    def count(self) -> int | None:
        return len(self._values) if isinstance(self._values, Sized) else None


def iterable(values: Iterable[Any] | Callable[[], Iterable[Any]], *, id: Callable[[Any], Id] | None = None) -> Source:
    """The values of an iterable, or of what a function returns when it is called.

    Args:
        values: a list, a range, …; a function that gives a new iterator each time; or an iterator, whose values are
            written into the journal as they are read, since they do not come again.
        id: makes the id of a value. Default: its position.
    """
    return _Iterable(values, id)


def _valid(id: Id) -> Id:
    return id.encode("utf-8", "backslashreplace").decode() if isinstance(id, str) else id


class _Files(Source):
    has_numbers = False

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def _paths(self) -> list[str]:
        return sorted(path for path in globbing.glob(self._pattern, recursive=True) if os.path.isfile(path))

    def items(self) -> Iterator[tuple[Id, Any]]:
        return ((os.fsencode(path).decode("utf-8", "backslashreplace"), path) for path in self._paths())

    def describe(self) -> str:
        return f"files {self._pattern}"

    def count(self) -> int | None:
        return len(self._paths())


def files(pattern: str) -> Source:
    """The paths of files, by a pattern such as `in/**/*.pdf`, sorted; the path is the id. New files are new items."""
    return _Files(pattern)


def directory(path: str) -> Source:
    """The paths of all files below a directory."""
    return _Files(os.path.join(globbing.escape(path), "**", "*"))


class _Rows(Source):
    """What is in one file, by a function that opens and reads it."""

    def __init__(self, path: str, read: Callable[[str], Iterator[Any]], kind: str) -> None:
        self._path, self._read, self._kind = path, read, kind

    def items(self) -> Iterator[tuple[Id, Any]]:
        return enumerate(self._read(self._path))

    def describe(self) -> str:
        found = os.stat(self._path)
        return f"{self._kind} {self._path} {found.st_size} {found.st_mtime_ns}"


def lines(path: str, *, encoding: str = "utf-8") -> Source:
    """The lines of a text file, without their ends."""

    def read(path: str) -> Iterator[str]:
        with open(path, encoding=encoding) as file:
            for line in file:
                yield line.rstrip("\r\n")

    return _Rows(path, read, "lines")


def jsonl(path: str) -> Source:
    """The values of a file with one JSON value a line."""

    def read(path: str) -> Iterator[Any]:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise ValueError(f"`{path}`, line {number}: {error}") from None

    return _Rows(path, read, "jsonl")


def csv(path: str, *, encoding: str = "utf-8", **options: Any) -> Source:
    """The rows of a CSV file, as dictionaries by its heading. Options as for `csv.DictReader`."""
    import csv as module

    def read(path: str) -> Iterator[dict[str, str]]:
        with open(path, encoding=encoding, newline="") as file:
            yield from module.DictReader(file, **options)

    return _Rows(path, read, f"csv {sorted(options.items())}")


def parquet(path: str, *, columns: list[str] | None = None) -> Source:
    """The rows of a Parquet file, as dictionaries. Needs `pyarrow`."""

    def read(path: str) -> Iterator[dict[str, Any]]:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-not-found]

        for batch in ParquetFile(path).iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()

    return _Rows(path, read, f"parquet {columns}")


class _Sql(Source):
    def __init__(self, path: str, query: str, parameters: Any, id: str | None) -> None:
        self._path, self._query, self._parameters, self._id = path, query, parameters, id
        self.has_numbers = id is None

    def items(self) -> Iterator[tuple[Id, Any]]:
        import sqlite3

        connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
        try:
            cursor = connection.execute(self._query, self._parameters)
            names = [column[0] for column in cursor.description]
            for number, row in enumerate(cursor):
                value = dict(zip(names, row, strict=True))
                yield (number if self._id is None else value[self._id]), value
        finally:
            connection.close()

    def describe(self) -> str:
        return f"sql {self._path} {self._query} {self._parameters!r}"


def sql(path: str, query: str, parameters: Any = (), *, id: str | None = None) -> Source:
    """The rows of a query to an SQLite file, as dictionaries.

    Args:
        path: the file.
        query: with an `ORDER BY`, so that rows come in the same order each time; or with
        id: the column that is the id.
        parameters: of the query.
    """
    return _Sql(path, query, parameters, id)


class _Stdin(Source):
    is_replayable = False

    def items(self) -> Iterator[tuple[Id, Any]]:
        # Ours is nobody's: it is that of the program.
        stream = open(json.loads(os.environ["REBEAM_BATCH"])["stdin"], encoding="utf-8")  # noqa: SIM115
        return ((number, line.rstrip("\r\n")) for number, line in enumerate(stream))

    def describe(self) -> str:
        return "stdin"


def stdin() -> Source:
    """The lines of standard input. They do not come again, and so are written into the journal as they are read."""
    return _Stdin()


def chain(*sources: Source) -> Source:
    """One source after the other. Their ids must not meet."""
    return _Chain(sources)


class _Chain(Source):
    has_numbers = False

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self.is_replayable = all(source.is_replayable for source in sources)

    def items(self) -> Iterator[tuple[Id, Any]]:
        def named(number: int, source: Source) -> Iterator[tuple[Id, Any]]:
            return ((f"{number}:{id}" if source.has_numbers else id, value) for id, value in source.items())

        return itertools.chain.from_iterable(itertools.starmap(named, enumerate(self._sources)))

    def describe(self) -> str:
        return " + ".join(source.describe() for source in self._sources)


__all__ = ["Source", "chain", "csv", "directory", "files", "iterable", "jsonl", "lines", "parquet", "sql", "stdin"]
