"""What is known of a run on disk: which items were taken up, what waits between stages, what failed for good.

An SQLite file in WAL mode with `synchronous=FULL`: what a commit has returned from survives a loss of power. One
process writes, many changes at once. *Taken* is an item of the source whose first stage is done; from then on it is
known by what came of it: rows that wait for a later stage, rows of the dead, or nothing, which means that it is done.

Python's own `sqlite3` is that library; to reach the same one through Rust would add a build of it and a crossing for
each call, and no safety.
"""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from rebeam.batch._pipeline import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FORMAT = 1
"""The version of the tables."""

BESIDE = 256 * 1024
"""From how many bytes on a result stands in a file of its own beside the journal."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (id PRIMARY KEY, run INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT, step INTEGER, attempts INTEGER, value BLOB, file TEXT, UNIQUE (id, step)
);
CREATE TABLE IF NOT EXISTS dead (
    id TEXT PRIMARY KEY, step INTEGER, stage TEXT, attempts INTEGER, cause TEXT, detail TEXT, value BLOB, file TEXT
) WITHOUT ROWID;
"""


PAGE, PAGE_BYTES = 1000, 32 * 1024 * 1024
"""How much of what waits is read at once."""


class Waiting(NamedTuple):
    """A result that waits for a later stage."""

    id: str
    step: int
    attempts: int
    value: bytes


class Dead(NamedTuple):
    """An item that failed for good."""

    id: str
    step: int
    stage: str
    attempts: int
    cause: str
    detail: str
    value: bytes


class Changes:
    """What is to be written at once, noted as it happens: what comes and goes before it is written is not written."""

    def __init__(self) -> None:
        self.taken: list[int | str] = []
        self.gone: list[tuple[str, int]] = []
        self.waiting: dict[tuple[str, int], Waiting] = {}
        self.dead: list[Dead] = []
        self.results: list[tuple[str, bytes]] = []

    def __len__(self) -> int:
        return len(self.taken) + len(self.gone) + len(self.waiting) + len(self.dead) + len(self.results)

    def add_waiting(self, it: Waiting) -> None:
        self.waiting[it.id, it.step] = it

    def remove(self, rows: list[tuple[str, int]]) -> None:
        for row in rows:
            if self.waiting.pop(row, None) is None:
                self.gone.append(row)


class Journal:
    """The journal of one pipeline, open for writing."""

    def __init__(
        self, directory: Path, name: str, *, fresh: bool = False, looks: bool = False, in_memory: bool = False
    ) -> None:
        """Opens it, or makes it; `looks`: for who does not run it; `in_memory`: it is gone with the run.

        Raises:
            PipelineError: it cannot be written, is broken, is of a newer version, or belongs to another pipeline.
        """
        self._directory = directory
        self._path = directory / "journal.db"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if fresh:
                for path in [*directory.glob("journal.db*"), *directory.glob("values/*")]:
                    path.unlink()
            self._db = sqlite3.connect(
                ":memory:" if in_memory else self._path, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA locking_mode=NORMAL")
            self._db.executescript(_TABLES)
            self._take(name, begins=not looks)
        except (OSError, sqlite3.Error) as error:
            raise unusable(self._path, error) from None

    def _take(self, name: str, *, begins: bool) -> None:
        version = int(self.meta("format") or FORMAT)
        if version > FORMAT:
            raise PipelineError(f"the journal `{self._path}` is of a newer version ({version}, this knows {FORMAT})")
        other = self.meta("name")
        if other is not None and other != name:
            raise PipelineError(f"the journal `{self._path}` is that of the pipeline `{other}`, not of `{name}`")
        self.run = int(self.meta("run") or 0) + int(begins)
        if begins:
            self.set_meta(format=FORMAT, name=name, run=self.run)

    def meta(self, key: str) -> str | None:
        """What was noted under a key."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, **values: Any) -> None:
        """Notes something by itself."""
        rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def counts(self) -> dict[str, int]:
        """How many were taken up, wait between stages, and are dead."""
        return {table: self._one(f"SELECT count(*) FROM {table}") for table in ("taken", "waiting", "dead")}

    def taken_up_to(self) -> int:
        """How many of the first numbers are all taken."""
        if not self._one("SELECT count(*) FROM (SELECT 1 FROM taken WHERE id = 0)"):
            return 0
        first_gap = "SELECT id + 1 FROM taken AS one WHERE typeof(id) = 'integer' AND id >= 0 AND NOT EXISTS "
        first_gap += "(SELECT 1 FROM taken WHERE id = one.id + 1) ORDER BY id LIMIT 1"
        return self._one(first_gap)

    def taken_of(self, ids: list[int | str]) -> dict[int | str, int]:
        """Which of these were taken, and in which run."""
        found: dict[int | str, int] = {}
        for begin in range(0, len(ids), 500):
            part = ids[begin : begin + 500]
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT id, run FROM taken WHERE id IN ({marks})", part))
        return found

    def waiting(self, step: int, after: int) -> list[tuple[int, Waiting]]:
        """What waits for a step, in the order in which it came, behind a number: some of it, not more than fits."""
        query = "SELECT number, id, attempts, value, file FROM waiting "
        query += "WHERE number > ? AND step = ? ORDER BY number LIMIT ?"
        found: list[tuple[int, Waiting]] = []
        size = 0
        for number, id, attempts, value, file in self._db.execute(query, (after, step, PAGE)):
            one = Waiting(id, step, attempts, self._value(value, file))
            found.append((number, one))
            size += len(one.value)
            if size > PAGE_BYTES:
                break
        return found

    def dead(self) -> Iterator[Dead]:
        """The dead, in order of ids."""
        for *fields, value, file in self._db.execute("SELECT * FROM dead ORDER BY id"):
            id, step, stage, attempts, cause, detail = fields
            yield Dead(id, step, stage, attempts, cause, detail, self._value(value, file))

    def commit(self, changes: Changes, mark: str | None) -> None:
        """Writes all of it, or nothing."""
        waiting = [(*it[:3], *self._stored(f"{it.step}", it.id, it.value)) for it in changes.waiting.values()]
        dead = [(*it[:6], *self._stored(f"{it.step}-dead", it.id, it.value)) for it in changes.dead]
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            run = self.run
            db.executemany("INSERT OR REPLACE INTO taken VALUES (?, ?)", [(id, run) for id in changes.taken])
            files = self._files_of(changes.gone)
            db.executemany("DELETE FROM waiting WHERE id = ? AND step = ?", changes.gone)
            insert = "INSERT OR REPLACE INTO waiting (id, step, attempts, value, file) VALUES (?, ?, ?, ?, ?)"
            db.executemany(insert, waiting)
            db.executemany("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?)", dead)
            if mark is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('mark', ?)", (mark,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        for file in files:
            # The dead that were revived have their old files.
            if not self._is_named(file):
                (self._directory / "values" / file).unlink(missing_ok=True)

    def revive(self, only: Iterable[str] | None = None) -> int:
        """Has the dead wait again, with all their attempts; says how many."""
        where, ids = "", []
        if only is not None:
            ids = list(only)
            where = f" WHERE id IN ({','.join('?' * len(ids))})"
        self._db.execute("BEGIN IMMEDIATE")
        insert = "INSERT OR REPLACE INTO waiting (id, step, attempts, value, file)"
        self._db.execute(f"{insert} SELECT id, step, 0, value, file FROM dead{where}", ids)
        count = self._db.execute(f"DELETE FROM dead{where}", ids).rowcount
        self._db.execute("COMMIT")
        return count

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _stored(self, place: str, id: str, value: bytes) -> tuple[bytes | None, str | None]:
        """A value as its row holds it: itself, or the file that does."""
        if len(value) < BESIDE:
            return value, None
        import hashlib

        name = f"{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{place}"
        folder = self._directory / "values"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}.part", "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / f"{name}.part", folder / name)
        sync_directory(folder)
        return None, name

    def _value(self, value: bytes | None, file: str | None) -> bytes:
        return value if file is None else (self._directory / "values" / file).read_bytes()  # type: ignore[return-value]

    def _is_named(self, file: str) -> bool:
        tables = ("waiting", "dead")
        return any(self._db.execute(f"SELECT 1 FROM {it} WHERE file = ?", (file,)).fetchone() for it in tables)

    def _files_of(self, gone: list[tuple[str, int]]) -> list[str]:
        if not (self._directory / "values").is_dir():
            return []
        query = "SELECT file FROM waiting WHERE id = ? AND step = ? AND file IS NOT NULL"
        rows = (self._db.execute(query, key).fetchone() for key in gone)
        return [row[0] for row in rows if row]


def sync_directory(path: Any) -> None:
    """Makes the names in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unusable(path: Path, error: Exception) -> PipelineError:
    """Why a journal cannot be used, and what to do."""
    text = str(error)
    if (isinstance(error, sqlite3.DatabaseError) and "malformed" in text) or "not a database" in text:
        return PipelineError(f"the journal `{path}` is broken ({text}); `--fresh` starts over")
    if "full" in text:
        return PipelineError(f"there is no room for the journal `{path}` ({text}); what it says is whole")
    return PipelineError(f"the journal `{path}` cannot be written ({text}); `--journal DIR` puts it elsewhere")
