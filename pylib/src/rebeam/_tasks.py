"""Work in a process of its own: tasks, and an executor as of `concurrent.futures`."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from rebeam import _errors, _failure, _functions, _pending, _process, _rebeam, _runtime
from rebeam._actor import Actor
from rebeam._ref import Target
from rebeam._spec import cpus

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebeam._ref import ActorRef

R = TypeVar("R")
P = ParamSpec("P")


class _Worker(Actor):
    """Runs one function after another. What they raise is an answer, and does not end it."""

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result:
        try:
            return _Result(function(*args, **kwargs), None)
        except Exception as error:
            return _Result(None, _failure.describe(error))


class _Result(NamedTuple):
    value: Any
    error: tuple[str, str, str, bytes] | None

    def get(self) -> Any:
        if self.error is None:
            return self.value
        kind, message, traceback, pickled = self.error
        raise _errors.remote(kind, message, traceback, pickled)


class _TaskActor(Actor):
    """Runs one function and ends: with its value as the answer, or with its exception."""

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import inspect

        result = function(*args, **kwargs)
        if inspect.iscoroutine(result):
            from rebeam import _loop

            result = _loop.run(result)
        raise _errors.Stop(reply=result)


class Task(Generic[R]):
    """A function that runs in a process of its own, for the actor that started it.

    Attributes:
        ref: the actor that runs it.
    """

    def __init__(self, ref: ActorRef[Any], pending: _pending.Pending[R]) -> None:
        self.ref = ref
        self._pending = pending

    def result(self, timeout: float | None = 5.0) -> R:
        """Waits for its value; raises what it raised, or `ActorDied`.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            TimeoutError: it took longer. It is stopped, and a late value is dropped; `poll` only looks.
        """
        try:
            return self._pending.result(timeout)
        except TimeoutError:
            if self._pending.done():
                # The function's own.
                raise
            self.shutdown(0)
            raise TimeoutError(f"the task took longer than {timeout} s") from None

    def poll(self, timeout: float = 0.0) -> Outcome[R] | None:
        """How it ended, or None if it has not within this many seconds."""
        try:
            return Outcome(self._pending.result(timeout), None)
        except Exception as error:
            is_over = not isinstance(error, TimeoutError) or self._pending.done()
            return Outcome(None, error) if is_over else None

    def shutdown(self, timeout: float = 5.0) -> Outcome[R] | None:
        """Stops it within this many seconds, and gives how it had ended, if it had; else None."""
        found = self.poll()
        if found is None:
            self._pending.cancel()
            try:
                _process.unlink(self.ref)
                _process.kill(self.ref) if timeout <= 0 else _process.exit(self.ref, "shutdown")
            except _errors.NoProc:
                pass
        return found

    def done(self) -> bool:
        """Whether it has ended."""
        return self._pending.done()

    def __await__(self) -> Any:
        return self._pending.__await__()


class Outcome(NamedTuple, Generic[R]):
    """How a task ended.

    Attributes:
        value: what it returned.
        error: what it raised, or the `ActorDied` of its process; None if it returned.
    """

    value: R | None
    error: BaseException | None


def task(
    function: Callable[P, R], /, *args: Any, link: bool = True, supervisor: str | None = None, **kwargs: Any
) -> Task[R]:
    """Starts a function in a process of its own, for this actor, which may wait for its value or not.

    Args:
        function: at the top level of a module.
        args, kwargs: its arguments.
        link: whether its failure ends this actor, too (Elixir's `Task.async`), unless that traps exits. False is
            `Task.Supervisor.async_nolink`.
        supervisor: the name of a `DynamicSupervisor` that it is to be a child of. Default: the node's own.
    """
    from rebeam import _spec, _supervisors

    spec = _spec.child(_TaskActor, restart="temporary", id=getattr(function, "__name__", "task"))
    ref: ActorRef[Any]
    if supervisor is None:
        ref = _functions.spawn(spec, link=link)
    else:
        ref = _supervisors.supervisor(supervisor).start_child(spec).ref
        if link:
            _process.link(ref)
    pending = _pending.request(ref._address, "run", ((function, args, kwargs), {}), Target(None), is_method=True)
    return Task(ref, pending)


class Executor(concurrent.futures.Executor):
    """Runs functions in actors of its own, as `ProcessPoolExecutor` does in processes, and survives their deaths.

    A function that crashes its process fails its own future, with `ActorDied`; the pool goes on. It belongs to the
    actor that makes it.

    Args:
        max_workers: how many processes there may be. Default: one per CPU that this process may use, or by its quota.
        options: as for `child`, of the workers: `memory`, `cpus`, `env`, `callback_deadline`, …
    """

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers={max_workers!r}: it must be 1 or more")
        _runtime.me()
        self._most = max_workers or cpus()
        self._options = options
        self._lock = threading.Lock()
        self._idle: list[ActorRef[_Worker]] = []
        self._count = 0
        self._waiting: deque[tuple[concurrent.futures.Future[Any], Any]] = deque()
        self._running: dict[concurrent.futures.Future[Any], _pending.Pending[Any]] = {}
        self._is_shut = False
        self._all_done = threading.Condition(self._lock)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        """Has a function run. What cannot be sent is an error of the future."""
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        _answers.start()
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append((future, (fn, args, kwargs)))
        self._go_on()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more; waits for what runs, unless told not to, and stops the workers."""
        with self._lock:
            self._is_shut = True
            if cancel_futures:
                for future, _ in self._waiting:
                    future.cancel()
                self._waiting.clear()
            if wait:
                self._all_done.wait_for(lambda: not self._waiting and not self._running)
        self._stop_idle()

    def _go_on(self) -> None:
        """Hands waiting work to idle workers, and makes new ones where there may be more."""
        while True:
            with self._lock:
                if not self._waiting or not (self._idle or self._count < self._most):
                    return
                future, work = self._waiting.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                worker = self._idle.pop() if self._idle else None
                self._count += worker is None
                # A placeholder, so that nobody believes that all is done.
                self._running[future] = None  # type: ignore[assignment]
            try:
                if worker is None:
                    worker = _functions.spawn(_Worker, **self._options)
                pending = _pending.request(worker._address, "run", (work, {}), Target(None), is_method=True)
            except BaseException as error:
                future.set_exception(error)
                self._free(future, worker)
                if not isinstance(error, Exception):
                    raise
                continue
            with self._lock:
                self._running[future] = pending
            _pending.on_answer(pending._call, functools.partial(self._end, future, worker, pending))

    def _end(
        self,
        future: concurrent.futures.Future[Any],
        worker: ActorRef[_Worker],
        pending: _pending.Pending[_Result],
        _: int,
    ) -> None:
        left: ActorRef[_Worker] | None = worker
        value: Any = None
        error: BaseException | None = None
        try:
            value = pending.result().get()
        except (_errors.ActorDied, _errors.NoProc) as died:
            left, error = None, died
        except BaseException as raised:
            error = raised
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        self._free(future, left)
        self._go_on()
        if self._is_shut:
            self._stop_idle()

    def _free(self, future: concurrent.futures.Future[Any], worker: ActorRef[_Worker] | None) -> None:
        with self._lock:
            self._running.pop(future, None)
            if worker is None:
                self._count -= 1
            else:
                self._idle.append(worker)
            if not self._waiting and not self._running:
                self._all_done.notify_all()

    def _stop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for worker in idle:
            _process.exit(worker, "shutdown")


class _Answers:
    """The thread that takes the answers of all executors of this process."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="rebeam-answers", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            _pending.resolve(_rebeam.wait_ready(None))


_answers = _Answers()
