"""What a pipeline is made of, checked where it is written down. Running it is the business of `_conductor`."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    from rebeam.batch._ids import Id

    _Exceptions: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]

    from rebeam.batch._sinks import Sink
    from rebeam.batch._sources import Source


IN_FLIGHT = 50
"""Items of an `async def` that a worker has in flight, if nothing else is said."""


class PipelineError(ValueError):
    """A pipeline that makes no sense, or a journal that does not fit it."""


class Dead(Exception):  # noqa: N818
    """Raised by a stage: this item is dead for good, and is not tried again. The text is its cause."""


class Skip(Exception):  # noqa: N818
    """Raised by a stage: this item is done, and gives no result."""


class Retry(Exception):  # noqa: N818
    """Raised by a stage: this item is to be tried again, if it has retries left.

    Args:
        why: the cause, if it has none left.
        after: seconds to wait at least. Default: the stage's own backoff.
    """

    def __init__(self, why: str = "", *, after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = after


class Item(NamedTuple):
    """What a stage may know about its item, if it has a parameter `item` besides those for value and `init`.

    Attributes:
        id: the same in every run: a number or text; of what a stage made several of, `id/0`, `id/1`, …
        attempt: which attempt this is, from 1.
    """

    id: Id
    attempt: int


@dataclass(frozen=True)
class Stage:
    """One step that a pool of actors does."""

    function: Callable[..., Any]
    name: str
    kind: str
    """`map`, `filter` or `sink`."""
    concurrency: int = 1
    memory: Any = None
    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.1
    jitter: float = 0.1
    retry_on: tuple[type[BaseException], ...] | None = None
    never_retry: tuple[type[BaseException], ...] = ()
    pause_after: int | None = 20
    in_flight: int = 1
    init: Callable[[], Any] | None = None
    key: Callable[[Any], Any] | None = None
    rate: float | None = None
    uses: tuple[tuple[str, int], ...] = ()

    @cached_property
    def is_async(self) -> bool:
        """Whether its items wait beside each other on an event loop."""
        return is_async(self.function)


@dataclass(frozen=True)
class Batch:
    """Gathers items: the next stage gets lists."""

    size: int
    within: float | None
    key: Callable[[Any], Any] | None = None
    name: str = "batch"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline; each method gives a new one. Made by `pipeline`."""

    name: str
    resources: Mapping[str, int]
    origin: Source | None = None
    steps: tuple[Stage | Batch, ...] = ()
    target: Sink | None = None

    def source(self, source: Source | Iterable[Any]) -> Pipeline:
        """Where items come from: one of `rebeam.batch.source`, or anything that can be iterated over again."""
        from rebeam.batch import _sources

        if self.origin is not None:
            raise PipelineError(f"the pipeline `{self.name}` has a source already")
        return replace(self, origin=source if isinstance(source, _sources.Source) else _sources.iterable(source))

    def stage(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        concurrency: int = 1,
        memory: Any = None,
        timeout: float | None = None,
        retries: int = 0,
        backoff: float = 0.1,
        jitter: float = 0.1,
        retry_on: _Exceptions | None = None,
        never_retry: _Exceptions = (),
        pause_after: int | None = 20,
        in_flight: int | None = None,
        init: Callable[[], Any] | None = None,
        key: Callable[[Any], Any] | None = None,
        rate: float | None = None,
        uses: Mapping[str, int] | None = None,
    ) -> Pipeline:
        """What is done with each item, in processes of its own.

        Args:
            function: a function, an `async def`, a generator function (one item becomes many), or a class, of which
                each worker makes one and calls it. It gets the value; what `init` returned, if that is not None; and,
                if it has a further parameter `item`, an `Item`. It may raise `Dead`, `Skip` or `Retry`.
            name: as reports call it. Default: the function's.
            concurrency: how many workers. Default: 1.
            memory: of each worker, as for `rebeam.child`. Default: no limit.
            timeout: seconds that an item may take; then its worker is killed, or, of an `async def`, it is cancelled.
                Default: no limit.
            retries: how often an item, or a whole batch, is tried again that failed. Default: not at all.
            backoff: seconds before the first of them; twice as long before each further one, up to 30; longer if the
                exception says so (an attribute `retry_after`, or the header `Retry-After` of its `response`).
                Default: 0.1.
            jitter: the share of a pause, from 0 to 1, that chance may take away. Default: 0.1.
            retry_on: exceptions that are worth another attempt. Default: all; a crash and a timeout always are.
            never_retry: exceptions that are not.
            pause_after: after so many attempts in a row that have failed and are to be made again, the stage pauses,
                a second at first, up to a minute, then tries one item. None: never. Default: 20.
            in_flight: how many items of an `async def` each worker has in flight. Default: 50.
            init: called once in each worker; for an `async def`, it may be one, too.
            key: items with equal keys go to the same worker, one after the other, in order. Default: any worker.
            rate: items per second, of all workers together. Default: no limit.
            uses: how much of the pipeline's `resources` each worker needs while it works.
        """
        return self._with(
            "map", function, name, concurrency=concurrency, memory=memory, timeout=timeout, retries=retries,
            backoff=backoff, jitter=jitter, retry_on=retry_on, never_retry=never_retry, pause_after=pause_after,
            in_flight=in_flight, init=init, key=key, rate=rate, uses=uses,
        )  # fmt: skip

    def filter(self, function: Callable[..., Any], *, name: str | None = None, **options: Any) -> Pipeline:
        """Keeps the items of which the function is true. Options as for `stage`."""
        return self._with("filter", function, name, **options)

    def batch(self, size: int, *, within: float | None = None, key: Callable[[Any], Any] | None = None) -> Pipeline:
        """Gathers items, so that the next stage gets lists.

        Args:
            size: items in one.
            within: seconds after which one is passed on that is not full. Default: only at the end.
            key: only items with equal keys are gathered.
        """
        if size < 1 or (within is not None and within <= 0):
            raise PipelineError(f"a batch of {size} within {within} s")
        return self._and(Batch(size, within, key))

    def sink(self, sink: Sink | Callable[..., Any], *, name: str | None = None, **options: Any) -> Pipeline:
        """Where results go: one of `rebeam.batch.sink`, or a function, with options as for `stage`."""
        from rebeam.batch import _sinks

        if isinstance(sink, _sinks.Sink):
            if options:
                raise PipelineError(f"`{next(iter(options))}` is no option of a sink that is not a function")
            return replace(self._and(), target=sink)
        return replace(self._with("sink", sink, name, **options), target=_sinks.Nothing())

    def run(self, **options: Any) -> dict[str, Any]:
        """Runs it, by `rebeam batch`, and gives the report. Options are those of the command: `fresh=True`, …

        Raises:
            PipelineError: it did not run at all.
        """
        from rebeam.batch import _run

        return _run.run(self, options)

    def _with(self, kind: str, function: Any, name: str | None, **options: Any) -> Pipeline:
        if not callable(function):
            raise PipelineError(f"{function!r} is no function")
        unknown = set(options) - set(Stage.__dataclass_fields__)
        if unknown:
            raise PipelineError(f"a stage has no option `{min(unknown)}`")
        called = name if name is not None else str(getattr(function, "__name__", type(function).__name__))
        called = "".join(it if it.isalnum() or it in "-_." else "" for it in called) or kind
        options["uses"] = tuple(sorted(dict(options.get("uses") or {}).items()))
        if options.get("in_flight") is None:
            options["in_flight"] = IN_FLIGHT if is_async(function) else 1
        elif not is_async(function):
            raise PipelineError(f"`{called}` has in_flight={options['in_flight']!r}, and is no `async def`")
        for option in ("retry_on", "never_retry"):
            if option in options:
                options[option] = _exceptions(called, option, options[option])
        _check_options(called, options)
        stage = Stage(function, called, kind, **options)
        for resource, amount in stage.uses:
            if amount > self.resources.get(resource, 0):
                raise PipelineError(f"`{stage.name}` uses {amount} of `{resource}`, of which there are "
                                    f"{self.resources.get(resource, 0)}: `pipeline(…, resources={{…}})`")  # fmt: skip
        names = [step.name for step in self.steps]
        if stage.name in names:
            count = sum(one == stage.name or one.startswith(stage.name + "-") for one in names)
            stage = replace(stage, name=f"{stage.name}-{count + 1}")
        return self._and(stage)

    def _and(self, *steps: Stage | Batch) -> Pipeline:
        if self.origin is None:
            raise PipelineError(f"the pipeline `{self.name}` has no source yet")
        if self.target is not None:
            raise PipelineError(f"the pipeline `{self.name}` has a sink already, which is the last of it")
        return replace(self, steps=(*self.steps, *steps))

    def check(self) -> None:
        """Raises a `PipelineError` if something is missing."""
        if self.origin is None or self.target is None:
            raise PipelineError(f"the pipeline `{self.name}` has no {'source' if self.origin is None else 'sink'}")
        if not any(isinstance(step, Stage) for step in self.steps):
            raise PipelineError(f"the pipeline `{self.name}` has no stage")
        for step, after in zip(self.steps, (*self.steps[1:], None), strict=True):
            if isinstance(step, Batch) and not isinstance(after, Stage):
                raise PipelineError(f"the pipeline `{self.name}` gathers a batch that no stage takes")

    def fingerprint(self) -> dict[str, str]:
        """What its results depend on, by name: if one changes, what is in the journal may be of another making."""
        origin, target = self.origin, self.target
        found = {"source": _digest(f"{origin.describe() if origin else ''} {_code_of(getattr(origin, '_id', None))}")}
        for number, step in enumerate(self.steps):
            if isinstance(step, Stage):
                text = f"{step.kind} {_code_of(step.function)} {_code_of(step.init)} {_code_of(step.key)}"
            else:
                text = f"batch {step.size} {_code_of(step.key)}"
            found[f"step {number + 1}, `{step.name}`"] = _digest(text)
        functions = [_code_of(getattr(target, name, None)) for name in ("_name", "_content")]
        found["sink"] = _digest(f"{target.describe() if target else ''} {functions}")
        return found


def _check_options(stage: str, options: dict[str, Any]) -> None:
    """Refuses values that make no sense where they are written down."""
    if stage in ("source", "sorter", "conductor"):
        raise PipelineError(f"`{stage}` is the name of a part of every run: call the stage something else by `name=`")
    for option in ("timeout", "rate", "backoff"):
        value = options.get(option)
        if value is not None and (
            not isinstance(value, (int, float)) or value < 0 or (option != "backoff" and value == 0)
        ):
            raise PipelineError(f"`{stage}` has a {option} of {value!r}")
    for option, least in (("concurrency", 1), ("retries", 0), ("in_flight", 1), ("pause_after", 1)):
        value = options.get(option, 1)
        if option == "pause_after" and value is None:
            continue
        if not isinstance(value, int) or value < least:
            raise PipelineError(f"`{stage}` has {option}={value!r}")
    jitter = options.get("jitter", 0)
    if not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
        raise PipelineError(f"`{stage}` has jitter={jitter!r}; it is a share, from 0 to 1")
    for option in ("init", "key"):
        value = options.get(option)
        if value is not None and not callable(value):
            raise PipelineError(f"`{option}` of `{stage}` is {value!r}, which is no function")


def pipeline(name: str, *, resources: Mapping[str, int] | None = None) -> Pipeline:
    """Begins a pipeline.

    Args:
        name: what its journal is called.
        resources: what there is of things that stages use, as `{"gpu": 2}`.
    """
    if not name or not all(it.isalnum() or it in "-_." for it in name) or name.startswith("."):
        raise PipelineError(f"`{name}` is no name for a pipeline: letters, digits, `-`, `_` and `.`")
    return Pipeline(name, dict(resources or {}))


def is_async(function: Any) -> bool:
    """Whether a stage's function is an `async def`, however it is wrapped."""
    if inspect.isclass(function):
        function = getattr(function, "__call__", None)  # noqa: B004
    elif not inspect.isroutine(function) and not isinstance(function, partial):
        function = getattr(type(function), "__call__", function)  # noqa: B004
    seen = inspect.unwrap(function) if callable(function) else function
    return any(inspect.iscoroutinefunction(it) or inspect.isasyncgenfunction(it) for it in (function, seen))


def _exceptions(stage: str, option: str, given: Any) -> tuple[type[BaseException], ...] | None:
    if given is None:
        return None
    classes = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        raise PipelineError(f"`{option}` of `{stage}` is {given!r}; it is an exception's class, or a tuple of them")
    return classes


def _code_of(function: Any) -> str:
    if function is None:
        return ""
    if isinstance(function, (str, itemgetter)):
        return repr(function)
    if isinstance(function, partial):
        return f"{_code_of(function.func)} {_shown(function.args)} {_shown(function.keywords)}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        # Of a library without sources, or an object that is called.
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _shown(value: Any) -> str:
    """A value as text that is the same in every run: of what has no such text, its type."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    is_plain = isinstance(value, (str, bytes, int, float, complex, type(None)))
    return repr(value) if is_plain else type(value).__qualname__


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
