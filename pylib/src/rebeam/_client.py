"""From an ordinary Python process or a notebook to a running node: plain data in and out, never a pickle."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, Unpack, overload

from rebeam import _rebeam
from rebeam._errors import ActorDied, NoProc, SpecError, is_undelivered
from rebeam._exit import Certificate, certificate
from rebeam._functions import MOST_TRIES
from rebeam._gateway import _TABLE_METHODS, raised
from rebeam._options import checked_timeout
from rebeam._ref import ActorRef, Pid, Target, Via
from rebeam._stream import Batch, Stream, from_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebeam._actor import Actor
    from rebeam._options import ChildOptions, Priority
    from rebeam._ref import Timeout

A = TypeVar("A", bound="Actor")
R = TypeVar("R")

_DEFAULT_TIMEOUT = 5.0

_MOST_IDLE = 2
"""Connections that are kept for later requests."""


class ActorInfo(NamedTuple):
    """One actor of a node.

    Attributes:
        path: its path in the tree.
        name: its registered name, or None.
        state: `starting`, `running`, `stopping`, `restarting`, `recycling`, `reloading`, `parked` or `stopped`.
        class_name: module and class.
        restarts: how often it was started again.
        waiting: messages that wait for it.
        version: the version of the code that it runs (see `rebeam.version`); None if it does not run.
    """

    path: str
    name: str | None
    state: str
    class_name: str
    restarts: int
    waiting: int
    version: int | None


class Node:
    """A connection to a running node, made by `connect`. Threads and tasks may share it.

    It outlives the node: when that was started again, the next request goes to the new one.
    """

    def __init__(self, directory: str, is_chosen: bool) -> None:
        self._place = directory, is_chosen
        self._lock = threading.Lock()
        self._is_closed = False
        self._idle: list[_rebeam.Client] = [_connected(*self._place)]

    @overload
    def start(
        self, what: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[A]: ...
    @overload
    def start(
        self, what: str, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[Any]: ...
    def start(
        self, what: Any, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[Any]:
        """Starts an actor in the node, as `rebeam.start` does within it; returns when it runs.

        Args:
            what: its class, or `"module:Class"`, which the node imports; of a function `"module:function"`.
            args: arguments of its `init`, plain data as all that is sent from outside.
            supervisor: the name of the supervisor that it is to be a child of. Default: the node's own.
            options: as for `child`, `name` among them; plain data.

        Raises:
            ChildError: as `rebeam.start`.
            SpecError: an option that makes no sense, or something that the node cannot import or that is no actor.
            TypeError: an argument that is not plain data.
        """
        return self._start(what, args, options, supervisor)

    async def astart(
        self, what: type[A] | str, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[A]:
        """`start`, to be awaited."""
        return await asyncio.to_thread(self._start, what, args, options, supervisor)

    def _start(self, what: Any, args: tuple[Any, ...], options: ChildOptions, supervisor: str | None) -> ActorRef[Any]:
        address = self._by_gateway("start", (_named(what), list(args), options, supervisor))["address"]
        return OutsideRef(self, address)

    @overload
    def get_or_start(
        self, name: str, actor: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[A]: ...
    @overload
    def get_or_start(
        self, name: str, actor: str, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[Any]: ...
    def get_or_start(
        self, name: str, actor: Any, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
    ) -> ActorRef[Any]:
        """The actor with this name, which is started in the node if there is none, as `rebeam.get_or_start` does.

        Of many callers at once, within the node and outside, one starts it, and all get it. The handle starts it again
        if there is none when it is used.

        Args:
            name: its name.
            actor: its class, or `"module:Class"`, which the node imports.
            args, supervisor, options: as for `start`.

        Raises:
            ChildError: as `rebeam.get_or_start`.
            SpecError, TypeError: as `start`.
        """
        return self._get_or_start(name, actor, args, options, supervisor)

    async def aget_or_start(
        self,
        name: str,
        actor: type[A] | str,
        /,
        *args: Any,
        supervisor: str | None = None,
        **options: Unpack[ChildOptions],
    ) -> ActorRef[A]:
        """`get_or_start`, to be awaited."""
        return await asyncio.to_thread(self._get_or_start, name, actor, args, options, supervisor)

    def _get_or_start(
        self, name: str, actor: Any, args: tuple[Any, ...], options: ChildOptions, supervisor: str | None
    ) -> ActorRef[Any]:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name; from outside, actors are found by names")
        starter = _Starter(self, (name, _named(actor), list(args), options, supervisor))
        starter.see_to()
        return OutsideRef(starter, name)

    def ref(self, actor: type[A], name: str) -> ActorRef[A]:
        """A handle on the actor with this name or path: `call`, `cast`, `stream` and their awaitable forms work as
        within a tree.

        Arguments and results are plain data: None, bool, int, float, str, bytes, list, tuple, dict, set, dates and
        times, `Decimal` and `UUID`. Numbers, times and arrays of numpy, and `Timestamp` and `Timedelta` of pandas, go
        as Python's own, unless that would lose a part of a microsecond. An exception comes as `RemoteError`.
        """
        return OutsideRef(self, name)

    def actors(self) -> list[ActorInfo]:
        """The actors of the node, in tree order."""
        with self._client() as client:
            return [ActorInfo(**fields) for fields in client.actors()]

    def names(self) -> dict[str, Pid]:
        """Who has which name."""
        with self._client() as client:
            return {name: Pid(*pid) for name, pid in client.names()}

    def why(self, name: str) -> list[Certificate]:
        """The last deaths of the actor with this name or path, oldest first.

        Raises:
            NoProc: there is no such actor.
        """
        with self._client() as client:
            return [certificate(fields) for fields in client.why(name)]

    def close(self) -> None:
        """Closes it. What is under way comes to its end."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Node at {self._place[0]}>"

    @contextmanager
    def _client(self) -> Iterator[_rebeam.Client]:
        """A connection of one's own for the time of a request; one that has failed is not used again."""
        client = self.take()
        try:
            yield client
        except ConnectionError:
            client.close()
            raise
        except BaseException:
            self.put_back(client)
            raise
        self.put_back(client)

    def take(self) -> _rebeam.Client:
        """A connection that nobody else uses, until it is put back or closed."""
        with self._lock:
            if self._is_closed:
                raise ConnectionError("this connection was closed")
            client = self._idle.pop() if self._idle else None
        if client is not None and not client.is_connected():
            # The node has ended. If it was started again, it is found; others that are idle lead to the one before.
            client = None
        return client or _connected(*self._place)

    def put_back(self, client: _rebeam.Client) -> None:
        """Keeps a connection for the next request."""
        with self._lock:
            if not self._is_closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(client)
                return
        client.close()

    def call(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> Any:
        """What a reference of this node does for `call`."""
        with self._client() as client:
            return client.call(to, method, args, kwargs, _seconds(target))

    def cast(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> None:
        """What a reference of this node does for `cast`."""
        with self._client() as client:
            client.cast(to, method, args, kwargs)

    def _by_gateway(self, method: str, args: tuple[Any, ...]) -> dict[str, Any]:
        """Has this connection's gateway do something, for as long as that takes."""
        options: dict[str, Any] = args[-2]
        for option, value in options.items():
            if isinstance(value, Via):
                raise TypeError(f"`{option}` is a key of a registry, which is made in the node and not outside")
        return self._ask_gateway(method, args)

    def _ask_gateway(self, method: str, args: tuple[Any, ...]) -> dict[str, Any]:
        with self._client() as client:
            answer: dict[str, Any] = client.gateway(method, args, {}, None)
        error = raised(answer)
        if error is not None:
            raise error
        return answer

    def tables(self) -> list[str]:
        """The names of the node's tables, in order."""
        with self._client() as client:
            found: list[dict[str, Any]] = client.gateway("tables", (), {}, None)
        return [info["name"] for info in found]

    def table(self, name: str) -> OutsideTable:
        """A table of the node, by its name; it need not be there yet."""
        return OutsideTable(self, name)


class OutsideTable(MutableMapping[Any, Any]):
    """A table of a node, seen from outside: keys and values are plain data, and each use is a message to the node.

    It has the methods of `rebeam.Table`, but for those that take a function, `snapshot` and what owners do; `range` and
    `prefix` give lists. It may change public tables only.

    Raises (all methods):
        NoTable: there is no such table.
        TypeError: a value that is not plain data, be it in the table.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self.name = name

    def _do(self, method: str, *args: Any, **options: Any) -> Any:
        answer = self._node._ask_gateway("table", (self.name, method, list(args), options))
        if "missing" in answer:
            raise KeyError(answer["missing"])
        return answer["value"]

    def __getitem__(self, key: Any) -> Any:
        return self._do("__getitem__", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("insert", key, value)

    def __delitem__(self, key: Any) -> None:
        self._do("__delitem__", key)

    def __len__(self) -> int:
        return int(self._do("__len__"))

    def __contains__(self, key: object) -> bool:
        return bool(self._do("__contains__", key))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._do("keys"))

    def items(self) -> Any:
        """The rows of one moment, in the order of their keys: a list."""
        return self._do("items")

    def values(self) -> Any:
        """The values, in the order of their keys: a list."""
        return self._do("values")

    def update(self, *args: Any, **named: Any) -> None:
        """Puts many rows, all or none."""
        self._do("put_many", list({**dict(*args), **named}.items()))

    def clear(self) -> None:
        """Removes all rows."""
        self._do("clear")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in _TABLE_METHODS:
            raise AttributeError(f"`{name}` is nothing that is done to a table from outside")
        return functools.partial(self._do, name)

    def __repr__(self) -> str:
        return f"<the table {self.name!r} of a node>"


class _Starter(NamedTuple):
    """How a handle of `Node.get_or_start` sends, and what it starts."""

    node: Node
    start: tuple[Any, ...]

    def see_to(self) -> None:
        """Sees to it that the actor is there."""
        self.node._by_gateway("get_or_start", self.start)

    def call(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> Any:
        seconds = _seconds(target)
        until = None if seconds is None else time.monotonic() + seconds
        tries = 0
        while True:
            tries += 1
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                return self.node.call(to, method, args, kwargs, Target(left))
            except (ActorDied, NoProc) as error:
                if not is_undelivered(error) or left == 0.0 or tries == MOST_TRIES:
                    raise
            self.see_to()

    def cast(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> None:
        try:
            self.node.cast(to, method, args, kwargs, target)
        except NoProc:
            self.see_to()
            self.node.cast(to, method, args, kwargs, target)

    def take(self) -> _rebeam.Client:
        self.see_to()
        return self.node.take()

    def put_back(self, client: _rebeam.Client) -> None:
        self.node.put_back(client)


def _seconds(target: Target) -> float | None:
    return _DEFAULT_TIMEOUT if target.timeout is ... else target.timeout


def _named(what: object) -> str:
    """A class or function as the node finds it.

    Raises:
        SpecError: it cannot be found by a name.
    """
    if isinstance(what, str):
        return what
    module, name = getattr(what, "__module__", None), getattr(what, "__qualname__", None)
    if module is None or name is None or "<" in name:
        raise SpecError(f"{what!r} has no name that the node could import it by")
    if module == "__main__":
        raise SpecError(
            f"`{name}` is defined in the program that runs here, which the node cannot import: move it to a module"
        )
    return f"{module}:{name}"


def _connected(directory: str, is_chosen: bool) -> _rebeam.Client:
    try:
        return _rebeam.Client(directory, is_chosen)
    except ConnectionError as error:
        raise ConnectionError(f"nothing is running there; start it with `rebeam up` ({error})") from None


class OutsideRef(ActorRef[A]):
    """A handle on an actor of another process's node."""

    __slots__ = ("_via",)

    def __init__(self, via: Node | _Starter, name: str, target: Target = Target()) -> None:  # noqa: B008
        super().__init__(name, target)
        self._via = via

    def options(self, *, timeout: Timeout = ..., priority: Priority = "normal") -> ActorRef[A]:
        """The same actor, used differently; all mail from outside has normal priority."""
        if priority != "normal":
            raise ValueError("mail from outside has normal priority")
        return OutsideRef(self._via, str(self._address), Target(checked_timeout(timeout)))

    @property
    def request(self) -> NoReturn:
        raise _none_outside("request")

    @property
    def arequest(self) -> NoReturn:
        raise _none_outside("arequest")

    def _stream(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream[Any]:
        return _OutsideStream(self._via, self, method, args, kwargs)

    async def _acall(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._via.call, str(self._address), method, args, kwargs, self._target)

    async def _acast(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        await asyncio.to_thread(self._via.cast, str(self._address), method, args, kwargs, self._target)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a handle from `rebeam.connect` belongs to its process")


def _none_outside(way: str) -> TypeError:
    return TypeError(f"from outside there are `call`, `cast`, `stream`, `acall` and `acast`, and no `{way}`")


class _OutsideStream(Stream[R]):
    """A stream of an actor of another process's node.

    It has a connection of its own while it is iterated over. When that is closed, the node ends its gateway, and the
    generator with it.
    """

    def __init__(
        self, via: Node | _Starter, ref: OutsideRef[Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(ref, method, args, kwargs)
        self._via, self._timeout = via, _seconds(ref._target)

    def _open(self) -> tuple[_rebeam.Client, Any, Any]:
        client = self._via.take()
        try:
            return client, *client.stream_open(str(self._ref._address), *self._content, self._timeout)
        except BaseException:
            client.close()
            raise

    def _more(self, stream: tuple[_rebeam.Client, Any, Any], wanted: int) -> Batch:
        client, pid, key = stream
        return from_plain(*client.stream_next(pid, key, wanted, self._timeout))

    async def _aopen(self) -> tuple[_rebeam.Client, Any, Any]:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_what_was_opened)
            raise

    async def _amore(self, stream: tuple[_rebeam.Client, Any, Any], wanted: int) -> Batch:
        return await asyncio.to_thread(self._more, stream, wanted)

    def _close(self, stream: tuple[_rebeam.Client, Any, Any], is_over: bool) -> None:
        client, *_ = stream
        if is_over:
            self._via.put_back(client)
        else:
            client.close()


def _close_what_was_opened(opening: asyncio.Future[tuple[_rebeam.Client, Any, Any]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()


def program() -> str:
    """Where the program `rebeam` of this Python's environment is, or else the one on the path.

    Raises:
        FileNotFoundError: there is none.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "rebeam")
    found = beside if os.path.exists(beside) else shutil.which("rebeam")
    if found is None:
        raise FileNotFoundError("there is no program `rebeam` beside this Python, nor on the path")
    return found


def connect(project: str | os.PathLike[str] | None = None, *, runtime_dir: str | None = None) -> Node:
    """Connects to the node that `rebeam up` runs for a project.

    Args:
        project: its directory. Default: `$REBEAM_PROJECT`, else the nearest one upwards with `rebeam.toml` or
            `pyproject.toml`, else this one.
        runtime_dir: where the control sockets of nodes are kept. Default: as for the command line.

    Raises:
        ConnectionError: nothing is running there.
    """
    directory = Path(project or os.environ.get("REBEAM_PROJECT") or _nearest(Path.cwd())).resolve()
    base = chosen = runtime_dir or os.environ.get("REBEAM_RUNTIME_DIR")
    if not base:
        shared = os.environ.get("XDG_RUNTIME_DIR")
        own = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"rebeam-{os.getuid()}")
        base = os.path.join(shared, "rebeam") if shared else own
    node = os.path.join(base, _rebeam.node_directory(os.fsencode(directory)))
    try:
        return Node(node, bool(chosen))
    except ConnectionError as error:
        raise ConnectionError(f"nothing is running in `{directory}`; start it with `rebeam up`") from error


def _nearest(start: Path) -> Path:
    for directory in (start, *start.parents):
        if any((directory / name).is_file() for name in ("rebeam.toml", "pyproject.toml")):
            return directory
    return start
