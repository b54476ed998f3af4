"""From the name of a method to the method: what of an actor can be called from outside."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from rebeam._actor import Actor
from rebeam._errors import BadCall
from rebeam._server import GenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_OWN = frozenset((*vars(Actor), *vars(GenServer)))


def public_methods(actor: type[Actor]) -> list[str]:
    """The methods that answer calls and casts."""
    return sorted(
        name
        for name in dir(actor)
        if not name.startswith("_") and name not in _OWN and callable(getattr(actor, name, None))
    )


def resolver(actor: Actor) -> Callable[[str], Callable[..., Any]]:
    """A function that finds the method for a message, and raises `BadCall` where there is none."""

    def resolve(method: str) -> Callable[..., Any]:
        cls = type(actor)
        if not method.startswith("_") and method not in _OWN and callable(getattr(cls, method, None)):
            found: Callable[..., Any] = getattr(actor, method)
            return found
        names = public_methods(cls)
        near = difflib.get_close_matches(method, names, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(f'`{n}`' for n in names) or 'none'}"
        if isinstance(actor, GenServer) and not near:
            hint += "; a GenServer takes messages: `rebeam.call(ref, message)`"
        raise BadCall(f"`{cls.__qualname__}` has no public method `{method}`; {hint}")

    return resolve


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs what a plain method has returned, if that is a coroutine."""
    from rebeam import _loop

    return _loop.run(coroutine)
