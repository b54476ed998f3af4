"""Which module has done what makes a process hard to fork: threads that were started, descriptors that were opened.

For as long as an application is imported, every module's import is looked at before and after. It must not know what is
forked, nor what follows from what it finds.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rebeam import _snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_TASKS, _DESCRIPTORS = "/proc/self/task", "/proc/self/fd"


class Found:
    """A thread that an import has started, or a descriptor that it has opened.

    Attributes:
        number: the system's number of it.
        name: the thread's name, which the system cuts at 15 bytes; or what the descriptor leads to.
        module: whose import it was.
    """

    __slots__ = ("module", "name", "number")

    def __init__(self, number: int, name: str, module: str) -> None:
        self.number = number
        self.name = name
        self.module = module


class Watch:
    """Looks at imports between `start` and `stop`.

    Args:
        name: who is blamed for what happens outside of any module's import.
        after: what is to be called with a module, by its name, when that is imported.
    """

    def __init__(self, name: str, after: dict[str, Callable[[ModuleType], object]]) -> None:
        self.after = after
        self._running = [name]
        self._threads = _threads()
        self._descriptors = _descriptors()
        self._marks = _marks()
        self._by: dict[object, str] = {}
        self._finder = _Finder(self)
        self._are_of_project = [True]
        self.times: dict[str, float] = {}
        """Seconds that imports of the project's modules have waited for others', by the name of what was imported."""

    def start(self) -> None:
        """Begins to look."""
        sys.meta_path.insert(0, self._finder)

    def stop(self) -> None:
        """Looks a last time."""
        self.look()
        sys.meta_path.remove(self._finder)

    def began(self, name: str) -> None:
        """The import of a module begins; what has happened so far was of the one that imports it."""
        self.look()
        self._running.append(name)

    def ended(self) -> None:
        """The import that was begun last has ended."""
        self.look()
        self._running.pop()

    @contextmanager
    def timed(self, name: str, loader: object) -> Iterator[None]:
        """The import of a module is under way."""
        is_of_project = isinstance(loader, _snapshot.Loader)
        is_counted = self._are_of_project[-1] and not is_of_project
        self._are_of_project.append(is_of_project)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._are_of_project.pop()
            if is_counted:
                package = name.partition(".")[0]
                self.times[package] = self.times.get(package, 0.0) + time.perf_counter() - began

    def look(self) -> None:
        """Ascribes what is new to the module that is being imported."""
        marks = _marks()
        if marks == self._marks:
            return
        self._marks = marks
        for new in (_threads().items() - self._threads.items()) | (_descriptors().items() - self._descriptors.items()):
            self._by.setdefault(new, self._running[-1])

    def threads(self) -> list[Found]:
        """Threads that were started and still run."""
        return self._found(_threads().items() - self._threads.items())

    def descriptors(self) -> list[Found]:
        """Descriptors that were opened and are still open."""
        return self._found(_descriptors().items() - self._descriptors.items())

    def _found(self, new: set[tuple[int, str]]) -> list[Found]:
        return [Found(number, name, self._by.get((number, name), self._running[0])) for number, name in sorted(new)]


def _marks() -> tuple[int, int]:
    """What changes when a thread is started or a descriptor opened, and costs next to nothing to ask for."""
    lowest_free = os.dup(2)
    os.close(lowest_free)
    return os.stat(_TASKS).st_nlink, lowest_free


def thread_count() -> int:
    """How many threads this process has."""
    return os.stat(_TASKS).st_nlink - 2


def _threads() -> dict[int, str]:
    found = {}
    for task in os.listdir(_TASKS):
        try:
            with open(f"{_TASKS}/{task}/comm", errors="backslashreplace") as comm:
                found[int(task)] = comm.read().strip()
        except OSError:
            continue
    return found


_ours: set[str] = set()


@contextmanager
def shares_on_purpose() -> Iterator[None]:
    """What is opened here is to be shared by all processes, and is not told of."""
    before = _descriptors()
    yield
    _ours.update(str(number) for number, _ in _descriptors().items() - before.items())


def _descriptors() -> dict[int, str]:
    found = {}
    for fd in set(os.listdir(_DESCRIPTORS)) - _ours:
        try:
            found[int(fd)] = os.readlink(f"{_DESCRIPTORS}/{fd}")
        except OSError:
            continue
    return found


class _Finder:
    """Has the watch told before and after each module's import."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = _snapshot.find_behind(self, fullname, path, target)
        # Modules of the interpreter itself (classes, not objects) start nothing.
        if found is not None and hasattr(found.loader, "exec_module") and not isinstance(found.loader, type):
            found.loader = _Watched(found.loader, self._watch)  # type: ignore[assignment]
        return found


class _Watched:
    """A loader that is in the place of another until the module's import begins."""

    def __init__(self, loader: Any, watch: Watch) -> None:
        self._loader = loader
        self._watch = watch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        # A library is loaded here, and may start threads of its own.
        self._watch.began(spec.name)
        # Not always this one: somebody may have put a loader of their own around it.
        outer = spec.loader
        try:
            spec.loader = self._loader
            module: ModuleType | None = self._loader.create_module(spec)
            return module
        finally:
            spec.loader = outer
            self._watch.ended()

    def __getattr__(self, name: str) -> Any:
        # Whoever asks for the loader of what is not imported yet wants that one's methods.
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._watch.began(module.__name__)
        try:
            with self._watch.timed(module.__name__, self._loader):
                self._loader.exec_module(module)
        finally:
            self._watch.ended()
        after = self._watch.after.get(module.__name__)
        if after is not None:
            after(module)
