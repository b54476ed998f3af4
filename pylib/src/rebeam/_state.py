"""The state that an actor hands to the next process of its incarnation, in recycling and in a reload.

A state is one pickle. If the class defines no `checkpoint`, it is the attributes of the actor; references to the actor
itself stay references. Values whose classes may have changed are pickled by name: dataclasses and named tuples by their
fields, members of enumerations by their names.

It must not know how a state is transported: it writes into memory for `_rebeam`, and reads from memory that `_boot`
got.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import io
import operator
import os
import pickle
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from rebeam import _rebeam
from rebeam._actor import Actor
from rebeam._errors import ActorExit, BadReturn, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[[Any, Any], Any]")

_CHECKPOINT, _ATTRIBUTES = "checkpoint", "attributes"

_MAX_DEPTH = 8
"""How deep an attribute is searched for the part that cannot be pickled."""

_StandIns = dict[tuple[str, str], type]

_stand_ins: list[_StandIns] = [{}]
"""For tests: which classes replace others in each version of the code, by module and qualified name of the others."""

_replaced: dict[type, type] = {}
"""For tests: which class each class was last replaced by."""

_changes: dict[tuple[str, str], Callable[[Any, Any], Any]] = {}
"""Functions declared with `code_change`, by module and qualified name of the class."""


class CannotMoveError(Exception):
    """The state of an actor cannot be moved to another process."""


def code_change(actor: type[Actor]) -> Callable[[F], F]:
    """Declares a function that brings the state of an actor up to date when its code is new.

    It does what a method `code_change` of the class would: it gets `(old_version, state)` and returns the state for the
    new code.

    Args:
        actor: the class. The module with the function has to be imported by the application.

    Raises:
        SpecError: no class of an actor.
    """
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        raise SpecError(f"code_change({actor!r}): name the class of an actor")

    def declare(function: F) -> F:
        _changes[actor.__module__, actor.__qualname__] = function
        return function

    return declare


def version_of(actor: Actor, code: int) -> Any:
    """What `code_change` of the next code gets: `__version__` of the class or its module, else the version's number."""
    found = getattr(type(actor), "__version__", None)
    if found is None:
        found = getattr(sys.modules.get(type(actor).__module__), "__version__", None)
    return code if found is None else found


# ---- giving --------------------------------------------------------------------------------------------------------


def give(actor: Actor, code: int, *, waits: bool) -> None:
    """Hands the state of an actor over; with `waits`, to a process with other code."""
    kind, state = _state_of(actor, is_recycled=not waits)
    idle_left = _rebeam.take_idle_left()
    if idle_left is not None:
        # Of this process, too, should it go on.
        _rebeam.set_idle_left(*idle_left)
    memory = _new_memory()
    with os.fdopen(memory, "wb") as file:
        try:
            pickle.dump((kind, waits, version_of(actor, code), type(actor), idle_left), file, 5)
            pickler = _Pickler(file, actor)
            pickler.dump(state)
            # Finalizers that nobody holds, of objects of the state.
            pickler.dump(pickler.other_finalizers())
        except (ActorExit, MemoryError, OSError):
            # The last two are no fault of the state.
            raise
        except Exception as error:
            raise _explained(actor, kind, state, error) from None
        file.flush()
        _own.finalizers = pickler.finalizers
        _rebeam.hand_over(memory, kind == _CHECKPOINT, waits)


def has_own(actor: Actor, name: str) -> bool:
    """Whether the class of an actor overrides a hook of `Actor`."""
    return getattr(type(actor), name) is not getattr(Actor, name)


def _state_of(actor: Actor, *, is_recycled: bool) -> tuple[str, Any]:
    from rebeam import _boot

    if is_recycled or has_own(actor, "checkpoint"):
        return _CHECKPOINT, _boot.awaited(actor.checkpoint())
    if not (has_own(actor, "before_move") and has_own(actor, "after_move")):
        _check_runs_nothing()
    return _ATTRIBUTES, _attributes(actor)


def _check_runs_nothing() -> None:
    """Refuses actors with threads or tasks of their own, which are not part of the state."""
    loop = sys.modules.get("rebeam._loop")
    if not _rebeam.is_virtual():
        # Those of `asyncio.to_thread` stay when they have nothing to do.
        idle = loop.default_threads() if loop is not None else set()
        threads = [it.name for it in threading.enumerate() if it is not threading.main_thread() and it not in idle]
        if threads:
            raise CannotMoveError(f"it has threads of its own: {', '.join(threads)}")
    tasks = loop.tasks() if loop is not None else []
    if tasks:
        raise CannotMoveError(f"it has tasks of its own: {', '.join(tasks)}")


def _attributes(actor: Actor) -> dict[str, Any]:
    attributes = dict(getattr(actor, "__dict__", {}))
    for name in _slots(type(actor)):
        if hasattr(actor, name):
            attributes[name] = getattr(actor, name)
    return attributes


def _slots(cls: type) -> list[str]:
    names: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__"):
                names.append(name)
    return names


def _new_memory() -> int:
    """An anonymous file, in memory where the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rebeam-state", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Pickler(pickle.Pickler):
    """Pickles a state: the actor as a reference, and values whose shape may change by name."""

    def __init__(self, file: Any, actor: Actor) -> None:
        super().__init__(file, 5)
        self._actor = actor
        self.finalizers: list[weakref.finalize[Any, Any]] = []
        """Those of the objects that move."""

    def persistent_id(self, value: Any) -> Any:
        return "actor" if value is self._actor else None

    def reducer_override(self, value: Any) -> Any:
        cls = type(value)
        if cls is weakref.finalize:
            return self._reduce_finalizer(value)
        if cls in copyreg.dispatch_table:
            return NotImplemented
        if isinstance(value, BaseException) and _has_own_init(cls):
            # `pickle` would call `__init__` with `args`, which may be others than those that it takes.
            others = {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in _CHAIN}}
            return _exception, (cls, value.args), others, None, None, _set_attributes
        if any(_defines(cls, name) for name in _PICKLING):
            return NotImplemented
        if isinstance(value, enum.Enum):
            return _reduce_member(value)
        if dataclasses.is_dataclass(cls) and _is_plain(cls):
            names = [field.name for field in dataclasses.fields(cls)]
            fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
            others = {name: own for name, own in getattr(value, "__dict__", {}).items() if name not in fields}
            return _new, (cls,), (fields, others), None, None, _set_fields
        if isinstance(value, tuple) and hasattr(cls, "_fields"):
            fields = dict(zip(cls._fields, value, strict=True))
            return _named_tuple, (cls, fields), getattr(value, "__dict__", None) or None
        return NotImplemented

    def other_finalizers(self) -> list[weakref.finalize[Any, Any]]:
        """Finalizers of objects that have been pickled, and that have not been pickled themselves."""
        registry: dict[weakref.finalize[Any, Any], Any] = getattr(weakref.finalize, "_registry", {})
        if not registry:
            return []
        moved = self.memo.copy()
        found = ((finalizer, finalizer.peek()) for finalizer in list(registry) if finalizer not in self.finalizers)
        return [finalizer for finalizer, of in found if of is not None and id(of[0]) in moved]

    def _reduce_finalizer(self, value: weakref.finalize[Any, Any]) -> Any:
        """The next process finalizes the object, and this one does not."""
        found = value.peek()
        if found is None:
            raise TypeError("a finalizer that has been called")
        self.finalizers.append(value)
        return _finalizer, (*found, value.atexit)


_CHAIN = ("__cause__", "__suppress_context__")


def _has_own_init(cls: type[BaseException]) -> bool:
    is_plain = cls.__reduce__ is BaseException.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__
    return (
        is_plain and isinstance(cls.__init__, types.FunctionType) and isinstance(cls.__new__, types.BuiltinMethodType)
    )


def _exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    made = cls.__new__(cls, *args)
    made.args = args
    return made


def _set_attributes(value: Any, attributes: dict[str, Any]) -> None:
    for name, own in attributes.items():
        object.__setattr__(value, name, own)


_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
"""Methods by which a class defines how its objects are pickled."""


def _defines(cls: type, name: str) -> bool:
    """Whether a class defines that itself, or inherits it from one that does."""
    for base in cls.__mro__:
        if name in base.__dict__:
            return getattr(base.__dict__[name], "__module__", None) not in _GENERATED and base not in _BY_VALUE
    return False


_GENERATED = ("dataclasses", "enum", "collections")
"""Modules that generate such methods for dataclasses, enumerations and named tuples, which go by position or value."""

_BY_VALUE = (object, int, str, bytes, float, tuple)
"""Classes that have such methods for their values."""


def _is_plain(cls: type) -> bool:
    """Whether the fields of a dataclass object, and its `__dict__`, are all that there is of it."""
    own = {name for base in cls.__mro__ if dataclasses.is_dataclass(base) for name in base.__dataclass_fields__}
    new: object = cls.__new__
    return new is object.__new__ and not issubclass(cls, _CONTAINERS) and own.issuperset(_slots(cls))


_CONTAINERS = (dict, list, set, BaseException)
"""Classes whose objects hold more than attributes, and are made by `object.__new__` or their own."""


def _finalizer(obj: Any, function: Any, args: Any, kwargs: Any, at_exit: bool) -> Any:
    made = weakref.finalize(obj, function, *args, **(kwargs or {}))
    made.atexit = at_exit
    _own.finalizers = [*getattr(_own, "finalizers", ()), made]
    return made


_own = threading.local()
"""Of this actor: `finalizers` of the objects that it has taken over or handed over, and, while it takes over,
`leaves_out`: whether new fields without defaults stay without a value."""


def detach_finalizers() -> None:
    """Another process goes on with the objects that this one has taken over or handed over, and finalizes them."""
    for finalizer in getattr(_own, "finalizers", ()):
        finalizer.detach()


def _reduce_member(value: enum.Enum) -> Any:
    if not isinstance(value, enum.Flag):
        return _member, (type(value), value.name)
    cls: type[enum.Flag] = type(value)
    names = [member.name for member in cls if member in value]
    return (_flags, (cls, names)) if _flags(cls, names) is value else NotImplemented


def _member(cls: type[enum.Enum], name: str) -> enum.Enum:
    try:
        return cls[name]
    except KeyError:
        raise TypeError(f"`{cls.__qualname__}` has no member `{name}` any more, which the state has") from None


def _flags(cls: type[enum.Flag], names: list[Any]) -> enum.Flag:
    return functools.reduce(operator.or_, (cast("enum.Flag", _member(cls, name)) for name in names), cls(0))


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


def _named_tuple(cls: Any, fields: dict[str, Any]) -> Any:
    values = {**cls._field_defaults, **{name: value for name, value in fields.items() if name in cls._fields}}
    missing = [name for name in cls._fields if name not in values]
    if missing:
        raise _no_default(cls, missing[0])
    _tell_dropped(cls, [name for name in fields if name not in cls._fields])
    return tuple.__new__(cls, [values[name] for name in cls._fields])


def _set_fields(value: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Sets the fields of a dataclass object; new fields take their defaults."""
    cls = type(value)
    fields, others = state
    if not dataclasses.is_dataclass(cls):
        fields, others, known = {}, {**fields, **others}, {}
    else:
        known = {field.name: field for field in dataclasses.fields(cls)}
    for name, field in known.items():
        if name in fields:
            own = fields[name]
        elif field.default is not dataclasses.MISSING:
            own = field.default
        elif field.default_factory is not dataclasses.MISSING:
            own = field.default_factory()
        elif getattr(_own, "leaves_out", False):
            # `code_change` gives it a value.
            continue
        else:
            raise _no_default(cls, name)
        # It may be frozen.
        object.__setattr__(value, name, own)
    for name, own in others.items():
        object.__setattr__(value, name, own)
    _tell_dropped(cls, [name for name in fields if name not in known])


def _no_default(cls: type, name: str) -> TypeError:
    return TypeError(
        f"`{cls.__qualname__}` has the new field `{name}`, for which old objects have no value: "
        "give it a default, or set it in `code_change`"
    )


def _tell_dropped(cls: type, dropped: list[str]) -> None:
    """Logs, once for each class and field, which values were dropped."""
    for name in dropped:
        if (cls.__qualname__, name) not in _told:
            _told.add((cls.__qualname__, name))
            import logging

            logging.getLogger("rebeam").warning(
                "`%s` has no field `%s` any more: what old objects had there is gone", cls.__qualname__, name
            )


_told: set[tuple[str, str]] = set()


# ---- taking --------------------------------------------------------------------------------------------------------


def replace(old: type, new: type) -> None:
    """For tests: makes a version of the code in which a class replaces another, and whatever replaced that before."""
    stand_ins = dict(_stand_ins[-1])
    before = stand_ins.get((old.__module__, old.__qualname__), old)
    stand_ins = {name: new if cls is before else cls for name, cls in stand_ins.items()}
    for cls in (old, before):
        stand_ins[cls.__module__, cls.__qualname__] = new
    # It may have been replaced earlier.
    stand_ins.pop((new.__module__, new.__qualname__), None)
    _stand_ins.append(stand_ins)
    _replaced[old] = new


def declared(cls: type) -> type:
    """For tests: the class that this one replaces, if it replaces one; else itself."""
    return next((old for old, new in _replaced.items() if new is cls), cls)


def forget_stand_ins() -> None:
    """The test is over."""
    del _stand_ins[1:]
    _replaced.clear()


def _of_version(code: int) -> _StandIns:
    return _stand_ins[code - 1] if 0 < code <= len(_stand_ins) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, stand_ins: _StandIns, actor: Actor | None = None) -> None:
        super().__init__(file)
        self._stand_ins = stand_ins
        self._actor = actor

    def persistent_load(self, pid: Any) -> Any:
        return self._actor

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self._stand_ins.get((module, name))
        return super().find_class(module, name) if stand_in is None else stand_in


def loads(start: bytes, code: int) -> Any:
    """The class and arguments of an actor, in this version of the code."""
    stand_ins = _of_version(code)
    return _Unpickler(io.BytesIO(start), stand_ins).load() if stand_ins else pickle.loads(start)


class Taken(NamedTuple):
    """A state that was handed over."""

    kind: str
    is_moved: bool
    """Whether `before_move` has run, so that `after_move` has to."""
    old_version: Any
    cls: type[Actor]
    idle_left: tuple[float, float] | None
    """After how many seconds it is to be told that no message came, and how many that were."""
    file: Any
    stand_ins: _StandIns

    @property
    def runs_init(self) -> bool:
        """Whether `init` runs before it is taken over."""
        return self.kind == _CHECKPOINT


def take(memory: int, code: int) -> Taken:
    """Opens a state that was handed over, for this version of the code. It owns the descriptor from now on."""
    os.lseek(memory, 0, os.SEEK_SET)
    file, stand_ins = os.fdopen(memory, "rb"), _of_version(code)
    kind, is_moved, old_version, cls, idle_left = _Unpickler(file, stand_ins).load()
    return Taken(kind, is_moved, old_version, cls, idle_left, file, stand_ins)


def take_over(actor: Actor, taken: Taken, *, is_new_code: bool) -> None:
    """Gives an actor the state that was handed over; `code_change` is applied first if the code is new."""
    from rebeam import _boot

    function = _change_of(actor) if is_new_code else None
    _own.leaves_out = function is not None
    with taken.file as file:
        unpickler = _Unpickler(file, taken.stand_ins, actor)
        state: Any = unpickler.load()
        unpickler.load()
    _own.leaves_out = False
    if function is not None:
        state = _boot.awaited(function(taken.old_version, state))
        if taken.kind == _ATTRIBUTES and not isinstance(state, dict):
            name = getattr(function, "__qualname__", "code_change")
            raise BadReturn(f"`{name}` returned {state!r:.100}: it has to return the state, a dict of the attributes")
    if taken.kind == _CHECKPOINT:
        if state is not None and not has_own(actor, "restore"):
            name = type(actor).__qualname__
            raise TypeError(f"`{name}` has no `restore` for what `checkpoint` of the code before has returned")
        _boot.awaited(actor.restore(state))
        return
    for name, value in state.items():
        object.__setattr__(actor, name, value)


def _change_of(actor: Actor) -> Callable[[Any, Any], Any] | None:
    """What brings the state of an actor up to date, if there is something."""
    if has_own(actor, "code_change"):
        return actor.code_change
    found = (_changes.get((cls.__module__, cls.__qualname__)) for cls in type(actor).__mro__)
    return next((function for function in found if function is not None), None)


# ---- what is wrong --------------------------------------------------------------------------------------------------


def _explained(actor: Actor, kind: str, state: Any, error: Exception) -> Exception:
    """The error for a state that cannot be pickled; it names the part that cannot."""
    from rebeam import _pickling

    if kind == _CHECKPOINT:
        return _pickling.explain_state(state, error)
    for name, value in state.items():
        found = _culprit(f"self.{name}", value, actor, 0, set())
        if found is not None:
            path, culprit, reason = found
            cls = type(culprit)
            return CannotMoveError(f"`{path}` cannot be moved: {cls.__module__}.{cls.__qualname__}: {reason}")
    return CannotMoveError(str(error))


def _culprit(path: str, value: Any, actor: Actor, depth: int, seen: set[int]) -> tuple[str, Any, Exception] | None:
    from rebeam import _pickling

    if id(value) in seen or value is actor:
        return None
    try:
        _Pickler(io.BytesIO(), actor).dump(value)
        return None
    except Exception as error:
        reason = error
    seen.add(id(value))
    if depth < _MAX_DEPTH:
        for name, part in _pickling.parts(value):
            found = _culprit(path + name, part, actor, depth + 1, seen)
            if found is not None:
                return found
    return path, value, reason
