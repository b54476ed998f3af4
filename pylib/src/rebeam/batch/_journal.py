"""What is known of a run on disk: which items were taken up, what waits between stages, what failed for good.

An SQLite file in WAL mode with `synchronous=FULL`: what a commit has returned from survives a loss of power. One
process writes, many changes at once. *Taken* is an item of the source whose first stage is done; from then on it is
known by what came of it: rows that wait for a later stage, rows of the dead, or nothing, which means that it is done.

Python's own `sqlite3` is that library; to reach the same one through Rust would add a build of it and a crossing for
each call, and no safety.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rebeam import _import_watch
from rebeam.batch._pipeline import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rebeam.batch._ids import Id

FORMAT = 2
"""The version of the tables."""

BESIDE = 256 * 1024
"""From how many bytes on a result stands in a file of its own beside the journal."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (id PRIMARY KEY, stamp TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id, step INTEGER, attempts INTEGER, value BLOB, file TEXT, root, UNIQUE (id, step, root)
);
CREATE TABLE IF NOT EXISTS dead (
    id, step INTEGER, stage TEXT, attempts INTEGER, cause TEXT, detail TEXT, value BLOB, file TEXT, root,
    PRIMARY KEY (id, root)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outputs (name BLOB PRIMARY KEY, id, is_done INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unfinished ON outputs (name) WHERE is_done = 0;
CREATE TABLE IF NOT EXISTS suspects (digest INTEGER PRIMARY KEY, alone INTEGER);
"""
# An id is a number or text, which SQLite keeps apart where a column has no type. The root of an item is the item of the
# source that it was made of.

Row: TypeAlias = "tuple[Id, int, Id]"
"""What waits: an id, a step, and a root."""

SOURCE = -1
"""As the step of a dead item: the source could not give it, and is asked again."""


PAGE, PAGE_BYTES = 1000, 32 * 1024 * 1024
"""How much of what waits is read at once."""


class Waiting(NamedTuple):
    """A result that waits for a later stage."""

    id: Id
    step: int
    attempts: int
    value: bytes
    root: Id


class DeadItem(NamedTuple):
    """An item that failed for good."""

    id: Id
    step: int
    stage: str
    attempts: int
    cause: str
    detail: str
    value: bytes
    root: Id


class Changes:
    """What is to be written at once, noted as it happens: what comes and goes before it is written is not written."""

    def __init__(self) -> None:
        self.taken: list[tuple[Id, str | None]] = []
        """Items of the source, and what changes when they do."""
        self.gone: list[Row] = []
        self.waiting: dict[Row, Waiting] = {}
        self.dead: list[DeadItem] = []
        self.results: list[tuple[Id, Any]] = []
        """What the sink is to write."""
        self.roots: dict[Id, Id] = {}
        """The roots of these, where they are others."""
        self.bytes = 0
        self.forgotten: list[Id] = []
        """Items that have changed since they were done, and are begun anew: what came of them goes."""

    def __len__(self) -> int:
        of_steps = len(self.taken) + len(self.gone) + len(self.waiting)
        return of_steps + len(self.dead) + len(self.results) + len(self.forgotten)

    def add_waiting(self, it: Waiting) -> None:
        self.waiting[it.id, it.step, it.root] = it
        self.bytes += len(it.value)

    def remove(self, rows: list[Row]) -> None:
        for row in rows:
            was = self.waiting.pop(row, None)
            if was is None:
                self.gone.append(row)
            else:
                self.bytes -= len(was.value)

    def add_result(self, id: Id, written: Any, root: Id) -> None:
        self.results.append((id, written))
        if root != id:
            self.roots[id] = root
        self.bytes += len(written) if isinstance(written, (bytes, str)) else len(written[1])


class Journal:
    """The journal of one pipeline, open for writing."""

    def __init__(self, directory: Path, name: str, *, looks: bool = False, in_memory: bool = False) -> None:
        """Opens it, or makes it; `looks`: for who does not run it; `in_memory`: it is gone with the run.

        Raises:
            PipelineError: it cannot be written, is broken, is of another version, or belongs to another pipeline.
        """
        self._directory = directory
        self._counts_ids = False
        self._path = directory / "journal.db"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not in_memory:
                # SQLite would not go by the umask.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
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
        if version != FORMAT:
            age = "a newer" if version > FORMAT else "an older"
            what = f"the journal `{self._path}` is of {age} version ({version}, this knows {FORMAT})"
            raise PipelineError(f"{what}; `--fresh` starts over")
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

    def taken_of(self, ids: list[Id]) -> dict[Id, str | None]:
        """Which of these were taken, and what they were like then."""
        found: dict[Id, str | None] = {}
        for begin in range(0, len(ids), 500):
            part = ids[begin : begin + 500]
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT id, stamp FROM taken WHERE id IN ({marks})", part))
        return found

    def times_seen(self, ids: list[Id]) -> list[int]:
        """How often each of these was seen in this reading of the source, this time included."""
        if not self._counts_ids:
            self._counts_ids = True
            # Not in memory: there may be many.
            self._db.execute("PRAGMA temp_store=FILE")
            self._db.execute("CREATE TEMP TABLE seen (id PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        insert = "INSERT INTO seen VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1 RETURNING times"
        self._db.execute("BEGIN")
        times = [self._db.execute(insert, (id,)).fetchone()[0] for id in ids]
        self._db.execute("COMMIT")
        return times

    def suspects(self) -> dict[int, int]:
        """Items that were in hand when a run ended without a word, by digest, with how often each was alone in hand."""
        # As whole numbers of 64 bits with a sign, which is what SQLite has.
        return {digest & (2**64 - 1): alone for digest, alone in self._db.execute("SELECT * FROM suspects")}

    def suspect(self, digests: Iterable[int], alone: set[int]) -> None:
        """Notes what was in hand at the end of a run; `alone`: what had nothing else beside it."""
        insert = "INSERT INTO suspects VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET alone = alone + excluded.alone"
        self._db.executemany(insert, [(_signed(digest), int(digest in alone)) for digest in digests])

    def acquit(self, digest: int) -> None:
        """An item that was under suspicion is done, or dead."""
        self.set_meta(alone="")
        self._db.execute("DELETE FROM suspects WHERE digest = ?", (_signed(digest),))

    def claim(self, names: list[tuple[bytes, Id]]) -> dict[bytes, Id]:
        """Notes whose results are to have these names, those that are free; gives whose each of them is now.

        By the next commit they are done.
        """
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR IGNORE INTO outputs VALUES (?, ?, 0)", names)
        self._db.execute("COMMIT")
        owners = ((name, self.owner(name)) for name, _ in names)
        return {name: owner for name, owner in owners if owner is not None}

    def owner(self, name: bytes) -> Id | None:
        """Whose result has this name."""
        row = self._db.execute("SELECT id FROM outputs WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def disown(self, name: bytes) -> None:
        """A name is free again."""
        self._db.execute("DELETE FROM outputs WHERE name = ?", (name,))

    def outputs(self) -> list[bytes]:
        """All names that are somebody's."""
        return [name for (name,) in self._db.execute("SELECT name FROM outputs")]

    def unfinished_outputs(self) -> list[bytes]:
        """Those that were claimed, and not done by a commit."""
        return [name for (name,) in self._db.execute("SELECT name FROM outputs WHERE is_done = 0")]

    def waiting(self, step: int, after: int) -> list[tuple[int, Waiting]]:
        """What waits for a step, in the order in which it came, behind a number: some of it, not more than fits."""
        query = "SELECT number, id, attempts, value, file, root FROM waiting "
        query += "WHERE number > ? AND step = ? ORDER BY number LIMIT ?"
        found: list[tuple[int, Waiting]] = []
        size = 0
        for number, id, attempts, value, file, root in self._db.execute(query, (after, step, PAGE)):
            one = Waiting(id, step, attempts, self._value(value, file), root)
            found.append((number, one))
            size += len(one.value)
            if size > PAGE_BYTES:
                break
        return found

    def dead(self) -> Iterator[DeadItem]:
        """The dead, in order of ids."""
        for *fields, value, file, root in self._db.execute("SELECT * FROM dead ORDER BY id"):
            id, step, stage, attempts, cause, detail = fields
            yield DeadItem(id, step, stage, attempts, cause, detail, self._value(value, file), root)

    def commit(self, changes: Changes, mark: str | None) -> None:
        """Writes all of it, or nothing."""
        waiting = [(*it[:3], *self._stored(f"{it.step}", it, it.value), it.root) for it in changes.waiting.values()]
        dead = [(*it[:6], *self._stored(f"{it.step}-dead", it, it.value), it.root) for it in changes.dead]
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for id in changes.forgotten:
                self._forget(id)
            db.executemany("INSERT OR REPLACE INTO taken VALUES (?, ?)", changes.taken)
            files = self._files_of(changes.gone)
            db.executemany("DELETE FROM waiting WHERE id = ? AND step = ? AND root = ?", changes.gone)
            insert = "INSERT OR REPLACE INTO waiting (id, step, attempts, value, file, root) VALUES (?, ?, ?, ?, ?, ?)"
            db.executemany(insert, waiting)
            db.executemany("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", dead)
            if mark is not None:
                db.execute("UPDATE outputs SET is_done = 1 WHERE is_done = 0")
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
        where, ids = "1", []
        if only is not None:
            ids = list(only)
            where = f"CAST(id AS TEXT) IN ({','.join('?' * len(ids))})"
        self._db.execute("BEGIN IMMEDIATE")
        insert = "INSERT OR REPLACE INTO waiting (id, step, attempts, value, file, root)"
        read = f"step <> {SOURCE} AND {where}"
        self._db.execute(f"{insert} SELECT id, step, 0, value, file, root FROM dead WHERE {read}", ids)
        # The source gives them again.
        unread = f"SELECT id FROM dead WHERE step = {SOURCE} AND {where}"
        self._db.execute(f"DELETE FROM taken WHERE id IN ({unread})", ids)
        count = self._db.execute(f"DELETE FROM dead WHERE {where}", ids).rowcount
        if only is None:
            self._db.execute("DELETE FROM suspects")
        self._db.execute("COMMIT")
        return count

    def _forget(self, id: Id) -> None:
        """Takes out what has come of an item so far, and of what it was made into."""
        for table in ("waiting", "dead"):
            self._db.execute(f"DELETE FROM {table} WHERE root = ?", (id,))

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _stored(self, place: str, of: Waiting | DeadItem, value: bytes) -> tuple[bytes | None, str | None]:
        """A value as its row holds it: itself, or the file that does."""
        if len(value) < BESIDE:
            return value, None
        import hashlib

        name = f"{hashlib.sha256(repr((of.id, of.root)).encode()).hexdigest()[:32]}-{place}"
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

    def _files_of(self, gone: list[Row]) -> list[str]:
        if not (self._directory / "values").is_dir():
            return []
        query = "SELECT file FROM waiting WHERE id = ? AND step = ? AND root = ? AND file IS NOT NULL"
        rows = (self._db.execute(query, key).fetchone() for key in gone)
        return [row[0] for row in rows if row]


def clear(directory: Path) -> None:
    """Removes a journal."""
    try:
        for path in [*directory.glob("journal.db*"), *directory.glob("values/*"), *directory.glob("marks")]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unusable(directory / "journal.db", error) from None


def check_owner(directory: Path) -> None:
    """Refuses a journal that somebody else has made, or that everybody may write: its values are unpickled.

    Raises:
        PipelineError: it is not ours.
    """
    for path in (directory, *directory.glob("journal.db*"), *directory.glob("values")):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            continue
        hint = "what it says would be run as you: `--trust-journal` goes on, `--journal DIR` takes another place"
        if found.st_uid != os.geteuid():
            raise PipelineError(f"`{path}` belongs to user {found.st_uid}, and not to you; {hint}")
        if found.st_mode & 0o002 and not found.st_mode & 0o1000:
            raise PipelineError(f"everybody may write to `{path}`; {hint}")


def packed(written: Any) -> bytes:
    """What a sink was to write, as a value of the journal: bytes, text, or a pair of a file's name and bytes."""
    if isinstance(written, bytes):
        return _WRITTEN + b"b" + written
    if isinstance(written, str):
        return _WRITTEN + b"t" + written.encode()
    name, data = os.fsencode(written[0]), bytes(written[1])
    return _WRITTEN + b"f" + len(name).to_bytes(4, "little") + name + data


def unpacked(value: bytes) -> Any:
    """What was packed so; None: it is a value, of which nothing was made yet."""
    if not value.startswith(_WRITTEN):
        return None
    kind, data = value[1:2], value[2:]
    if kind == b"b":
        return data
    if kind == b"t":
        return data.decode()
    end = 4 + int.from_bytes(data[:4], "little")
    return os.fsdecode(data[4:end]), data[end:]


_WRITTEN = b"W"
"""What begins such a value. (A pickle begins with 0x80.)"""


class Lock:
    """Holds a journal for one run at a time, across environments, users and projects, by a file in its directory."""

    def __init__(self, directory: Path, token: str, command: str, check: Callable[[], None] | None = None) -> None:
        """Takes it, or shares it with others of the same run. `check` is made before anything is written.

        Raises:
            PipelineError: another run has it, or the file cannot be had.
        """
        self.is_first = False
        """Whether nobody of this run has had it before."""
        path = directory / "lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _import_watch.shares_on_purpose():
                flags = os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
                except PermissionError:
                    # Who may not write here is told who does.
                    self._descriptor = os.open(path, os.O_RDONLY | flags)
        except OSError as error:
            raise unusable(directory / "journal.db", error) from None
        try:
            self._take(path, token, command, check)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, path: Path, token: str, command: str, check: Callable[[], None] | None) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._holder()
            if holder.get("token") != token:
                raise PipelineError(_held_by(path.parent, holder)) from None
        else:
            self.is_first = self._holder().get("token") != token
            if self.is_first and check is not None:
                check()
            who = {"token": token, "pid": int(token.split(".")[0]), "user": _user(), "host": os.uname().nodename}
            who |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": command}
            try:
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(who).encode(), 0)
            except OSError as error:
                raise unusable(path.parent / "journal.db", error) from None
        # Each process of the run that needs it has it, so that it lasts as long as the last of them.
        fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _holder(self) -> dict[str, Any]:
        try:
            found = json.loads(os.pread(self._descriptor, 65536, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _held_by(directory: Path, holder: dict[str, Any]) -> str:
    if not holder:
        return f"another run has the journal `{directory}` just now"
    who = f"process {holder.get('pid')} of {holder.get('user')} on {holder.get('host')}"
    return f"another run has the journal `{directory}`: {who}, since {holder.get('since')} (`{holder.get('command')}`)"


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(os.geteuid())


def _signed(digest: int) -> int:
    return digest - 2**64 if digest >= 2**63 else digest


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
