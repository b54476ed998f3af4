"""One key of `multiprocessing` for all actors of a node: any of them may use the proxies of a `Manager` of another's.

`multiprocessing` makes up a key in each process that it has not started itself, and a manager refuses whoever has
another. Few import it, so its key is set when it is imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_MODULE = "multiprocessing.process"


def set_key(key: bytes) -> None:
    """Sets the key of this process, now or when `multiprocessing` is imported."""
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
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load, key = spec.loader.exec_module, self._key

            def exec_module(module: ModuleType) -> None:
                load(module)
                _apply(module, key)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
