"""The base class of actors. It knows nothing of processes: what runs an actor is `rebeam._boot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, Unpack

    from rebeam._exit import ExitReason
    from rebeam._options import ChildOptions
    from rebeam._ref import ActorRef

F = TypeVar("F", bound="Callable[..., Any]")


class Info:
    """Returned by `init` to hand something to whoever starts the actor: `start_child` gives it as `info`.

    Args:
        value: anything that can be sent.
        then: for a `GenServer`: `Continue`, `Idle` or `Hibernate`.
    """

    def __init__(self, value: Any, *, then: Any = None) -> None:
        self.value = value
        self.then = then


class Ignore:
    """Returned by `init` (the class itself) to be passed over: the actor does not run, its siblings do.

    As OTP's `ignore`: a permanent or transient child stays listed as stopped.
    """


class Actor:
    """An object that runs in a process of its own and is reached by messages only.

    Public methods answer calls and casts, one at a time and in the order they came. A method that raises ends the
    actor (its caller gets the exception, its supervisor decides what follows), unless `raises` declares the exception
    to be an answer. A call whose arguments do not fit the method harms nobody but its caller.

    `async def` methods overlap: up to `concurrency` of them (see `child`) are in hand at once, on one event loop. A
    plain method never overlaps with anything. A method that is a generator answers `ActorRef.stream`. The callbacks may
    be `async def`, too; what they are said to return is then what they give when awaited.

    The options of `child` may be given with the class, as `class Worker(Actor, restart="transient")`.
    """

    __rebeam_options__: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **options: Unpack[ChildOptions]) -> None:
        super().__init_subclass__()
        if options:
            from rebeam import _spec

            _spec.check_class_options(cls, cast("dict[str, Any]", options))
            cls.__rebeam_options__ = {**cls.__rebeam_options__, **options}

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Sets the actor up, in its own process; starting it waits for this to return.

        Gets the arguments given to `child`, the same ones after every restart. An exception here is a failed start.
        Return `Ignore` to be passed over, `Info(value)` to hand something to whoever starts it; a `GenServer` also
        `Continue`, `Idle` or `Hibernate`, or `Stop` to fail. Any other value is not looked at.
        """

    def handle_info(self, message: Any) -> Any:
        """Handles what is neither a call nor a cast: `rebeam.send`, `Down`, `Exit`, `TIMEOUT`, timers.

        Without this method they are logged and dropped.
        """
        import logging

        logging.getLogger("rebeam").warning("there is no handle_info for %r", message)

    def checkpoint(self) -> Any:
        """What the next process of this incarnation needs when this one is recycled; it gets it by `restore`."""

    def restore(self, state: Any) -> Any:
        """Takes over from the process before this one, after `init`. Not run after a crash.

        Args:
            state: what `checkpoint` returned there.
        """

    def code_change(self, old_version: Any, state: Any) -> Any:
        """Brings the state of older code up to date, before this code takes it over in a reload.

        An exception refuses: the old code goes on. `rebeam.code_change` declares it from outside the class.

        Args:
            old_version: `__version__` of the old class or of its module; where there is none, the number of the version
                (see `rebeam.version`).
            state: what `checkpoint` returned there; without one, a dictionary of the attributes.

        Returns:
            The same for this code: for `restore`, or a dictionary of attributes.
        """
        return state

    def before_move(self) -> Any:
        """Lets go of what two processes cannot hold, before a process with new code takes over: ports, locks, files.

        It runs between two messages, before `checkpoint`. An actor that has threads or tasks of its own moves only with
        this method and `after_move`.
        """

    def after_move(self, old_version: Any) -> Any:
        """Opens again what `before_move` has let go: in the process with new code or, if that fails, in the old one.

        Args:
            old_version: as for `code_change`; in the old process, its own.
        """

    @property
    def ref(self) -> ActorRef[Self]:
        """A handle on this very actor: to send to itself later, or to be given to others. It follows restarts.

        Raises:
            NotAnActor: outside an actor.
        """
        from rebeam import _runtime

        return cast("ActorRef[Self]", _runtime.me().ref)

    def terminate(self, reason: ExitReason) -> Any:
        """Cleans up before the process ends. Not run after a failed `init`, a kill, or a death by signal.

        Args:
            reason: why it ends: `shutdown`, the exception of a method, or what `Stop` said.
        """


def raises(*exceptions: type[BaseException]) -> Callable[[F], F]:
    """Declares exceptions of a method to be answers: the caller gets them and the actor lives on.

    Everything else that a method raises ends the actor, as in OTP.

    Raises:
        SpecError: something else than classes of exceptions.
    """
    from rebeam._errors import SpecError

    for one in exceptions:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise SpecError(f"raises({one!r}): name classes of exceptions, as in `@rebeam.raises(KeyError)`")

    def declare(method: F) -> F:
        method.__rebeam_raises__ = exceptions  # type: ignore[attr-defined]
        return method

    return declare


def delivery(kind: str, *, max_deliveries: int = 2) -> Callable[[F], F]:
    """Declares what happens to a message for this method when the actor dies with it in hand.

    Args:
        kind: `at_most_once` (it is lost: a call fails with `ActorDied`, a cast becomes a dead letter) or
            `at_least_once` (it comes again, first of all mail, to the next incarnation). Without the decorator it is
            `at_most_once`.
        max_deliveries: at so many deaths with it in hand it becomes a dead letter, with all its certificates. Its
            deaths beyond the first do not use up the supervisor's restart limit; deaths that were ordered do not
            count. Default: 2.

    Raises:
        SpecError: no such kind, or a number below 2.
    """
    from rebeam._errors import SpecError

    if kind not in ("at_most_once", "at_least_once"):
        raise SpecError(f"delivery({kind!r}): it is 'at_most_once' or 'at_least_once'")
    if not isinstance(max_deliveries, int) or isinstance(max_deliveries, bool) or max_deliveries < 2:
        raise SpecError(f"max_deliveries={max_deliveries!r}: it must be a whole number of 2 or more")

    def declare(method: F) -> F:
        if kind == "at_least_once":
            method.__rebeam_redelivered__ = max_deliveries  # type: ignore[attr-defined]
        return method

    return declare


def deadline(seconds: float) -> Callable[[F], F]:
    """Declares how long a method may run, in seconds, before the actor counts as hung and killed.

    Raises:
        SpecError: no number above 0.
    """
    from rebeam._errors import SpecError
    from rebeam._options import is_number

    if not is_number(seconds) or seconds <= 0:
        raise SpecError(f"deadline({seconds!r}): it must be a number above 0")

    def declare(method: F) -> F:
        method.__rebeam_deadline__ = float(seconds)  # type: ignore[attr-defined]
        return method

    return declare
