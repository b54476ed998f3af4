"""Where items come from. A source gives ids and values, in the same order each time if it can be read again.

Sources are read in a process of their own (`_reader`). One bad record is one dead item: it comes as `Broken`, and what
stands behind it comes as well.
"""

from __future__ import annotations

import glob as globbing
import itertools
import json
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple, TypeAlias

from rebeam.batch import _ids
from rebeam.batch._pipeline import PipelineError

log = logging.getLogger("rebeam.batch")

ROW = "row"
"""As a stamp: the value's own bytes."""

MakeId: TypeAlias = Callable[[Any], Any] | str
"""Makes the id of a value; or the name of the column or the member that is the id."""

Given: TypeAlias = tuple[Any, Any, str | None]
"""An id, or what makes it of the value; the value, or `Broken`; and what changes when the item does."""


class Broken(NamedTuple):
    """A record that cannot be read.

    Attributes:
        where: file and line.
        cause: what is wrong with it.
        content: the beginning of it.
    """

    where: str
    cause: str
    content: str

    def failure(self, *, names_place: bool) -> Any:
        """As the conductor knows it."""
        from rebeam.batch._worker import Failure, valid

        cause = f"{self.where}: {self.cause}" if names_place else self.cause
        return Failure(valid(cause)[:1000], valid(self.content[:1000]), may_retry=False)


class Source:
    """Something that items come from.

    Attributes:
        has_numbers: whether ids are positions, 0, 1, 2, …: then what is done of the beginning is skipped in one step.
        is_replayable: whether it can be read again from the beginning; else each item is written down when it is read.
    """

    has_numbers = True
    is_replayable = True

    def items(self) -> Iterator[Given]:
        """All items, from the first on."""
        raise NotImplementedError

    def describe(self) -> str:
        """What it reads: if that changes, so does this text."""
        raise NotImplementedError

    def count(self) -> int | None:
        """How many there are, if that is known without reading."""
        return None


def _maker(id: MakeId | None) -> Callable[[Any], Any] | None:
    if id is None or callable(id):
        return id
    if not isinstance(id, str):
        raise PipelineError(f"`id` is {id!r}: it is a function, or the name of a column")
    return operator.itemgetter(id)


class _Iterable(Source):
    def __init__(self, values: Iterable[Any] | Callable[[], Iterable[Any]], id: MakeId | None) -> None:
        self._values, self._id = values, _maker(id)
        self.has_numbers = id is None
        # A generator or a file can be read once only.
        self.is_replayable = callable(values) or iter(values) is not values

    def items(self) -> Iterator[Given]:
        values = self._values() if callable(self._values) else self._values
        if self._id is None:
            return ((number, value, None) for number, value in enumerate(values))
        make = self._id
        return ((make, value, None) for value in values)

    def describe(self) -> str:
        return f"iterable {getattr(self._values, '__qualname__', type(self._values).__qualname__)}"

    def count(self) -> int | None:
        return len(self._values) if isinstance(self._values, Sized) else None


def iterable(values: Iterable[Any] | Callable[[], Iterable[Any]], *, id: MakeId | None = None) -> Source:
    """The values of an iterable, or of what a function returns when it is called.

    Args:
        values: a list, a range, …; a function that gives a new iterator each time; or an iterator, whose values are
            written into the journal as they are read, since they do not come again.
        id: makes the id of a value. Default: its position.
    """
    return _Iterable(values, id)


class _Files(Source):
    has_numbers = False

    def __init__(
        self, pattern: str, changed: str, id: MakeId | None, *, hidden: bool, below: str | None = None
    ) -> None:
        if changed not in ("time", "content", "never"):
            raise PipelineError(f"`changed` is {changed!r}: it is `time`, `content` or `never`")
        self._pattern, self._changed, self._id, self._hidden, self._below = pattern, changed, _maker(id), hidden, below

    def _paths(self) -> list[str]:
        return _found(self._pattern, hidden=self._hidden) if self._below is None else _walked(self._below)

    def items(self) -> Iterator[Given]:
        paths = self._paths()
        _say_what_is_left_out(self._pattern, hidden=self._hidden or self._below is not None)
        for path in paths:
            yield self._id or os.fsencode(path).decode("utf-8", "backslashreplace"), path, self._stamp(path)

    def _stamp(self, path: str) -> str | None:
        if self._changed == "never":
            return None
        try:
            if self._changed == "content":
                import hashlib

                with open(path, "rb") as file:
                    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            found = os.stat(path)
        except OSError:
            # Whoever reads it will say it.
            return None
        return f"{found.st_size} {found.st_mtime_ns}"

    def describe(self) -> str:
        return f"files {self._pattern}"

    def count(self) -> int | None:
        return len(self._paths())


def files(pattern: str, *, changed: str = "time", hidden: bool = False, id: MakeId | None = None) -> Source:
    """The paths of files, by a pattern such as `in/**/*.pdf`, sorted; the path is the id. New files are new items.

    Args:
        pattern: as for `glob.glob`, `**` for any folders below. Links to folders are followed, but not in circles.
        changed: when a file that was done counts as changed, and is done again: `time`, if its size or time has
            changed; `content`, if what is in it has, which is read for that; `never`.
        hidden: whether files and folders whose names begin with a dot are taken. If not, it is said how many there are.
        id: makes the id of a path. Default: the path itself.
    """
    return _Files(pattern, changed, id, hidden=hidden)


def directory(path: str, *, changed: str = "time", id: MakeId | None = None) -> Source:
    """The paths of all files below a directory, hidden ones as well. Options as for `files`."""
    return _Files(os.path.join(globbing.escape(path), "**", "*"), changed, id, hidden=True, below=path)


def _found(pattern: str, *, hidden: bool) -> list[str]:
    """Files by a pattern, sorted, without those that a circle of links shows once more."""
    paths = globbing.iglob(pattern, recursive=True, include_hidden=hidden)
    loops: dict[str, bool] = {}
    found = []
    for path in paths:
        if not os.path.isfile(path):
            continue
        folder = os.path.dirname(path)
        if folder not in loops:
            loops[folder] = _is_loop(folder)
        if not loops[folder]:
            found.append(path)
    return sorted(found)


def _is_loop(folder: str) -> bool:
    """Whether a path goes through a link to a folder that it is in already."""
    above: set[tuple[int, int]] = set()
    parts = folder.split(os.sep)
    for count in range(1, len(parts) + 1):
        path = os.sep.join(parts[:count]) or os.sep
        if parts[count - 1] in ("", os.curdir, os.pardir):
            continue
        try:
            found = os.stat(path)
        except OSError:
            return False
        if (found.st_dev, found.st_ino) in above:
            return True
        above.add((found.st_dev, found.st_ino))
    return False


def _walked(top: str) -> list[str]:
    """All files below a folder; links to folders are followed, but not in circles."""
    found: list[str] = []
    for folder, folders, names in os.walk(top, followlinks=True):
        loops = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in loops:
            if _is_loop(os.path.join(folder, name)):
                folders.remove(name)
        found += [path for name in names if os.path.isfile(path := os.path.join(folder, name))]
    return sorted(found)


def _say_what_is_left_out(pattern: str, *, hidden: bool) -> None:
    if hidden or "*" not in pattern:
        return
    every, shown = _found(pattern, hidden=True), _found(pattern, hidden=False)
    if len(every) > len(shown):
        log.warning("%d hidden files of `%s` are left out; `hidden=True` takes them", len(every) - len(shown), pattern)


class _Rows(Source):
    """What is in one file, or in all of a pattern, by a function that reads one."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        read: Callable[[str], Iterator[Any]],
        kind: str,
        id: MakeId | None,
    ) -> None:
        self._path, self._read, self._kind, self._id = os.fspath(path), read, kind, _maker(id)
        self._is_pattern = globbing.has_magic(self._path) and not os.path.exists(self._path)
        self.has_numbers = id is None and not self._is_pattern

    def items(self) -> Iterator[Given]:
        if self._is_pattern:
            for path in _found(self._path, hidden=False):
                shown, number = _ids.text(path), -1
                try:
                    for number, value in enumerate(self._read(path)):
                        yield self._id or f"{shown}:{number}", value, ROW
                except Exception as error:
                    # The other files are read all the same.
                    cause = f"the rest of it cannot be read: {type(error).__name__}: {error}"
                    yield f"{shown}:{number + 1}", Broken(shown, cause, ""), None
        else:
            for number, value in enumerate(self._read(self._path)):
                yield (number, value, None) if self._id is None else (self._id, value, ROW)

    def describe(self) -> str:
        # By ids or rows that are named one by one, each is known again; positions are only those of this very file.
        if not self.has_numbers:
            return f"{self._kind} {self._path}"
        found = os.stat(self._path)
        return f"{self._kind} {self._path} {found.st_size} {found.st_mtime_ns}"


def _opened(path: str, mode: str = "rt", **options: Any) -> Any:
    """A file, unpacked as its name says it is packed."""
    match os.path.splitext(path)[1].lower():
        case ".gz":
            import gzip

            return gzip.open(path, mode, **options)
        case ".bz2":
            import bz2

            return bz2.open(path, mode, **options)
        case ".xz" | ".lzma":
            import lzma

            return lzma.open(path, mode, **options)
        case ".zst" | ".zstd":
            return _zstd().open(path, mode, **options)
    return open(path, mode, **options)


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            import zstandard as zstd  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise PipelineError("to read `.zst`, install the package `zstandard` (or use Python 3.14)") from None
    return zstd


_BOM = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig"}
"""A mark at the beginning of a file is no part of its text."""


class _Text(NamedTuple):
    """How text is read."""

    encoding: str
    errors: str

    def lines(self, path: str, *, newline: str | None = None) -> Iterator[str]:
        """The lines, bad bytes in them as surrogates if they are to be found."""
        errors = "surrogateescape" if self.errors == "strict" else self.errors
        encoding = _BOM.get(self.encoding.lower(), self.encoding)
        with _opened(path, encoding=encoding, errors=errors, newline=newline) as file:
            yield from file

    def fault(self, text: str) -> str | None:
        """What is wrong with text that was read so."""
        if self.errors != "strict" or text.isascii():
            return None
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            bad = text[error.start].encode("utf-8", "surrogateescape")
            return f"the byte 0x{bad[0]:02x} is no {self.encoding}"
        return None


def _texts(encoding: str, errors: str) -> _Text:
    import codecs

    try:
        codecs.lookup(encoding), codecs.lookup_error(errors)
    except LookupError as error:
        raise PipelineError(str(error)) from None
    return _Text(encoding, errors)


def lines(
    path: str | os.PathLike[str], *, encoding: str = "utf-8", errors: str = "strict", id: MakeId | None = None
) -> Source:
    """The lines of a text file, without their ends.

    Args:
        path: the file, or a pattern, as for all sources of this sort; `.gz`, `.bz2`, `.xz` and `.zst` are unpacked.
        encoding: of the text.
        errors: what becomes of bytes that are none of it: `strict`, the line is a dead item; or as for `open`.
        id: makes the id of a line. Default: its number, from 0; of a pattern, the file and that.
    """
    text = _texts(encoding, errors)

    def read(path: str) -> Iterator[Any]:
        for number, line in enumerate(text.lines(path), 1):
            fault = text.fault(line)
            yield line.rstrip("\r\n") if fault is None else _broken(path, number, fault, line)

    return _Rows(path, read, "lines", id)


def _broken(path: str, line: int, cause: str, content: str) -> Broken:
    return Broken(f"{_ids.text(path)}:{line}", cause, content)


def jsonl(
    path: str | os.PathLike[str], *, encoding: str = "utf-8", errors: str = "strict", id: MakeId | None = None
) -> Source:
    """The values of a file with one JSON value a line; blank lines are passed over. Options as for `lines`."""
    text = _texts(encoding, errors)

    def read(path: str) -> Iterator[Any]:
        for number, line in enumerate(text.lines(path), 1):
            if not line.strip():
                continue
            fault = text.fault(line)
            if fault is None:
                try:
                    yield json.loads(line)
                    continue
                except (ValueError, RecursionError) as error:
                    fault = f"{type(error).__name__}: {error}"
            yield _broken(path, number, fault, line)

    return _Rows(path, read, "jsonl", id)


def csv(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    id: MakeId | None = None,
    **options: Any,
) -> Source:
    """The rows of a CSV file, as dictionaries by its heading. Options as for `lines`, and as for `csv.DictReader`."""
    import csv as module

    text = _texts(encoding, errors)

    def read(path: str) -> Iterator[Any]:
        # The limit is there for small machines, and for a quote too many.
        module.field_size_limit(2**31 - 1)
        rows = module.DictReader(text.lines(path, newline=""), **options)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except module.Error as error:
                yield _broken(path, rows.line_num, f"{type(error).__name__}: {error}", "")
                continue
            fault = next(
                (fault for cell in row.values() if isinstance(cell, str) and (fault := text.fault(cell))), None
            )
            yield row if fault is None else _broken(path, rows.line_num, fault, repr(row))

    return _Rows(path, read, f"csv {sorted(options.items())}", id)


def parquet(path: str | os.PathLike[str], *, columns: list[str] | None = None, id: MakeId | None = None) -> Source:
    """The rows of a Parquet file, or of all of a pattern, as dictionaries. Needs `pyarrow`."""

    def read(path: str) -> Iterator[Any]:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-not-found]

        for batch in ParquetFile(path).iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()

    return _Rows(path, read, f"parquet {columns}", id)


class _Sql(Source):
    def __init__(self, path: str | os.PathLike[str], query: str, parameters: Any, id: MakeId | None) -> None:
        self._path, self._query, self._parameters, self._id = os.fspath(path), query, parameters, id
        self.has_numbers = id is None

    def items(self) -> Iterator[Given]:
        import sqlite3
        from urllib.parse import quote

        text = _Text("utf-8", "strict")
        make = _maker(self._id)
        connection = sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        try:
            cursor = connection.execute(self._query, self._parameters)
            names = [column[0] for column in cursor.description]
            if isinstance(self._id, str) and self._id not in names:
                raise ValueError(f"the query gives no column `{self._id}`, but {', '.join(names)}")
            for number, row in enumerate(cursor):
                fault = next((it for cell in row if isinstance(cell, str) and (it := text.fault(cell))), None)
                value: Any = dict(zip(names, row, strict=True))
                if fault is not None:
                    value = Broken(f"{_ids.text(self._path)}, row {number}", fault, repr(value))
                yield (number, value, None) if make is None else (make, value, ROW)
        finally:
            connection.close()

    def describe(self) -> str:
        return f"sql {self._path} {self._query} {self._parameters!r}"


def sql(path: str | os.PathLike[str], query: str, parameters: Any = (), *, id: MakeId | None = None) -> Source:
    """The rows of a query to an SQLite file, as dictionaries.

    Args:
        path: the file.
        query: with an `ORDER BY`, so that rows come in the same order each time; or with
        id: the column that is the id, or a function of the row.
        parameters: of the query.
    """
    return _Sql(path, query, parameters, id)


class _Stdin(Source):
    is_replayable = False

    def __init__(self, text: _Text, id: MakeId | None) -> None:
        self._text, self._id = text, _maker(id)
        self.has_numbers = id is None

    def items(self) -> Iterator[Given]:
        # Ours is nobody's: it is that of the program.
        path = json.loads(os.environ["REBEAM_BATCH"])["stdin"]
        for number, line in enumerate(self._text.lines(path)):
            fault = self._text.fault(line)
            value = line.rstrip("\r\n") if fault is None else _broken("stdin", number + 1, fault, line)
            yield number if self._id is None else self._id, value, None

    def describe(self) -> str:
        return "stdin"


def stdin(*, encoding: str = "utf-8", errors: str = "strict", id: MakeId | None = None) -> Source:
    """The lines of standard input. They do not come again, and so are written into the journal as they are read.

    Options as for `lines`.
    """
    return _Stdin(_texts(encoding, errors), id)


def chain(*sources: Source) -> Source:
    """One source after the other. Their ids must not meet."""
    return _Chain(sources)


class _Chain(Source):
    has_numbers = False

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self.is_replayable = all(source.is_replayable for source in sources)

    def items(self) -> Iterator[Given]:
        def named(number: int, source: Source) -> Iterator[Given]:
            items = source.items()
            return ((f"{number}:{id}", value, stamp) for id, value, stamp in items) if source.has_numbers else items

        return itertools.chain.from_iterable(itertools.starmap(named, enumerate(self._sources)))

    def describe(self) -> str:
        return " + ".join(source.describe() for source in self._sources)


__all__ = ["Source", "chain", "csv", "directory", "files", "iterable", "jsonl", "lines", "parquet", "sql", "stdin"]
