"""Who is called what: names, registries of the tree, groups; and watching them.

Looks are answered by a replica in this process, which is kept fresh without a message: it shows what the supervisor
knew at the moment of the look. Changes are requests to the supervisor; when one has returned, everybody sees it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import ItemsView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from rebeam import _errors, _pending, _rebeam
from rebeam._options import Keys, Pick, one_of
from rebeam._ref import ActorRef, Pid, Target, To, Via, address, method_name
from rebeam._spec import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebeam._actor import Actor

A = TypeVar("A", bound="Actor")
P = ParamSpec("P")
K = TypeVar("K")
V = TypeVar("V")


class Entry(NamedTuple):
    """An entry of a registry.

    Attributes:
        pid: the incarnation that holds it, and with which it goes.
        value: what it was entered with, or updated to; None if nothing.
    """

    pid: Pid
    value: Any


class Watch(NamedTuple):
    """A key that this actor watches, until `unwatch`.

    Attributes:
        number: as the messages about it carry it.
        entries: what there was when it began: a `Pid` each; of a registry of the tree, an `Entry` each.
    """

    number: int
    entries: list[Any]


class Registered(NamedTuple):
    """Somebody has a name or a key that this actor watches, or has given its entry another value. For `handle_info`.

    Attributes:
        watch: the number of the watch.
        key: the name or the key.
        pid: who.
        value: the entry's value; None for names.
    """

    watch: int
    key: Any
    pid: Pid
    value: Any


class Unregistered(NamedTuple):
    """Somebody has given up a name or a key that this actor watches, or has ended. For `handle_info`.

    Attributes:
        watch: the number of the watch.
        key: the name or the key.
        pid: who.
    """

    watch: int
    key: Any
    pid: Pid


class Joined(NamedTuple):
    """Somebody has joined a group that this actor watches. For `handle_info`.

    Attributes:
        watch: the number of the watch.
        group: its name.
        pid: who.
    """

    watch: int
    group: str
    pid: Pid


class Left(NamedTuple):
    """Somebody has left a group that this actor watches, or has ended. For `handle_info`.

    Attributes:
        watch: the number of the watch.
        group: its name.
        pid: who.
    """

    watch: int
    group: str
    pid: Pid


def entered(is_group: bool, watch: int, key: Any, pid: Pid, value: Any) -> Registered | Joined:
    """Made by `_rebeam`."""
    return Joined(watch, key, pid) if is_group else Registered(watch, key, pid, value)


def left(is_group: bool, watch: int, key: Any, pid: Pid) -> Unregistered | Left:
    """Made by `_rebeam`."""
    return Left(watch, key, pid) if is_group else Unregistered(watch, key, pid)


class _View(Mapping[K, V]):
    """What is common to all views: they go over the keys of a table, and over what it holds at one moment."""

    __slots__ = ()

    _table: _rebeam.Registry

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def __contains__(self, key: object) -> bool:
        return key in self._table

    def __iter__(self) -> Iterator[K]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class _Items(ItemsView[K, V]):
    """What a view holds, as it was at one moment."""

    _mapping: _View[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(self._mapping._table.snapshot())


class _Values(ValuesView[V]):
    """The same without the keys."""

    _mapping: _View[Any, V]

    def __iter__(self) -> Iterator[V]:
        return iter([value for _, value in self._mapping._table.snapshot()])


# ---- names -------------------------------------------------------------------------------------------------------

_names = _rebeam.Registry("names", "")


class Names(_View[str, Pid]):
    """The names of the node and their living holders, as a mapping that is kept fresh by itself.

    It can be looked at as soon as there is a process, while a module is imported, too. An iterator over it raises
    `RuntimeError` on its next step once a name has come or gone; `items()` and `values()` go over what there was when
    they were iterated.
    """

    _table = _names

    def __getitem__(self, name: str) -> Pid:
        found: Pid | None = _names.first(name)
        if found is None:
            raise KeyError(name)
        return found

    def __repr__(self) -> str:
        return f"<{len(self)} names>"


registry = Names()


def whereis(name: str | Via, *, fresh: bool = False) -> Pid | None:
    """The living incarnation that has this name or key, or None. It may be dead by the time it is used.

    Args:
        name: a name, or what `via` gives.
        fresh: asks the supervisor instead of looking at what this process knows.

    Raises:
        NotAnActor: outside a node.
    """
    if fresh:
        found = _rebeam.resolve(address(name))
        return Pid(*found) if found else None
    pid: Pid | None = _rebeam.find(name)
    return pid


def register(name: str, actor: To | None = None) -> None:
    """Gives an actor a name, until it ends or `unregister`. One of the tree (`child(…, name=…)`) lasts over restarts.

    Args:
        actor: whom; default: this one.

    Raises:
        AlreadyRegistered: somebody has it; `pid` says who.
        NoProc: there is no such actor.
    """
    _check_name(name, "register")
    _names.enter(name, None, None if actor is None else address(actor))


def unregister(name: str) -> None:
    """Takes a name back that was given with `register`, from whoever has it.

    Raises:
        NotRegistered: nobody has it.
        ValueError: it is a name of the tree.
    """
    _check_name(name, "unregister")
    _names.leave(name)


def _check_name(name: object, method: str) -> None:
    from rebeam import _spec

    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name; under a key, use the `{method}` of the registry")
    _spec.check_label("name", name)


def wait_for(name: To, timeout: float | None = 5.0) -> Pid:
    """Waits until there is a running incarnation behind a name, a key or a handle: one whose `init` has returned.

    Args:
        timeout: seconds; None: as long as it takes.

    Raises:
        TimeoutError: nobody came in time.
        NoProc: it is a `Pid`, or a handle on one, that has ended.
        DeadlockError: its `init` waits for this very actor.
    """
    return _pending.follow(_wait_for(name, timeout), "wait_for")


async def await_for(name: To, timeout: float | None = 5.0) -> Pid:
    """`wait_for`, to be awaited."""
    return await _pending.afollow(_wait_for(name, timeout))


def _wait_for(name: To, timeout: float | None) -> _pending.Steps[Pid]:
    found = yield _rebeam.wait_for(address(name), timeout)
    if found is None and isinstance(address(name), Pid):
        raise _errors.NoProc(f"there is no actor `{name}`")
    if found is None:
        raise TimeoutError(f"nobody came up as `{name}` within {timeout} s")
    return Pid(*found)


def watch(name: str) -> Watch:
    """Has `Registered` and `Unregistered` come to `handle_info` as a name gets and loses its holder.

    Those that come while this actor's mailbox is full are not told.

    Returns:
        Who has it now, and the number that the messages carry.
    """
    _check_name(name, "watch")
    return Watch(*_names.watch(name))


def unwatch(watch: Watch | int) -> None:
    """Ends a watch. What has come of it and waits in the mailbox is taken out, too."""
    _rebeam.unwatch(watch.number if isinstance(watch, Watch) else watch)


def via(registry: Registry | str, key: Any) -> Via:
    """The address of whoever has a key of a registry of the tree. It can stand wherever a name can.

    Args:
        registry: a registry with unique keys, or its name.
        key: text, a number, bytes, None, or a tuple of those.

    Raises:
        ValueError: its keys are not unique.
    """
    if not isinstance(registry, (str, Registry)):
        raise TypeError(f"{registry!r} is no registry: give it or its name")
    if isinstance(registry, Registry) and registry.kind != "unique":
        raise ValueError(f"`{registry.name}` has duplicate keys: `dispatch` to its entries")
    return Via(registry if isinstance(registry, str) else registry._of, _rebeam.registry_key(key))


# ---- registries of the tree --------------------------------------------------------------------------------------


class Registry(Supervisor, _View[Any, Any]):
    """A registry: a child of a supervisor that holds no processes but entries, and the handle on it.

        rooms = rebeam.Registry("rooms")
        tree = Supervisor([rooms, …])

    An actor enters itself under a key; the entry goes with its incarnation. Everybody looks: as a mapping it gives the
    `Entry` of a key, or the list of them where keys may have several. Entries are found without a message. An iterator
    raises `RuntimeError` on its next step once an entry has come or gone; `items()` and `values()` go over what there
    was at one moment. Keys are text, numbers, bytes, None, or tuples of those, and compare with their type: 1, 1.0 and
    True are three. A value is whatever can be pickled, up to 64 KiB; each look gives a copy.

    Args:
        name: its name in the tree.
        keys: `unique` (one holder per key, which can be addressed by `via`) or `duplicate` (any number of entries).

    Raises (all methods):
        NoProc: no such registry is running.
        TypeError: a key that is none.
    """

    __slots__ = ("_table", "kind")

    def __init__(self, name: str, *, keys: Keys = "unique") -> None:

        super().__init__([], name=name)
        self.kind = one_of("keys", keys, Keys)
        self._table = _rebeam.Registry(self.kind, name)

    @property
    def _of(self) -> str:
        return str(self.name)

    def register(self, key: Any, value: Any = None) -> None:
        """Enters this actor under a key.

        Raises:
            AlreadyRegistered: a unique key that is held, be it by this actor; `pid` says by whom.
            ValueError: the key or the value is too large.
        """
        self._table.enter(key, value)

    def unregister(self, key: Any) -> None:
        """Takes out all entries of this actor under a key.

        Raises:
            NotRegistered: there is none.
        """
        self._table.leave(key)

    def update(self, key: Any, value: Any) -> None:
        """Gives this actor's entry under a key another value; the first one, if it has several.

        Raises:
            NotRegistered: it has none: values are changed by their holders only.
        """
        self._table.update(key, value)

    def lookup(self, key: Any, *, fresh: bool = False) -> list[Entry]:
        """The entries under a key, oldest first.

        Args:
            fresh: asks the supervisor instead of looking at what this process knows.
        """
        return self._table.ask_all(key) if fresh else self._table.all(key)

    def match(self, key: Any, fits: type | tuple[type, ...] | Callable[[Any], object]) -> list[Entry]:
        """The entries under a key whose value fits: is of a type, or makes a function say yes."""
        if isinstance(fits, (type, tuple)):
            return [entry for entry in self.lookup(key) if isinstance(entry.value, fits)]
        return [entry for entry in self.lookup(key) if fits(entry.value)]

    def dispatch(self, key: Any, function: Callable[[list[Entry]], object]) -> None:
        """Calls a function, here, with the entries under a key; not at all if there are none."""
        entries = self.lookup(key)
        if entries:
            function(entries)

    def keys_of(self, actor: ActorRef[Any] | Pid | None = None) -> list[Any]:
        """The keys that an actor has; default: this one."""
        from rebeam import _process, _runtime

        pid = _runtime.me().pid if actor is None else _process.living(actor)
        return [] if pid is None else self._table.keys_of(pid)

    def watch(self, key: Any) -> Watch:
        """Has `Registered` and `Unregistered` come to `handle_info` as entries under a key come, change and go.

        Returns:
            What there is now, and the number that the messages carry.
        """
        return Watch(*self._table.watch(key))

    def __getitem__(self, key: Any) -> Any:
        found = self._table.first(key) if self.kind == "unique" else self._table.all(key)
        if not found:
            raise KeyError(key)
        return found

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registry) and (self.name, self.kind) == (other.name, other.kind)

    def __hash__(self) -> int:
        return hash((self.name, self.kind))

    def __reduce__(self) -> tuple[Any, ...]:
        return _registry, (self.name, self.kind)

    def __repr__(self) -> str:
        return f"<Registry {self.name!r}, {self.kind} keys>"


def _registry(name: str, keys: Keys) -> Registry:
    return Registry(name, keys=keys)


# ---- groups ------------------------------------------------------------------------------------------------------

_groups = _rebeam.Registry("groups", "")

_turns: dict[str, Iterator[int]] = {}
"""Per group, whose turn it is in this process."""


class Group(Generic[A]):
    """A group of actors, as OTP's `pg`: it exists while it has members. Made by `group`.

    A member that has joined several times is listed as often, and gets as many copies of what is sent to all.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        from rebeam import _spec

        _spec.check_label("group", name)
        self.name = name

    def join(self, actor: To | None = None) -> None:
        """Has an actor join, until it ends or leaves; default: this one.

        Raises:
            NoProc: there is no such actor.
        """
        _groups.enter(self.name, None, None if actor is None else address(actor))

    def leave(self, actor: To | None = None) -> None:
        """Has an actor leave, as often as it has joined; default: this one.

        Raises:
            NotRegistered: it has not joined.
        """
        _groups.leave(self.name, None if actor is None else address(actor))

    def members(self, *, fresh: bool = False) -> list[ActorRef[A]]:
        """The members, in the order in which they joined, each by its incarnation.

        Args:
            fresh: asks the supervisor instead of looking at what this process knows.
        """
        return [ActorRef(pid) for pid in (_groups.ask_all(self.name) if fresh else _groups.all(self.name))]

    def watch(self) -> Watch:
        """Has `Joined` and `Left` come to `handle_info`.

        Returns:
            Who is in it now, and the number that the messages carry.
        """
        return Watch(*_groups.watch(self.name))

    def broadcast(self, method: Callable[Concatenate[A, P], Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Casts to every member. It is sent once and handed out by the supervisor."""
        _rebeam.cast((self.name,), method_name(method), args, kwargs, Target())

    def send(self, message: Any) -> None:
        """Sends a message to every member, for `handle_info`."""
        _rebeam.send_message((self.name,), "handle_info", message, ...)

    def pick(self, how: Pick = "random") -> ActorRef[A]:
        """One of the members.

        Args:
            how: `random`; `round_robin` (one after the other, as this process counts); `least_waiting` (for whom the
                fewest messages wait, as the supervisor knows).

        Raises:
            NoProc: the group is empty.
        """

        one_of("how", how, Pick)
        if how == "least_waiting":
            found = _groups.least_busy(self.name)
            if found is None:
                raise self._empty()
            return ActorRef(Pid(*found))
        members = _groups.all(self.name)
        if not members:
            raise self._empty()
        if how == "random":
            return ActorRef(random.choice(members))
        turn = next(_turns.setdefault(self.name, itertools.count()))
        return ActorRef(members[turn % len(members)])

    def _empty(self) -> _errors.NoProc:
        return _errors.NoProc(f"the group `{self.name}` is empty")

    def __len__(self) -> int:
        return len(_groups.all(self.name))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[ActorRef[A]]:
        return iter(self.members())

    def __contains__(self, actor: object) -> bool:
        from rebeam import _process

        return isinstance(actor, (ActorRef, Pid, str)) and _process.living(actor) in _groups.all(self.name)

    def __repr__(self) -> str:
        return f"<Group {self.name!r}>"


def group(actor: type[A], name: str) -> Group[A]:
    """A handle on a group.

    Args:
        actor: the class of its members, for the types of their methods.
        name: its name.
    """
    return Group(name)


class Groups(_View[str, "list[Pid]"]):
    """The groups of the node and their members, as a mapping that is kept fresh by itself; see `registry`."""

    _table = _groups

    def __getitem__(self, name: str) -> list[Pid]:
        found: list[Pid] = _groups.all(name)
        if not found:
            raise KeyError(name)
        return found

    def __repr__(self) -> str:
        return f"<{len(self)} groups>"


groups = Groups()
