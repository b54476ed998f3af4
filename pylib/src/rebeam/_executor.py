"""A pool of actors as an executor of `concurrent.futures`.

Nothing here blocks whoever submits: workers are started by threads of their own, and answers are taken by one thread of
the actor for all pools, beside its event loop, if it has one. A `_Pool` holds what there is; the `Executor` is its
handle, and with the last handle the pool goes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from rebeam import _errors, _failure, _functions, _pending, _process, _rebeam, _runtime, _spec
from rebeam._actor import Actor
from rebeam._ref import Target

if TYPE_CHECKING:
    from rebeam._options import ChildOptions
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
            try:
                return None, _failure.describe(error)
            except Exception:
                # Its own methods may raise, too.
                return None, _failure.describe(RuntimeError(f"{type(error).__name__}, which cannot be described"))


class _Work:
    """One call of a function, and how often a worker died that was to begin it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.content = (function, args, kwargs)
        self.tries = 0


class _Pool:
    """Workers, what waits for them, and what they have in hand.

    Two things are done by whoever comes by, and not within each other, so that no stack grows and nobody waits for the
    callbacks of a future but whoever runs them: waiting functions are handed out (`_hand_out`), by one thread at a
    time, and outcomes are passed on to their futures (`_pass_on`).
    """

    def __init__(
        self, most: int, spec: Any, most_tasks: int | None, has_initializer: bool, owner: _runtime.Identity
    ) -> None:
        self.most = most
        self._spec = spec
        self._most_tasks = most_tasks
        self._has_initializer = has_initializer
        self._owner = owner
        self._answers = _answers.setdefault(owner, _Answers())
        # What is freed while it is held may have a finalizer that submits or shuts down.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[ActorRef[_Worker]] = []
        self._tasks: dict[ActorRef[_Worker], int] = {}
        """How many functions each worker has run; those that are being started are not among them."""
        self._starting = 0
        self._waiting: dict[_Future, _Work] = {}
        self._running: set[_Future] = set()
        self._over: collections.deque[tuple[_Future, Any, BaseException | None]] = collections.deque()
        """Outcomes that their futures do not have yet."""
        self._is_handing_out = False
        self._of_thread = threading.local()
        self._is_shut = False
        self._leaving: collections.deque[ActorRef[_Worker]] = collections.deque(maxlen=2 * most)
        """The workers that were told to end last."""
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
        if not future.cancelled():
            return
        with self._lock:
            work = self._waiting.pop(future, None)
            self._changed.notify_all()
        if work is not None:
            # Tells whoever waits for several.
            future.set_running_or_notify_cancel()

    def _go_on(self) -> None:
        self._hand_out()
        self._pass_on()

    def _hand_out(self) -> None:
        """Hands what waits to idle workers, and has more of them started where there may be more."""
        with self._lock:
            if self._is_handing_out:
                # Whoever does sees what has changed.
                return
            self._is_handing_out = True
        self._of_thread.is_busy, was_busy = True, self._is_busy()
        try:
            while self._hand_out_one():
                pass
        except BaseException:
            with self._lock:
                self._is_handing_out = False
            raise
        finally:
            self._of_thread.is_busy = was_busy

    def _hand_out_one(self) -> bool:
        with self._lock:
            self._start_more()
            if not self._waiting or not self._idle:
                # Under the same lock, so that what comes now is seen by whoever brings it.
                self._is_handing_out = False
                return False
            future = next(iter(self._waiting))
            work = self._waiting.pop(future)
            if work.tries == 0 and not future.set_running_or_notify_cancel():
                self._changed.notify_all()
                return True
            worker = self._idle.pop()
            self._running.add(future)
        try:
            pending = _pending.request(worker._address, "run", (work.content, {}), Target(None), is_method=True)
        except _errors.Unpicklable as error:
            self._settle(future, worker, None, _unsendable(work, error))
        except BaseException as error:
            self._settle(future, worker, None, error)
            if not isinstance(error, Exception):
                raise
        else:
            _pending.on_answer(pending._call, functools.partial(self._answered, future, work, worker, pending))
        return True

    def _start_more(self) -> None:
        while self._starting < len(self._waiting) - len(self._idle) and len(self._tasks) + self._starting < self.most:
            self._starting += 1
            try:
                threading.Thread(target=self._start_one, name="rebeam-start", daemon=True).start()
            except RuntimeError as error:
                # There may be no more threads. Where there are workers, they do it all.
                self._starting -= 1
                if not self._tasks and not self._starting:
                    self._fail(list(self._waiting), error)
                return

    def _start_one(self) -> None:
        try:
            worker = _functions.spawn(self._spec)
        except BaseException as error:
            with self._lock:
                self._starting -= 1
                if self._has_initializer:
                    self._broken = error
                    broken = concurrent.futures.BrokenExecutor(f"a worker's initializer has failed: {error}")
                    self._fail(list(self._waiting), broken)
                else:
                    # Whom it was to be started for.
                    self._fail(list(self._waiting)[:1], error)
        else:
            with self._lock:
                self._starting -= 1
                self._tasks[worker] = 0
                self._idle.append(worker)
                self._changed.notify_all()
        self._go_on()

    def _fail(self, futures: list[_Future], error: BaseException) -> None:
        for future in futures:
            work = self._waiting.pop(future)
            if work.tries > 0 or future.set_running_or_notify_cancel():
                self._running.add(future)
                self._over.append((future, None, error))
        self._changed.notify_all()

    def _answered(
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
            left = None
            # Its traceback would hold this frame, and this frame holds it.
            error = died.with_traceback(None)
            if isinstance(died, _errors.NoProc):
                # It was dead before; each that was leaves the pool by this, so this comes to an end.
                return self._try_again(future, work, worker)
            if not died.begun and work.tries < _MOST_TRIES:
                work.tries += 1
                return self._try_again(future, work, worker)
            error = _broken_by(died)
        except BaseException as raised:
            error = raised.with_traceback(None)
        self._settle(future, left, value, error, worker)
        return self._go_on()

    def _try_again(self, future: _Future, work: _Work, dead: ActorRef[_Worker]) -> None:
        """A worker has died that had not begun the function: another one runs it, before all others."""
        work.tries = max(work.tries, 1)
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
        """Frees the worker, if it lives, and notes the outcome."""
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
                    self._leaving.append(worker)
                else:
                    self._idle.append(worker)
            self._over.append((future, value, error))
        if used_up is not None:
            self._end(used_up)

    def _is_busy(self) -> bool:
        """Whether this very thread hands out, or passes on."""
        return getattr(self._of_thread, "is_busy", False)

    def _pass_on(self) -> None:
        """Gives futures their outcomes, and with that runs their callbacks."""
        if self._is_busy():
            # It does so when it is done with what it is at.
            return
        self._of_thread.is_busy = True
        try:
            while True:
                with self._lock:
                    if not self._over:
                        break
                    future, value, error = self._over.popleft()
                try:
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(error)
                finally:
                    with self._lock:
                        self._running.discard(future)
                        self._changed.notify_all()
                    del future, value, error
        finally:
            self._of_thread.is_busy = False
        self._end_if_over()

    def shut(self, wait: bool, cancel: bool) -> None:
        with self._lock:
            self._is_shut = True
            cancelled = list(self._waiting) if cancel else []
        for future in cancelled:
            future.cancel()
        # In a callback of a future it would wait for itself, and on the thread that takes the answers forever.
        wait = wait and not self._is_busy() and threading.current_thread() is not self._answers.thread
        if wait:
            with self._lock:
                self._changed.wait_for(lambda: not (self._waiting or self._running or self._starting))
        self._end_if_over()
        if wait:
            with self._lock:
                leaving = list(self._leaving)
            for worker in leaving:
                with contextlib.suppress(_errors.NoProc, _errors.EndedOtherwise):
                    _pending.follow(_process.stopping(worker, "shutdown", None), None)

    def drop(self) -> None:
        """Nobody holds the executor any more: what was submitted is done, and then the workers go."""
        # This may run wherever the collector does.
        if _runtime.is_here(self._owner):
            threading.Thread(target=self.shut, args=(False, False), name="rebeam-drop", daemon=True).start()

    def _end_if_over(self) -> None:
        """Ends the workers of a pool that is shut and has nothing left to do."""
        with self._lock:
            if not self._is_shut or self._waiting or self._running:
                return
            workers, self._tasks, self._idle = list(self._tasks), {}, []
            self._leaving += workers
        for worker in workers:
            self._end(worker)

    def _end(self, worker: ActorRef[_Worker]) -> None:
        # In a test, the owner's node may be gone, and the worker's number be another's.
        if _runtime.is_here(self._owner):
            with contextlib.suppress(_errors.RebeamError):
                _process.exit(worker, "shutdown")


class Executor(concurrent.futures.Executor):
    """Runs functions in actors of its own, as `ProcessPoolExecutor` does in processes, and survives their deaths.

    Callbacks of futures must not wait for other futures: all executors of an actor take their answers on one thread.
    A function that crashes its process fails its own future, with an `ActorDied` that is a `BrokenProcessPool`, too,
    and no other; one that no worker had begun is run by another. The pool goes on. It belongs to the actor that makes
    it, and ends with that; with the last handle on it, it ends when what was submitted is done. The functions and their
    arguments are pickled, `initargs` as well: a `Manager`'s proxies can be sent, a `multiprocessing.Queue` cannot.
    Large arrays arrive read-only (`rebeam.writable`).

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
        **options: Unpack[ChildOptions],
    ) -> None:
        for what, number in (("max_workers", max_workers), ("max_tasks_per_child", max_tasks_per_child)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{what} must be greater than 0, not {number!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        _refuse_gevent()
        me = _runtime.me()
        if "mp_context" in options:
            raise _errors.SpecError("an executor has no `mp_context`: its workers are actors, started as all are")
        for option in ("name", "id", "restart", "significant"):
            if option in options:
                raise _errors.SpecError(f"the workers of an executor have no option `{option}`")
        options["restart"] = "temporary"
        spec = _spec.child(_Worker, initializer, tuple(initargs), **options)
        most = max_workers or _spec.cpus()
        self._pool = _Pool(most, spec, max_tasks_per_child, initializer is not None, me)
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
        futures = collections.deque(self.submit(_run_chunk, fn, chunk) for chunk in first)
        return self._results(fn, futures, chunks, end)

    def _results(
        self,
        fn: Callable[..., R],
        futures: collections.deque[concurrent.futures.Future[list[R]]],
        chunks: Iterator[Any],
        end: float | None,
    ) -> Iterator[R]:
        try:
            while futures:
                left = None if end is None else end - _rebeam.clock()
                results = futures[0].result(left)
                futures.popleft()
                chunk = next(chunks, None)
                if chunk is not None:
                    futures.append(self.submit(_run_chunk, fn, chunk))
                # What was given is kept by nobody but whoever has got it.
                results.reverse()
                while results:
                    yield results.pop()
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


def _broken_by(died: _errors.ActorDied) -> _errors.ActorDied:
    """The error for a function whose worker has died, which is also what those catch who know other pools."""
    process = sys.modules.get("concurrent.futures.process")
    broken = concurrent.futures.BrokenExecutor if process is None else process.BrokenProcessPool
    return _died_and(broken)(died.certificate, died.begun)


@functools.cache
def _died_and(broken: type[Exception]) -> type[_errors.ActorDied]:
    kind = type("ActorDied", (_errors.ActorDied, broken), {"__doc__": _errors.ActorDied.__doc__})
    kind.__module__ = "rebeam"
    return kind


def _unsendable(work: _Work, error: _errors.Unpicklable) -> _errors.Unpicklable:
    """The error for a call that cannot be pickled, in the words of whoever submitted it."""
    from rebeam import _pickling

    function, args, kwargs = work.content
    if function is _run_chunk:
        function, args, kwargs = args[0], args[1], {}
    name = getattr(function, "__qualname__", repr(function))
    why = _pickling.why_not(function)
    if why is not None:
        return _errors.Unpicklable(f"the function `{name}` cannot be sent: workers import it by its name: {why}")
    return _pickling.explain((args, kwargs), name, _pickling.why_not((args, kwargs)) or error)


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
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
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
