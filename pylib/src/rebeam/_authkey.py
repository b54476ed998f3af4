"""One key of `multiprocessing` for all actors of a node: any of them may use the proxies of a `Manager` of another's.

`multiprocessing` makes up a key in each process that it has not started itself, and a manager refuses whoever has
another. Few import it, so its key is set when it is imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rebeam import _snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_MODULE = "multiprocessing.process"


_preferred: bytes | None = None


def own_key() -> bytes | None:
    """The key of this process, if it has one; a script hands it on to the actors that it runs."""
    module = sys.modules.get(_MODULE)
    return None if module is None else bytes(module.current_process().authkey)


def prefer(key: bytes) -> None:
    """Has this process, and the actors forked from it, use another key than their node's."""
    global _preferred
    _preferred = key
    set_key(key)


def set_key(key: bytes) -> None:
    """Sets the key of this process, now or when `multiprocessing` is imported."""
    key = _preferred or key
    if _MODULE in sys.modules:
        _apply(sys.modules[_MODULE], key)
    else:
        sys.meta_path.insert(0, _Finder(key))


def _apply(module: ModuleType, key: bytes) -> None:
    module.current_process().authkey = key


class _Finder:
    """Waits for the import of that module, and is gone then."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = _snapshot.find_behind(self, name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _apply(module, self._key)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
