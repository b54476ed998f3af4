"""Classes and functions of scripts that run as actors: how others find what is `__main__` to the script itself.

A script's `__main__` is the module `__main__@/its/path` to all others. They import it from its file when they are sent
something of it: as with `multiprocessing`, what must not run again there stands under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import io
import operator
import os
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, cast

from rebeam import _rebeam, _runtime, _snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from types import ModuleType

_PREFIX = "__main__@"

GUARD = 'put it under `if __name__ == "__main__":`'
"""What to do about a call in a script that must not be made where the script is imported."""

_own: str | None = None
"""What this process's `__main__` is to others, if it is a script's."""


def run_script(path: str, argv: Sequence[str]) -> None:
    """Runs a file as `python FILE ARGV…` would."""
    import runpy

    path = os.path.abspath(path)
    sys.argv = [path, *argv]
    sys.path.insert(0, os.path.dirname(path))
    _be(_name_of(path))
    source = _snapshot.source(path)
    if source is None:
        runpy.run_path(path, run_name="__main__")
        return
    main: Any = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    exec(compile(source, path, "exec", dont_inherit=True), vars(main))


def _name_of(path: str) -> str:
    # A dot in it would be a package's.
    return _PREFIX + path.replace("%", "%25").replace(".", "%2E")


def is_imported(module: object) -> bool:
    """Whether a module, by its name, is just being imported by an actor, or by a node for its actors."""
    spec = getattr(sys.modules.get(str(module)), "__spec__", None)
    return getattr(spec, "_initializing", False) or (_runtime.is_of_node and not _rebeam.is_attached())


def run_module(name: str, argv: Sequence[str]) -> None:
    """Runs a module as `python -m NAME ARGV…` would."""
    import runpy

    # The first becomes its file.
    sys.argv = [name, *argv]
    _be(name)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


AS_IMPORTED = "__mp_main__"
"""What an ordinary script is to the actors of `rebeam.run`, as to the processes of `multiprocessing`."""


def script() -> str | None:
    """The file of the ordinary script that this process runs; None if it stands in none, or is a module (`-m`)."""
    main: Any = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is not None or path is None or not os.path.isfile(path):
        return None
    return os.path.abspath(str(path))


def is_in_no_file(object: Any) -> bool:
    """Whether something was written at a prompt, in a notebook or behind `-c`, where no actor finds it."""
    main: Any = sys.modules["__main__"]
    is_own = getattr(object, "__module__", None) == "__main__"
    return is_own and script() is None and getattr(main, "__spec__", None) is None


def dumps(object: Any) -> bytes:
    """Pickles something of an ordinary script for the actors of `rebeam.run`, which import the script for it.

    Raises:
        Unpicklable: it cannot be sent.
    """
    global _own
    main: Any = sys.modules["__main__"]
    module = getattr(getattr(main, "__spec__", None), "name", None)
    if script() is not None:
        module = AS_IMPORTED
        # What comes back is the script's own.
        sys.modules[AS_IMPORTED] = main
    try:
        if module is None:
            return pickle.dumps(object)
        _own = module
        return _dumps(object, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        from rebeam import _pickling

        raise _pickling.explain_message(object, error) from None


def import_script(path: str) -> Any:
    """Imports an ordinary script for the actors of a node, as `multiprocessing` does for its processes."""
    spec = _snapshot.spec(AS_IMPORTED, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"`{path}` is not a Python file")
    module: Any = importlib.util.module_from_spec(spec)
    # By its file others find it: the processes of `multiprocessing` that an actor starts.
    module.__spec__ = None
    sys.modules["__main__"] = sys.modules[AS_IMPORTED] = module
    spec.loader.exec_module(module)
    return module


def _be(name: str) -> None:
    global _own
    _own = name
    _rebeam.set_dumps(_dumps)


class Pickler(pickle.Pickler):
    """Names what is of `__main__` so that others find it."""

    def reducer_override(self, object: Any) -> Any:
        if _own is not None and getattr(object, "__module__", None) == "__main__" and _is_found(object):
            return _found, (_own, object.__qualname__)
        return NotImplemented


def _is_found(object: Any) -> bool:
    """Whether `__main__` has it by its name: of a lambda, or of what a function has made, pickle says so itself."""
    try:
        return operator.attrgetter(object.__qualname__)(sys.modules["__main__"]) is object
    except AttributeError:
        return False


def _dumps(object: Any, protocol: int, *, buffer_callback: Callable[[Any], object] | None = None) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol, buffer_callback=buffer_callback).dump(object)
    return file.getvalue()


def _found(module: str, name: str) -> Any:
    """A class or function of a script, in another process or in its own."""
    found = sys.modules["__main__"] if module == _own else importlib.import_module(module)
    return operator.attrgetter(name)(found)


class _OwnMain:
    """The loader that finds a script's `__main__` in the process of that script.

    Without the base class that `importlib.abc` has for it: to import that would be an eighth of what `rebeam` costs.
    """

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return sys.modules["__main__"]

    def exec_module(self, module: ModuleType) -> None: ...


class _Finder:
    """Imports `__main__@/its/path` from that file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        if fullname == _own:
            return importlib.machinery.ModuleSpec(fullname, cast("Loader", _OwnMain()))
        file = fullname.removeprefix(_PREFIX).replace("%2E", ".").replace("%25", "%")
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())
