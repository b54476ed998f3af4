"""Generators of random numbers that were made at import without a seed: each fork is to have numbers of its own.

What was given a seed keeps it, as in any program that is started several times. The generators of `random` and of
`numpy.random` themselves are seeded anew whatever was done to them.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from _random import Random
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from types import ModuleType

_own_seed = random.Random.seed
_own_setstate = random.Random.setstate
_unseeded: WeakSet[random.Random] = WeakSet()
_drawn: set[int] = set()
"""What numpy took as a seed where it was given none."""

_to_seed: list[random.Random] = []
_numpy_to_seed: list[Any] = []


def watch() -> None:
    """Takes note of every generator from now on that is made without a seed."""
    random.Random.seed = _seed  # type: ignore[method-assign]
    random.Random.setstate = _setstate  # type: ignore[method-assign]


def _setstate(self: random.Random, state: Any) -> None:
    # As `copy` and `pickle` do: it goes on with another's numbers.
    _unseeded.discard(self)
    _own_setstate(self, state)


def _seed(self: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
    (_unseeded.add if a is None else _unseeded.discard)(self)
    _own_seed(self, a, *args, **kwargs)


def watch_numpy(bit_generator: ModuleType) -> None:
    """The same for numpy's; called when `numpy.random.bit_generator` is imported."""
    draw: Any = getattr(bit_generator, "randbits", None)
    if draw is None:
        return

    def randbits(bits: int) -> int:
        seed: int = draw(bits)
        _drawn.add(seed)
        return seed

    bit_generator.randbits = randbits  # type: ignore[attr-defined]


def settle() -> None:
    """Ends the watch: what was found is seeded in each fork from now on."""
    random.Random.seed = _own_seed  # type: ignore[method-assign]
    random.Random.setstate = _own_setstate  # type: ignore[method-assign]
    _to_seed.extend(_unseeded)
    numpy: Any = sys.modules.get("numpy.random.bit_generator")
    if numpy is not None and _drawn:
        _numpy_to_seed.extend(
            it for it in gc.get_objects() if issubclass(type(it), numpy.BitGenerator) and _is_unseeded(it)
        )


def _is_unseeded(generator: Any) -> bool:
    seed = getattr(generator, "seed_seq", None) or getattr(generator, "_seed_seq", None)
    return getattr(seed, "entropy", None) in _drawn


def seed_all() -> None:
    """Gives every generator numbers of its own: for a process that has just been forked."""
    # What `random.seed()` does, without running Python for it.
    Random.seed(random._inst)
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    for generator in _to_seed:
        # Not by its own method, which may ask for anything.
        _own_seed(generator)
    for generator in _numpy_to_seed:
        with contextlib.suppress(Exception):
            generator.state = type(generator)().state
    # Where it was not imported yet, it will draw its own seed: to import it for this would cost each fork 14 ms.
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
