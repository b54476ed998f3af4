"""Tables: dictionaries in memory that every actor reads, and that no crash of an actor can harm.

A read looks into shared memory, without a message; a change is a request to the process that keeps the rows. When a
change has returned everybody sees it, and so does whoever gets a message that is sent afterwards. Whose a table is, and
that it goes with its owner, is the supervisor's affair.
"""

from __future__ import annotations

import inspect
from collections.abc import ItemsView, Iterable, KeysView, Mapping, MutableMapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, overload

from rebeam import _pending, _rebeam
from rebeam._errors import DeadlockError, SpecError, StoreRestarted
from rebeam._options import Access, OnTableFull, TableKind, is_number, one_of, size_in_bytes
from rebeam._ref import Pid, address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from rebeam._ref import To

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_MISSING: Any = object()

_computed: ContextVar[tuple[tuple[str, Any], ...]] = ContextVar("rebeam_computed", default=())
"""Tables and keys whose values are being computed here."""


class TableInfo(NamedTuple):
    """What is known of a table.

    Attributes:
        name: its name.
        kind: "set", "ordered_set", "bag" or "duplicate_bag".
        access: "public", "protected" or "private".
        owner: with whose end it goes.
        rows: how many rows it has.
        bytes: how many bytes its rows take, roughly.
    """

    name: str
    kind: str
    access: str
    owner: Pid
    rows: int
    bytes: int


class TableTransfer(NamedTuple):
    """This actor owns a table from now on: it was given away, or the owner whose heir this actor is has ended. For
    `handle_info`.

    Attributes:
        table: the table.
        old_owner: whose it was.
        data: what was to be said with it.
    """

    table: Table[Any, Any]
    old_owner: Pid
    data: Any


class TableChange(NamedTuple):
    """Rows of a table have changed that this actor watches, see `Table.watch`. For `handle_info`.

    Attributes:
        watch: the watch's number.
        table: the table.
        keys: under which keys something was put or removed, or has expired, each once, in order; None: many, or it is
            not known which (see `Table.watch`).
        is_gone: the table is gone, and the watch with it.
    """

    watch: int
    table: Table[Any, Any]
    keys: list[Any] | None
    is_gone: bool


class _Keys(KeysView[K]):
    _mapping: _Readable[K, Any]

    def __iter__(self) -> Iterator[K]:
        return self._mapping._walk("keys")

    def __reversed__(self) -> Iterator[K]:
        return self._mapping._walk("keys", is_reversed=True)


class _Values(ValuesView[V]):
    _mapping: _Readable[Any, V]

    def __iter__(self) -> Iterator[V]:
        return self._mapping._walk("values")

    def __reversed__(self) -> Iterator[V]:
        return self._mapping._walk("values", is_reversed=True)


class _Items(ItemsView[K, V]):
    _mapping: _Readable[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._walk("items")

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._walk("items", is_reversed=True)


class _Readable(_rebeam.Table, Mapping[K, V]):
    """What a table and a snapshot of one have in common. Every walk shows the rows of one moment, sorted by key."""

    if TYPE_CHECKING:

        def __getitem__(self, key: K, /) -> V: ...
        def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[K]:
        """The keys, in order; in a bag each as often as it has values."""
        return self._walk("keys")

    def __reversed__(self) -> Iterator[K]:
        """The keys, the last one first."""
        return self._walk("keys", is_reversed=True)

    def keys(self) -> KeysView[K]:
        """A view of the keys."""
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        """A view of the values, in the order of their keys."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """A view of the keys and values. In a bag each value is an item of its own."""
        return _Items(self)

    def range(self, start: Any = None, stop: Any = None, *, reverse: bool = False) -> Iterator[tuple[K, V]]:
        """The rows whose keys lie from `start` on and before `stop`; without either, from the first or to the last.

        Keys of all types have an order: None, numbers, text, bytes, dates and the like, tuples.
        """
        return self._walk("items", start=start, stop=stop, is_reversed=reverse)

    def prefix(self, items: tuple[Any, ...], *, reverse: bool = False) -> Iterator[tuple[K, V]]:
        """The rows whose keys are tuples that begin with these items."""
        return self._walk("items", prefix=_items(items), is_reversed=reverse)

    def first(self) -> K | None:
        """The smallest key; None if there is none."""
        return next(self._walk("keys"), None)

    def last(self) -> K | None:
        """The largest key; None if there is none."""
        return next(self._walk("keys", is_reversed=True), None)

    def next(self, key: Any) -> K | None:
        """The smallest key that is larger than this one, which need not be there; None if there is none."""
        return next(self._walk("keys", after=key), None)

    def prev(self, key: Any) -> K | None:
        """The largest key that is smaller than this one, which need not be there; None if there is none."""
        return next(self._walk("keys", before=key, is_reversed=True), None)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Readable):
            return type(other) is type(self) and other.name == self.name
        return isinstance(other, Mapping) and dict(self.items()) == dict(other.items())

    def __hash__(self) -> int:
        return hash((type(self), self.name))


class TableSnapshot(_Readable[K, V]):
    """A table as it was at one moment, until it is closed.

    As long as it is open the rows of that moment are kept, beside those that take their places: it should not stay open
    for long.
    """

    def __enter__(self) -> TableSnapshot[K, V]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it: nothing of that moment is kept for it any more."""
        self._close()

    def __repr__(self) -> str:
        return f"<snapshot of the table {self.name!r}>"


class Table(_Readable[K, V], MutableMapping[K, V]):
    """A table, by its name: made by `rebeam.table`, or a child of the tree.

    To a `set` and an `ordered_set` it is a dictionary. In a `bag` and a `duplicate_bag` a key has several values:
    reading gives the list of them, `insert` adds one. A handle may be sent to other actors, and may be had before the
    table is there.

    Args:
        name: what it is called; two tables of a node cannot have the same name.
        kind: "set" (one value per key; 1, 1.0 and True are three keys), "ordered_set" (the three are one key), "bag"
            (several values per key, each once) or "duplicate_bag".
        access: who may do what: "protected" (all read, the owner writes), "public" (all write, too) or "private" (the
            owner alone reads and writes). In the tree, where a supervisor owns it, the default is "public".
        ttl: for how many seconds a row stays after it was written; None: until it is removed.
        max_bytes: how many bytes its rows may have: a number, or text like "64MiB". Default: what all tables may.
        on_full: what a row does that is too much: "error" (the change raises `TableFull`) or "oldest" (the rows go that
            were written longest ago).

    Raises:
        SpecError: a wrong word, or a value that makes no sense.
    """

    if TYPE_CHECKING:

        def __setitem__(self, key: K, value: V, /) -> None: ...
        def __delitem__(self, key: K, /) -> None: ...

    def __new__(
        cls,
        name: str,
        *,
        kind: TableKind = "set",
        access: Access | None = None,
        ttl: float | None = None,
        max_bytes: int | str | None = None,
        on_full: OnTableFull = "error",
    ) -> Table[K, V]:
        if not isinstance(name, str) or not name:
            raise SpecError(f"the name of a table is text, not {name!r}")
        self = super().__new__(cls, name)
        self._kind = one_of("kind", kind, TableKind)
        self._access = None if access is None else one_of("access", access, Access)
        self._ttl = _seconds(ttl)
        self._max_bytes = None if max_bytes is None else size_in_bytes("max_bytes", max_bytes)
        self._on_full = one_of("on_full", on_full, OnTableFull)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, (self.name,)

    def __repr__(self) -> str:
        return f"rebeam.table({self.name!r})"

    # ---- one row ---------------------------------------------------------------------------------------------------

    def insert(self, key: K, value: Any, *, ttl: float | None = None) -> None:
        """Puts a value under a key: in a bag beside what is there, else in its place.

        Args:
            ttl: for how many seconds it stays. Default: the table's own `ttl`.
        """
        self._put_rows(((key, value),), ttl=_seconds(ttl))

    def insert_new(self, key: K, value: Any, *, ttl: float | None = None) -> bool:
        """Puts a value under a key if nothing is there, for as long as `insert` does; whether it did."""
        return self._put_rows(((key, value),), only_new=True, ttl=_seconds(ttl))

    def touch(self, key: K, *, ttl: float | None = None) -> bool:
        """Has what is under a key stay as if it had just been put; whether there is something. Not for bags."""
        while True:
            found = self._versioned(key)
            if found is None:
                return False
            if self._put_rows(((key, found[1]),), only_version=found[0], ttl=_seconds(ttl)):
                return True

    def put_many(
        self,
        rows: Mapping[K, Any] | Iterable[tuple[K, Any]],
        *,
        only_new: bool = False,
        ttl: float | None = None,
    ) -> bool:
        """Puts many rows, all or none of them, and much faster than one by one.

        Args:
            rows: a mapping, or pairs of keys and values.
            only_new: puts none if one of the keys is there.
            ttl: for how many seconds they stay. Default: the table's own `ttl`.

        Returns:
            Whether they were put.
        """
        pairs = rows.items() if isinstance(rows, Mapping) else rows
        return self._put_rows(pairs, only_new=only_new, ttl=_seconds(ttl))

    def delete(self, key: K, value: Any = _MISSING) -> int:
        """Removes what is under a key, or, in a bag, one value of it; how many rows. A missing key is no error."""
        if value is not _MISSING:
            return self._remove_value(key, value)
        return self._remove(key) or 0

    def delete_prefix(self, items: tuple[Any, ...]) -> int:
        """Removes all rows whose keys are tuples that begin with these items; how many that were."""
        return self._remove_all(_items(items))

    def delete_all(self) -> int:
        """Removes all rows; how many that were."""
        return self._remove_all()

    def clear(self) -> None:
        """Removes all rows."""
        self._remove_all()

    def take(self, key: K) -> list[Any]:
        """Removes what is under a key, and gives its values as a list: none, one, or, in a bag, several. Of several
        actors that take at once, one gets them."""
        return self._take_all(key)

    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Removes what is under a key, and gives it; of a bag, the list of values.

        Raises:
            KeyError: nothing is there, and no default was given.
        """
        taken = self._take_all(key)
        if not taken:
            if default is _MISSING:
                raise KeyError(key)
            return default
        return taken if self.is_bag() else taken[0]

    def popitem(self) -> tuple[K, V]:
        """Removes the first row, and gives its key and value.

        Raises:
            KeyError: the table is empty.
        """
        for key in self:
            taken = self._take_all(key)
            if taken:
                return key, cast("V", taken if self.is_bag() else taken[0])
        raise KeyError("the table is empty")

    def setdefault(self, key: K, default: Any = None) -> Any:
        """What is under a key; if nothing is, the default, which is there from then on."""
        while True:
            found = self.get(key, _MISSING)
            if found is not _MISSING:
                return found
            if self.insert_new(key, default):
                return [default] if self.is_bag() else default

    def update_counter(self, key: K, by: Any = 1, *, default: Any = _MISSING) -> Any:
        """Adds to the number under a key, in one step; the sum.

        Args:
            key: the key.
            by: what to add: a whole number or a float.
            default: the number that counts as there if none is.

        Raises:
            KeyError: nothing is there, and no default was given.
            ValueError: what is there is no number.
        """
        total = self._add(key, by, None if default is _MISSING else default)
        if total is None:
            raise KeyError(key)
        return total

    def compare_and_set(self, key: K, expected: Any, value: Any) -> bool:
        """Puts a value under a key if what is there equals what is expected; whether it did. Not for bags."""
        while True:
            found = self._versioned(key)
            if found is None or found[1] != expected:
                return False
            if self._put_rows(((key, value),), only_version=found[0]):
                return True

    @overload  # type: ignore[override]
    def update(self, key: K, fn: Callable[[V], V], /, *, default: V = ...) -> V: ...
    @overload
    def update(self, rows: Mapping[K, V] | Iterable[tuple[K, V]] = ..., /, **named: V) -> None: ...

    def update(self, /, *args: Any, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With a key and a function: puts what the function makes of the value under the key, and gives it.

        The function runs in the actor that asks, and again if somebody has changed the row meanwhile. Not for bags.

        With a mapping or pairs, as of a dictionary: puts all of them, in one step.

        Args:
            default: what the function gets if nothing is there.

        Raises:
            KeyError: nothing is there, and no default was given.
        """
        if len(args) == 2:
            return self._update_one(*args, **named)
        rows: dict[Any, Any] = {**dict(*args), **named}
        self.put_many(rows)
        return None

    def _update_one(self, key: K, fn: Callable[[Any], Any], *, default: Any = _MISSING) -> Any:
        while True:
            found = self._versioned(key)
            if found is None and default is _MISSING:
                raise KeyError(key)
            value = fn(default if found is None else found[1])
            if found is None:
                is_done = self._put_rows(((key, value),), only_new=True)
            else:
                is_done = self._put_rows(((key, value),), only_version=found[0])
            if is_done:
                return value

    def get_or_compute(self, key: K, fn: Callable[[], V], *, ttl: float | None = None) -> V:
        """What is under a key; if nothing is, what the function makes, which is there from then on. Not for bags.

        The function runs once for all actors that ask meanwhile: they wait for it. If it raises, or its actor ends, it
        runs again for the next one of them.

        Args:
            ttl: for how many seconds the value stays. Default: the table's own `ttl`.

        Raises:
            DeadlockError: the function asks for the same key.
        """
        return _pending.follow(self._computing(key, fn, ttl), "aget_or_compute")

    async def aget_or_compute(self, key: K, fn: Callable[[], V | Awaitable[V]], *, ttl: float | None = None) -> V:
        """`get_or_compute`, to be awaited; the function may be asynchronous, too."""
        while True:
            found = self._found(key)
            if found is not _MISSING:
                return cast("V", found)
            claim = self._claim(key)
            try:
                if not await _pending.answer(claim):
                    continue
            except StoreRestarted:
                continue
            except BaseException:
                # Cancelled: it is not to be this one's turn when nobody waits for it.
                self._release(key, claim.number)
                raise
            with self._own(key, claim):
                made: Any = fn()
                if inspect.isawaitable(made):
                    made = await made
                self._put_computed(key, made, ttl)
            return cast("V", made)

    def _computing(self, key: K, fn: Callable[[], V], ttl: float | None) -> _pending.Steps[V]:
        while True:
            found = self._found(key)
            if found is not _MISSING:
                return cast("V", found)
            claim = self._claim(key)
            try:
                is_ours = yield claim
            except StoreRestarted:
                continue
            except BaseException:
                self._release(key, claim.number)
                raise
            if not is_ours:
                continue
            with self._own(key, claim):
                made = fn()
                self._put_computed(key, made, ttl)
            return made

    def _found(self, key: K) -> Any:
        if self.is_bag():
            raise ValueError(f"`{self.name}` is a bag: a key may have further values at any time")
        found = self.get(key, _MISSING)
        if found is _MISSING and (self.name, key) in _computed.get():
            raise DeadlockError(f"what is under {key!r} of `{self.name}` would be computed out of itself")
        return found

    @contextmanager
    def _own(self, key: K, claim: _rebeam.Asked) -> Iterator[None]:
        """It is this one's turn: if it fails, it is the next one's."""
        token = _computed.set((*_computed.get(), (self.name, key)))
        try:
            yield
        except BaseException:
            self._release(key, claim.number)
            raise
        finally:
            _computed.reset(token)

    def _put_computed(self, key: K, made: Any, ttl: float | None) -> None:
        while True:
            try:
                return self.insert(key, made, ttl=ttl)
            except StoreRestarted:
                continue

    # ---- the table -------------------------------------------------------------------------------------------------

    def snapshot(self) -> TableSnapshot[K, V]:
        """The table as it is now, to read several rows of one moment: `with table.snapshot() as now: ...`."""
        pinned: TableSnapshot[K, V] = TableSnapshot(self.name)
        pinned._pin()
        return pinned

    @overload
    def watch(self, key: K, /) -> int: ...
    @overload
    def watch(self, /, *, prefix: tuple[Any, ...] | None = ...) -> int: ...

    def watch(self, key: Any = _MISSING, /, *, prefix: tuple[Any, ...] | None = None) -> int:
        """Has a `TableChange` come to `handle_info` when a row is put or removed, or has expired: under a key, under
        the keys of tuples that begin with these items, or any row.

        Whatever changes from now on is told. At most one message of a watch waits in the mailbox: what changes before
        the actor takes it comes with the next one, so an actor that is slow is told less often, but misses nothing.
        The message says which keys have changed, up to 1000, and 16 KiB of them; what is under them now, a look says.

        Args:
            key: the key. Default: any.
            prefix: what the keys begin with.

        Returns:
            The number that the messages carry; `rebeam.unwatch` takes it.

        Raises:
            NoTable: there is no such table.
            TableAccess: it is private to another actor.
        """
        if key is _MISSING:
            return self._watch(prefix=None if prefix is None else _items(prefix))
        if prefix is not None:
            raise SpecError("either a key is watched or a prefix, not both")
        return self._watch(key)

    def info(self) -> TableInfo:
        """What is known of the table."""
        kind, access, owner, rows, size = self._facts()
        return TableInfo(self.name, kind, access, Pid(*owner), rows, size)

    def is_bag(self) -> bool:
        """Whether a key may have several values."""
        return self._facts()[0] in ("bag", "duplicate_bag")

    def exists(self) -> bool:
        """Whether there is such a table now."""
        return self.name in _rebeam.table_names()

    def give_away(self, to: To, data: Any = None) -> None:
        """Gives the table, with its rows, to another actor, which gets a `TableTransfer`. Only its owner may.

        Args:
            to: to whom.
            data: what to say with it, up to 64 KiB.

        Raises:
            TableAccess: it is not this actor's.
            NoProc: there is no such actor, or it is this one.
        """
        self._give(address(to), data)

    def heir(self, to: To | None, data: Any = None) -> None:
        """Says who is to own the table, with its rows, when its owner ends; it gets a `TableTransfer` then. Only its
        owner may.

        Args:
            to: who; None: the table goes with its owner.
            data: what to say with it, up to 64 KiB.

        Raises:
            TableAccess: it is not this actor's.
            NoProc: there is no such actor.
        """
        self._set_heir(None if to is None else address(to), data)

    def drop(self) -> None:
        """Deletes the table with all its rows, and frees its name. The owner may, and anybody if it is public."""
        super().drop()


def table(
    name: str,
    *,
    kind: TableKind | None = None,
    access: Access | None = None,
    owner: To | None = None,
    heir: To | None = None,
    ttl: float | None = None,
    max_bytes: int | str | None = None,
    on_full: OnTableFull | None = None,
) -> Table[Any, Any]:
    """A table of this node, by its name.

    With an option it is made, and belongs to the actor that makes it; without one this is a handle on the table that
    somebody else makes.

    Args:
        name: what it is called.
        kind: see `Table`. Default: "set".
        access: see `Table`. Default: "protected".
        owner: another actor, or a supervisor, with whose end the table goes. Default: the actor that makes it.
        heir: who owns it after that, see `Table.heir`; not together with `owner`. Default: nobody.
        ttl: for how many seconds a row stays after it was written. Default: until it is removed.
        max_bytes: see `Table`. Default: what all tables together may.
        on_full: see `Table`. Default: "error".

    Raises:
        TableExists: it is to be made, and the name is taken.
        NoProc: there is no such owner.
    """
    made: Table[Any, Any] = Table(
        name, kind=kind or "set", access=access, ttl=ttl, max_bytes=max_bytes, on_full=on_full or "error"
    )
    if owner is not None and heir is not None:
        raise SpecError(f"the heir of `{name}` is its owner's to choose: not `owner=` and `heir=` together")
    if any(option is not None for option in (kind, access, owner, heir, ttl, max_bytes, on_full)):
        whose = None if owner is None else address(owner)
        made._make(made._kind, access or "protected", whose, made._ttl, made._max_bytes, made._on_full)
        if heir is not None:
            try:
                made.heir(heir)
            except BaseException:
                made.drop()
                raise
    return made


def tables() -> list[str]:
    """The names of all tables, in order."""
    return _rebeam.table_names()


def _items(prefix: object) -> tuple[Any, ...]:
    if not isinstance(prefix, tuple):
        raise TypeError(f"a prefix is a tuple of the items that keys begin with: not {prefix!r}, but {(prefix,)!r}")
    return prefix


def _seconds(ttl: float | None) -> float | None:
    if ttl is None:
        return None
    if not is_number(ttl) or not 0 < ttl < 1e12:
        raise SpecError(f"ttl={ttl!r}: it is a number of seconds, more than 0")
    return float(ttl)


def transferred(name: str, old_owner: tuple[int, int, int], data: Any) -> TableTransfer:
    """The message that `_rebeam` hands on."""
    return TableTransfer(Table(name), Pid(*old_owner), data)


def changed(watch: int, name: str, keys: list[Any] | None, is_gone: bool) -> TableChange:
    """The message that `_rebeam` hands on."""
    return TableChange(watch, Table(name), keys, is_gone)


def _handle(name: str) -> Table[Any, Any]:
    return Table(name)
