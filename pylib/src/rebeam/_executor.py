"""A pool of actors as an executor of `concurrent.futures`.

Nothing here blocks whoever submits: workers are started by threads of their own, and one thread of the actor takes
the answers of all pools. A `_Pool` holds what there is; the `Executor` is its handle, and with the last handle the pool
goes.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rebeam import _errors, _failure, _functions, _pending, _process, _rebeam, _runtime, _spec
from rebeam._actor import Actor
from rebeam._ref import Target

if TYPE_CHECKING:
    from rebeam._ref import ActorRef

R = TypeVar("R")
P = ParamSpec("P")

_Future = concurrent.futures.Future[Any]

_MOST_TRIES = 3
"""Workers that may die under a function that none of them has begun."""

_log = logging.getLogger("rebeam")


class _Worker(Actor):
    """Runs one function after another. What they raise is an answer, and does not end it."""

    def init(self, initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*arguments)

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[str, str, str, bytes] | None]:
        try:
            return function(*args, **kwargs), None
        except _errors.ActorExit:
            raise
        except BaseException as error:
            return None, _failure.describe(error)


class _Work:
    """One call of a function, and how often a worker died that was to begin it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.content = (function, args, kwargs)
        self.tries = 0


class _Pool:
    """Workers, what waits for them, and what they have in hand."""

    def __init__(self, most: int, spec: Any, most_tasks: int | None, has_initializer: bool, answers: _Answers) -> None:
        self.most = most
        self._answers = answers
        self._spec = spec
        self._most_tasks = most_tasks
        self._has_initializer = has_initializer
        # Its owner may be dropped, and what follows run, at any moment: also while this very thread holds the lock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[ActorRef[_Worker]] = []
        self._tasks: dict[ActorRef[_Worker], int] = {}
        """How many functions each worker has run; those that are being started are not among them."""
        self._starting = 0
        self._waiting: dict[_Future, _Work] = {}
        self._running: set[_Future] = set()
        self._is_shut = False
        self._broken: BaseException | None = None

    def submit(self, future: _Future, work: _Work) -> None:
        self._answers.start()
        with self._lock:
            if self._broken is not None:
                raise concurrent.futures.BrokenExecutor("a worker's initializer has failed") from self._broken
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting[future] = work
        future.add_done_callback(self._forget_cancelled)
        self._go_on()

    def _forget_cancelled(self, future: _Future) -> None:
        if future.cancelled():
            with self._lock:
                self._waiting.pop(future, None)
                self._changed.notify_all()

    def _go_on(self) -> None:
        """Hands what waits to idle workers, and has more of them started where there may be more."""
        while True:
            with self._lock:
                while self._starting < len(self._waiting) - len(self._idle) and self._count() < self.most:
                    self._starting += 1
                    threading.Thread(target=self._start_one, name="rebeam-start", daemon=True).start()
                if not self._waiting or not self._idle:
                    return
                future = next(iter(self._waiting))
                work = self._waiting.pop(future)
                if work.tries == 0 and not future.set_running_or_notify_cancel():
                    self._changed.notify_all()
                    continue
                worker = self._idle.pop()
                self._running.add(future)
            try:
                pending = _pending.request(worker._address, "run", (work.content, {}), Target(None), is_method=True)
            except Exception as error:
                self._settle(future, worker, None, error)
            else:
                _pending.on_answer(pending._call, functools.partial(self._end, future, work, worker, pending))

    def _count(self) -> int:
        return len(self._tasks) + self._starting

    def _start_one(self) -> None:
        try:
            worker = _functions.spawn(self._spec)
        except BaseException as error:
            with self._lock:
                self._starting -= 1
                # Whom it was to be started for; where an initializer fails, everybody.
                failed = list(self._waiting) if self._has_initializer else list(self._waiting)[:1]
                for future in failed:
                    self._waiting.pop(future, None)
                if self._has_initializer:
                    self._broken = error
                    error = concurrent.futures.BrokenExecutor(f"a worker's initializer has failed: {error}")
            for future in failed:
                if future.running() or future.set_running_or_notify_cancel():
                    _set(future, None, error)
            with self._lock:
                self._changed.notify_all()
        else:
            with self._lock:
                self._starting -= 1
                self._tasks[worker] = 0
                self._idle.append(worker)
                self._changed.notify_all()
        self._go_on()
        self._end_if_over()

    def _end(
        self, future: _Future, work: _Work, worker: ActorRef[_Worker], pending: _pending.Pending[Any], _: int
    ) -> None:
        """The answer for a function has come."""
        value: Any = None
        error: BaseException | None = None
        left: ActorRef[_Worker] | None = worker
        try:
            value, described = pending.result()
            if described is not None:
                kind, message, traceback, pickled = described
                error = _errors.remote(kind, message, traceback, pickled)
        except (_errors.ActorDied, _errors.NoProc) as died:
            left, error = None, died
            is_begun = isinstance(died, _errors.ActorDied) and bool(died.certificate.in_hand)
            if not is_begun and work.tries < _MOST_TRIES:
                return self._try_again(future, work, worker)
        except BaseException as raised:
            error = raised
        self._settle(future, left, value, error, worker)
        return None

    def _try_again(self, future: _Future, work: _Work, dead: ActorRef[_Worker]) -> None:
        """A worker has died that had not begun the function: another one runs it, before all others."""
        work.tries += 1
        with self._lock:
            self._tasks.pop(dead, None)
            self._running.discard(future)
            self._waiting = {future: work, **self._waiting}
        self._go_on()

    def _settle(
        self,
        future: _Future,
        worker: ActorRef[_Worker] | None,
        value: Any,
        error: BaseException | None,
        was: ActorRef[_Worker] | None = None,
    ) -> None:
        """Frees the worker, if it lives, then gives a future its outcome, so that what waits for that finds it free."""
        used_up = None
        with self._lock:
            if worker is None:
                if was is not None:
                    self._tasks.pop(was, None)
            else:
                self._tasks[worker] += 1
                if self._most_tasks is not None and self._tasks[worker] >= self._most_tasks:
                    used_up = worker
                    del self._tasks[worker]
                else:
                    self._idle.append(worker)
        if used_up is not None:
            _process.exit(used_up, "shutdown")
        _set(future, value, error)
        with self._lock:
            self._running.discard(future)
            self._changed.notify_all()
        self._go_on()
        self._end_if_over()

    def shut(self, wait: bool, cancel: bool) -> None:
        with self._lock:
            self._is_shut = True
            cancelled = list(self._waiting) if cancel else []
        for future in cancelled:
            future.cancel()
        # The thread that takes all answers would wait for itself.
        wait = wait and threading.current_thread() is not self._answers.thread
        if wait:
            with self._lock:
                self._changed.wait_for(lambda: not (self._waiting or self._running or self._starting))
        workers = self._end_if_over()
        if wait:
            for worker in workers:
                try:
                    _process.stop(worker, "shutdown")
                except (_errors.NoProc, _errors.EndedOtherwise):
                    pass

    def drop(self) -> None:
        """Nobody holds the executor any more: what was submitted is done, and then the workers go."""
        # This may run wherever the collector does.
        threading.Thread(target=self.shut, args=(False, False), name="rebeam-drop", daemon=True).start()

    def _end_if_over(self) -> list[ActorRef[_Worker]]:
        """Ends the workers of a pool that is shut and has nothing left to do; gives them."""
        with self._lock:
            if not self._is_shut or self._waiting or self._running:
                return []
            workers, self._tasks, self._idle = list(self._tasks), {}, []
        for worker in workers:
            try:
                _process.exit(worker, "shutdown")
            except _errors.RebeamError:
                pass
        return workers


def _set(future: _Future, value: Any, error: BaseException | None) -> None:
    """Gives a future its outcome. What its callbacks do must not end the thread that takes all answers."""
    try:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except BaseException:
        _log.exception("a callback of a future has failed")


class Executor(concurrent.futures.Executor):
    """Runs functions in actors of its own, as `ProcessPoolExecutor` does in processes, and survives their deaths.

    A function that crashes its process fails its own future, with `ActorDied`, and no other; one that no worker had
    begun is run by another. The pool goes on. It belongs to the actor that makes it, and ends with that; with the last
    handle on it, it ends when what was submitted is done.

    Args:
        max_workers: how many processes there may be. Default: one per CPU that this process may use, or by its quota.
        initializer: is called in each worker before its first function; if it fails, so does everything submitted, with
            `concurrent.futures.BrokenExecutor`.
        initargs: its arguments.
        max_tasks_per_child: functions after which a worker is replaced. Default: never.
        options: as for `child`, of the workers: `memory`, `cpus`, `env`, `callback_deadline`, …

    Raises:
        SpecError: an option that makes no sense.
        ValueError, TypeError: an argument that makes none.
        NotAnActor: outside an actor.
        RuntimeError: gevent has patched this process, whose threads are none any more.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        for what, number in (("max_workers", max_workers), ("max_tasks_per_child", max_tasks_per_child)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{what}={number!r}: it must be 1 or more")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        _refuse_gevent()
        me = _runtime.me()
        if "name" in options:
            raise _errors.SpecError("the workers of an executor have no name")
        spec = _spec.child(_Worker, initializer, tuple(initargs), **{"restart": "temporary", **options})
        most = max_workers or _spec.cpus()
        answers = _answers.setdefault(me, _Answers())
        self._pool = _Pool(most, spec, max_tasks_per_child, initializer is not None, answers)
        weakref.finalize(self, self._pool.drop).atexit = False

    @property
    def _max_workers(self) -> int:
        # Asked for by dask, tqdm and others that divide work.
        return self._pool.most

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        """Has a function run. What cannot be sent is an error of the future.

        Raises:
            RuntimeError: after `shutdown`.
            concurrent.futures.BrokenExecutor: the initializer has failed.
        """
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._pool.submit(future, _Work(fn, args, kwargs))
        return future

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Runs a function for each tuple of the inputs; gives the results in order.

        Inputs that have a length are submitted at once. Of others, so much is read ahead that no worker waits, and the
        rest as results are taken.

        Args:
            fn: the function.
            iterables: its arguments.
            timeout: seconds from this call until the last result.
            chunksize: how many calls are sent together; more saves time where calls are short.
            buffersize: how many calls may be under way beyond the results taken. Default: all, of inputs with a length;
                else some for each worker.

        Raises:
            TimeoutError: a result was not there in time.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else _rebeam.clock() + timeout
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        ahead: int | None = None
        if buffersize is not None:
            ahead = max(1, buffersize // chunksize)
        elif not all(isinstance(iterable, Sized) for iterable in iterables):
            ahead = _AHEAD * self._pool.most
        first = chunks if ahead is None else itertools.islice(chunks, ahead)
        futures = [self.submit(_run_chunk, fn, chunk) for chunk in first]
        return self._results(fn, futures, chunks, end)

    def _results(
        self, fn: Callable[..., R], futures: list[concurrent.futures.Future[list[R]]], chunks: Iterator[Any], end: Any
    ) -> Iterator[R]:
        try:
            futures.reverse()
            while futures:
                left = None if end is None else end - _rebeam.clock()
                results = futures.pop().result(left)
                chunk = next(chunks, None)
                if chunk is not None:
                    futures.insert(0, self.submit(_run_chunk, fn, chunk))
                yield from results
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more. Workers end when what was submitted is done.

        Args:
            wait: returns when all is done and the workers have ended.
            cancel_futures: cancels what no worker has begun.
        """
        self._pool.shut(wait, cancel_futures)


_AHEAD = 4
"""Chunks of an input without a length that are submitted ahead, for each worker."""


def _run_chunk(function: Callable[..., R], calls: list[tuple[Any, ...]]) -> list[R]:
    return [function(*arguments) for arguments in calls]


def _refuse_gevent() -> None:
    """With gevent's monkey patches a thread is a greenlet, and one that waits for answers would stop all others."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise RuntimeError(
            "`rebeam.Executor` needs real threads, and gevent has patched them in this process: "
            "use `ref.request` or `rebeam.task`, or make the executor in an actor of its own, without gevent"
        )


class _Answers:
    """The thread that takes the answers of all executors of an actor."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._run, name="rebeam-answers", daemon=True)
            self.thread.start()

    def _run(self) -> None:
        while True:
            for call in _rebeam.wait_ready(None):
                try:
                    _pending.resolve([call])
                except BaseException:
                    _log.exception("an answer could not be passed on")


_answers: weakref.WeakKeyDictionary[_runtime.Identity, _Answers] = weakref.WeakKeyDictionary()
