"""From an ordinary Python process or a notebook to a running node: plain data in and out, never a pickle."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from rebeam import _rebeam
from rebeam._exit import Certificate, certificate
from rebeam._options import checked_timeout
from rebeam._ref import ActorRef, Pid, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebeam._actor import Actor
    from rebeam._options import Priority
    from rebeam._ref import Timeout

A = TypeVar("A", bound="Actor")

_DEFAULT_TIMEOUT = 5.0


class ActorInfo(NamedTuple):
    """One actor of a node.

    Attributes:
        path: its path in the tree.
        name: its registered name, or None.
        state: `starting`, `running`, `stopping`, `restarting`, `recycling`, `parked` or `stopped`.
        class_name: module and class.
        restarts: how often it was started again.
        waiting: messages that wait for it.
    """

    path: str
    name: str | None
    state: str
    class_name: str
    restarts: int
    waiting: int


class Node:
    """A connection to a running node, made by `connect`. Threads and tasks may share it.

    It outlives the node: when that was started again, the next request goes to the new one.
    """

    def __init__(self, directory: str, is_chosen: bool) -> None:
        self._place = directory, is_chosen
        self._lock = threading.Lock()
        self._is_closed = False
        self._idle: list[_rebeam.Client] = [_connected(*self._place)]

    def ref(self, actor: type[A], name: str) -> ActorRef[A]:
        """A handle on the actor with this name or path: `call`, `acall` and `cast` work as within a tree.

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
            self._idle.clear()
            self._is_closed = True

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
        with self._lock:
            if self._is_closed:
                raise ConnectionError("this connection was closed")
            client = self._idle.pop() if self._idle else None
        if client is not None and not client.is_connected():
            # The node has ended. If it was started again, it is found; others that are idle lead to the one before.
            client = None
        client = client or _connected(*self._place)
        try:
            yield client
        except ConnectionError:
            raise
        except BaseException:
            self._put_back(client)
            raise
        self._put_back(client)

    def _put_back(self, client: _rebeam.Client) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(client)

    def call(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> Any:
        """What a reference of this node does for `call`."""
        seconds = _DEFAULT_TIMEOUT if target.timeout is ... else target.timeout
        with self._client() as client:
            return client.call(to, method, args, kwargs, seconds)

    def cast(self, to: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> None:
        """What a reference of this node does for `cast`."""
        with self._client() as client:
            client.cast(to, method, args, kwargs)


def _connected(directory: str, is_chosen: bool) -> _rebeam.Client:
    try:
        return _rebeam.Client(directory, is_chosen)
    except ConnectionError as error:
        raise ConnectionError(f"nothing is running there; start it with `rebeam up` ({error})") from None


class OutsideRef(ActorRef[A]):
    """A handle on an actor of another process's node."""

    __slots__ = ("_via",)

    def __init__(self, node: Node, name: str, target: Target = Target()) -> None:  # noqa: B008
        super().__init__(name, target)
        self._via = node

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

    @property
    def stream(self) -> NoReturn:
        raise _none_outside("stream")

    async def _acall(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import asyncio

        return await asyncio.to_thread(self._via.call, str(self._address), method, args, kwargs, self._target)

    async def _acast(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import asyncio

        await asyncio.to_thread(self._via.cast, str(self._address), method, args, kwargs, self._target)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a handle from `rebeam.connect` belongs to its process")


def _none_outside(way: str) -> TypeError:
    return TypeError(f"from outside there are `call`, `acall`, `cast` and `acast`, and no `{way}`")


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
