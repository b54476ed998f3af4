"""Runs a pipeline: reads the source, hands items to the workers of each stage, keeps the journal, and never waits for
one of them alone.

Demand runs from the end to the beginning: a stage takes up no more than there is room for behind it, and the source is
read no further than the first stage has room. An item is held here as bytes; only workers, and sinks, look into it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import rebeam
from rebeam import _process
from rebeam._actor import Actor
from rebeam._errors import ActorDied, NoProc, RebeamError, Stop
from rebeam.batch import _journal, _worker
from rebeam.batch._journal import Changes, Dead, Journal, Waiting
from rebeam.batch._pipeline import Batch, PipelineError, Stage
from rebeam.batch._pools import MOST_BYTES, Gatherer, Pool, Signal, Work, halves, listed, unpickled
from rebeam.batch._reader import Reader, SourceError
from rebeam.batch._worker import MARK, Chunk, Worker

if TYPE_CHECKING:
    from rebeam.batch._pipeline import Pipeline
    from rebeam.batch._run import Current
    from rebeam.batch._sources import Id

log = logging.getLogger("rebeam.batch")
# The report goes this way, whatever level the application has chosen for the others.
log.setLevel(logging.INFO)

UNWRITTEN = 20_000
"""Changes that may wait to be written before stages pause."""

STRANGERS = 5
"""How often an item may be in hand when somebody else kills its worker, before that counts as its fault."""

DONE, DEAD_ITEMS, UNFINISHED = 0, 4, 5
"""Exit codes of a batch: all is done; some items are dead; it goes on when it is run again."""


class Conductor(Actor):
    """The one actor that knows the whole of a run."""

    def init(self) -> None:
        from rebeam.batch import _run

        self._flow = Flow(_run.current())
        self.ref.cast(Conductor.conduct)

    async def conduct(self) -> None:
        """Runs to the end."""
        await self._flow.run()
        raise Stop

    async def drain(self) -> None:
        """Takes up nothing new: what is in hand is finished, and the run ends, to go on another time."""
        self._flow.stop("it was asked to stop")


class Flow:
    """The state of a run."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self._pipeline: Pipeline = current.pipeline
        self._options = current.options
        in_memory = bool(self._options.get("no_journal"))
        self._journal = Journal(current.directory, self._pipeline.name, in_memory=in_memory)
        assert self._pipeline.origin is not None and self._pipeline.target is not None
        self._source, self._sink = self._pipeline.origin, self._pipeline.target
        mark = self._journal.meta("mark")
        if self._journal.meta("sink") != self._sink.describe():
            # Another sink begins at its beginning.
            mark = None
        try:
            self._sink.open(mark, may_replace=bool(self._options.get("fresh")))
        except (PipelineError, OSError, sqlite3.Error, ValueError) as error:
            raise PipelineError(f"the sink `{self._sink.describe()}`: {error}") from None
        self._journal.set_meta(sink=self._sink.describe(), mark=mark if mark is not None else "0")
        self._before = self._journal.counts()
        self._pools: dict[int, Pool] = {}
        self._gatherers: dict[int, Gatherer] = {}
        slot = 0
        for step, stage in enumerate(self._pipeline.steps):
            if isinstance(stage, Stage):
                self._pools[step] = Pool(step, stage, slot)
                slot += stage.concurrency
        for step, batch in enumerate(self._pipeline.steps):
            if isinstance(batch, Batch):
                self._gatherers[step] = Gatherer(step, batch, self._pools[step + 1])
        self._changes = Changes()
        self._written, self._to_write = Signal(), Signal()
        self._stopped: str | None = None
        self._fault: str | None = None
        self._is_over = False
        self._in_flight: set[Id] = set()
        self._chunks = itertools.count(1)
        self._total = self._source.count() if not self._options.get("only") else len(self._options["only"])
        self._read = 0
        self._finished = 0
        self._failures: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[str]] = {}
        self._dead = 0
        self._timeline: list[tuple[float, list[int]]] = []
        self._began = time.monotonic()
        self._resources = dict(self._pipeline.resources)
        self._freed = Signal()
        self._met: set[str] = set()
        """Which items were found of those that alone are wanted."""
        self._journal_thread = ThreadPoolExecutor(1)
        self._has_read = Signal()

    # ---- the whole ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        drivers = [
            self._drive(pool, slot)
            for pool in self._pools.values()
            for slot in range(pool.stage.concurrency)
            # The next chunk is there before the last one is done; where order or a resource matters, it is not.
            for _ in range(1 if pool.stage.key or pool.stage.uses else 2)
        ]
        tasks = [asyncio.ensure_future(it) for it in (self._feed(), *drivers)]
        beside = [asyncio.ensure_future(it) for it in (self._watch(), self._tell())]
        writer = asyncio.ensure_future(self._write_changes())
        done, _ = await asyncio.wait([*tasks], return_when=asyncio.FIRST_EXCEPTION)
        failed = next((it.exception() for it in done if it.exception() is not None), None)
        if failed is not None:
            # A fault of ours, or of the journal: nothing that was not written is done.
            self.stop(f"{type(failed).__name__}: {failed}")
            # It may have left a change half noted: what was not written is done again.
            self._changes = Changes()
            for task in tasks:
                task.cancel()
        self._is_over = True
        self._to_write.set()
        await writer
        for task in beside:
            task.cancel()
        self._end(failed)

    def stop(self, why: str) -> None:
        """Takes up nothing new."""
        if self._stopped is None:
            self._stopped = why
            log.warning("stopping: %s; what is in hand is finished", why)
        for pool in self._pools.values():
            pool.work.set()
            pool.room.set()
        self._freed.set()
        self._written.set()
        self._has_read.set()

    def _end(self, failed: BaseException | None) -> None:
        try:
            self._sink.close()
        except (OSError, sqlite3.Error) as error:
            log.error("the sink was not closed: %s", error)
        counts = self._journal.counts()
        if self._stopped is not None or self._fault is not None:
            code = UNFINISHED
        elif counts["waiting"] and not self._options.get("only"):
            self._fault, code = f"{counts['waiting']} results wait for steps that there are no more", UNFINISHED
        else:
            code = DEAD_ITEMS if counts["dead"] else DONE
        from rebeam.batch import _report

        report = self._report(code, counts)
        _report.write(self._current.directory, report)
        self._say(is_last=True)
        log.info("%s", _report.text(report), extra={"batch_report": report})
        try:
            self._journal.set_meta(last=report["state"])
            self._journal.close()
        except sqlite3.Error as error:
            log.error("the journal was not closed: %s", error)

    # ---- the source --------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Has the first step get what waits in the journal, then what the source gives."""
        token = str(self._options.get("token"))
        if self._journal.meta("revived") != token:
            # Once in a run, whatever becomes of us meanwhile.
            if self._options.get("only"):
                self._journal.revive(self._options["only"])
            elif self._options.get("retry_failed"):
                self._journal.revive()
            self._journal.set_meta(revived=token)
        await self._feed_waiting()
        only = set(self._options["only"]) if self._options.get("only") else None
        if self._stopped is None and (only is None or only):
            await self._feed_source(only)
        if only and self._stopped is None and (unknown := only - self._met):
            self._fault = f"there is no item {', '.join(f'`{id}`' for id in sorted(unknown))}"
            log.error("%s", self._fault)
        self._fed(0)

    async def _feed_waiting(self) -> None:
        only = self._options.get("only")
        for step in reversed(range(len(self._pipeline.steps) + 1)):
            after = 0
            while page := await self._in_thread(lambda step=step, after=after: self._journal.waiting(step, after)):
                after = page[-1][0]
                for _, it in page:
                    if only and it.id not in only:
                        continue
                    if only:
                        self._met.add(it.id)
                    if step == len(self._pipeline.steps):
                        # The sink refused it, and is to be asked again.
                        self._changes.results.append((it.id, it.value))
                        self._changes.remove([(it.id, step)])
                        self._finished += 1
                        self._to_write.set()
                        continue
                    self._push(step, Work(it.id, it.value, [], [(it.id, step)], it.attempts))
                    await self._room_before(step)
                    if self._stopped is not None:
                        return

    async def _feed_source(self, only: set[str] | None) -> None:
        source = self._source
        looks = not source.has_numbers or self._before["taken"] > 0
        skipped = self._journal.taken_up_to() if source.has_numbers and source.is_replayable else 0
        reader = Reader(self._loop, lambda: itertools.islice(source.items(), skipped, None), self._has_read.set)
        self._read = skipped
        if only is not None:
            # What is passed over unread is there all the same.
            self._met.update(id for id in only if id.isdecimal() and int(id) < skipped and f"{int(id)}" == id)
        try:
            while self._stopped is None and (block := reader.take()) is not None:
                if not block:
                    await self._has_read.wait()
                    continue
                self._read += len(block)
                ids = [id for id, _ in block]
                known = await self._in_thread(lambda ids=ids: self._journal.taken_of(ids)) if looks else {}
                for id, value in block:
                    if id in self._in_flight or (known.get(id) == self._journal.run and not source.has_numbers):
                        raise SourceError from ValueError(f"the id `{id}` comes twice")
                    if only is not None:
                        if str(id) not in only:
                            continue
                        self._met.add(str(id))
                    if id in known:
                        continue
                    await self._take_up(id, value)
                    if self._stopped is not None:
                        return
        except SourceError as failure:
            error = failure.__cause__ or failure
            # What was read is finished; what comes behind is not known to anybody.
            what = f"the source failed after {self._read} items: {type(error).__name__}: {error}"
            log.error("%s", what, exc_info=error)
            self._fault = what

    async def _take_up(self, id: Id, value: Any) -> None:
        payload = pickle.dumps(value, 5)
        work = Work(str(id), payload, [id], [])
        if not self._source.is_replayable:
            # It does not come again: it waits in the journal, and not in the source.
            self._changes.taken.append(id)
            self._changes.add_waiting(Waiting(str(id), 0, 0, payload))
            work.roots, work.rows = [], [(str(id), 0)]
            self._to_write.set()
        else:
            self._in_flight.add(id)
        self._push(0, work)
        await self._room_before(0)

    async def _room_before(self, step: int) -> None:
        pool = self._pool_from(step)
        while pool is not None and pool.is_full and self._stopped is None:
            await pool.room.wait()
        while len(self._changes) > UNWRITTEN and self._stopped is None:
            await self._written.wait()

    def _pool_from(self, step: int) -> Pool | None:
        """The pool that gets what comes to a step."""
        return self._pools.get(step) or self._pools.get(step + 1)

    def _fed(self, step: int) -> None:
        """Nothing comes to a step any more."""
        if step in self._gatherers:
            gatherer = self._gatherers[step]
            if self._stopped is None:
                gatherer.release_all(lambda work: self._push(step + 1, work))
            step += 1
        if step in self._pools:
            self._pools[step].is_fed = True
            self._look_for_end(self._pools[step])

    def _look_for_end(self, pool: Pool) -> None:
        if pool.is_fed and pool.alive == 0 and not pool.is_over:
            pool.is_over = True
            pool.work.set()
            self._fed(pool.step + 1)

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _push(self, step: int, work: Work, *, first: bool = False) -> None:
        """An item comes to a step."""
        if step in self._gatherers:
            self._gatherers[step].add(work, lambda batch: self._push(step + 1, batch))
            return
        pool = self._pools[step]
        pool.alive += 1
        if pool.stage.key is not None:
            try:
                work.key = repr(pool.stage.key(unpickled(work.payload)))
            except Exception as error:
                self._failed(
                    pool, work, _worker.valid(f"its key: {type(error).__qualname__}: {error}"), "", may_retry=False
                )
                self._look_for_end(pool)
                return
        self._queue(pool, work, first=first)

    def _queue(self, pool: Pool, work: Work, *, first: bool = False) -> None:
        number = 0
        if pool.stage.key is not None:
            number = hash(work.key) % pool.stage.concurrency
        queue = pool.queues[number]
        queue.appendleft(work) if first else queue.append(work)
        pool.bytes += work.size
        pool.work.set()

    async def _drive(self, pool: Pool, slot: int) -> None:
        """Hands chunks to one worker, as long as there are some."""
        worker = rebeam.ref(Worker, pool.names[slot]).options(timeout=None)
        while (works := await self._next_chunk(pool, slot)) is not None:
            number = next(self._chunks)
            pool.in_hand[number] = slot, works
            chunk = Chunk(number, [(it.id, it.attempts + 1, it.payload) for it in works])
            for resource, amount in pool.stage.uses:
                while self._resources[resource] < amount:
                    await self._freed.wait()
                self._resources[resource] -= amount
            try:
                done = await worker.acall(Worker.run, chunk)
            except ActorDied as error:
                self._died(pool, slot, number, works, error)
            except NoProc:
                self._put_back(pool, works)
                self.stop(f"the workers of `{pool.stage.name}` died too often: their supervisor has given up")
            except RebeamError as error:
                # Too large to be sent, there or back.
                self._not_sent(pool, works, error)
            else:
                if pool.cpu.get(slot, 0.0) > done.cpu:
                    self._new_process(pool, slot)
                pool.cpu[slot] = done.cpu
                pool.peak_kib = max(pool.peak_kib, done.peak_kib)
                # With keys, what comes behind a failure was not begun.
                self._put_back(pool, works[len(done.outcomes) :])
                for work, (tag, result, seconds) in zip(works, done.outcomes, strict=False):
                    pool.note(work, seconds)
                    self._concluded(pool, work, tag, result)
            finally:
                pool.in_hand.pop(number, None)
                for resource, amount in pool.stage.uses:
                    self._resources[resource] += amount
                self._freed.set()
            self._to_write.set()
            self._look_for_end(pool)

    async def _next_chunk(self, pool: Pool, slot: int) -> list[Work] | None:
        queue = pool.queues[slot if pool.stage.key else 0]
        behind = self._pool_from(pool.step + 1)
        while True:
            if pool.is_over or self._stopped is not None:
                return None
            if behind is not None and behind.is_full:
                await behind.room.wait()
            elif len(self._changes) > UNWRITTEN:
                await self._written.wait()
            elif not queue:
                await pool.work.wait()
            elif (pause := self._pause(pool)) > 0:
                await pool.work.wait(pause)
            else:
                break
        share = max(1, len(queue) // pool.stage.concurrency)
        most = min(pool.chunk_size, share)
        if pool.stage.rate is not None:
            most = max(1, min(most, int(pool.tokens)))
        works: list[Work] = []
        size = 0
        while queue and len(works) < most and size < MOST_BYTES:
            if works and queue[0].is_alone:
                break
            work = queue.popleft()
            works.append(work)
            size += work.size
            if work.is_alone:
                break
        pool.tokens -= len(works)
        pool.bytes -= size
        if not pool.is_full:
            pool.room.set()
        return works

    def _pause(self, pool: Pool) -> float:
        """How long until the rate of a stage allows another item, in seconds."""
        rate = pool.stage.rate
        if rate is None:
            return 0.0
        now = time.monotonic()
        pool.tokens = min(max(1.0, rate / 10), pool.tokens + (now - pool.filled) * rate)
        pool.filled = now
        return 0.0 if pool.tokens >= 1 else (1 - pool.tokens) / rate

    def _concluded(self, pool: Pool, work: Work, tag: int, result: Any) -> None:
        """A worker has told what came of an item."""
        match tag:
            case _worker.FAILED:
                cause, detail, may_retry = result
                if self._failed(pool, work, cause, detail, may_retry=may_retry):
                    self._try_again(pool, work)
                return
            case _worker.ONE:
                self._passed_on(pool, work, [(work.id, result)])
            case _worker.MANY:
                self._passed_on(pool, work, [(f"{work.id}/{number}", it) for number, it in enumerate(result)])
            case _worker.SAME:
                self._passed_on(pool, work, [(work.id, work.payload)])
            case _:
                self._passed_on(pool, work, [])
        pool.done += 1
        self._over(pool, work)

    def _put_back(self, pool: Pool, works: list[Work]) -> None:
        for work in reversed(works):
            self._queue(pool, work, first=True)

    def _not_sent(self, pool: Pool, works: list[Work], error: RebeamError) -> None:
        """A chunk, or what came of it, could not be sent: each item is tried alone, and one alone is at fault."""
        if len(works) > 1:
            for work in works:
                work.is_alone = True
            self._put_back(pool, works)
        else:
            self._failed(pool, works[0], f"{type(error).__name__}: {error}", "", may_retry=False)

    def _passed_on(self, pool: Pool, work: Work, results: list[tuple[str, Any]]) -> None:
        step = pool.step + 1
        # A batch that a filter has let through is a value from here on.
        results = [(id, it if isinstance(it, bytes) else listed(it)) for id, it in results]
        if step == len(self._pipeline.steps):
            self._finished += 1
            if self._sink.takes_values:
                self._changes.results.extend(results)
            return
        for id, payload in results:
            self._changes.add_waiting(Waiting(id, step, 0, payload))
            self._push(step, Work(id, payload, [], [(id, step)]))

    def _over(self, pool: Pool, work: Work) -> None:
        """This step is done with an item, one way or the other."""
        self._changes.taken.extend(work.roots)
        self._changes.remove(work.rows)
        pool.alive -= 1
        if not pool.is_full:
            pool.room.set()

    def _failed(self, pool: Pool, work: Work, cause: str, detail: str, *, may_retry: bool = True) -> bool:
        """An attempt at an item has failed: says whether there is to be another."""
        if isinstance(work.payload, list) and len(work.payload) > 1:
            # Somebody among them: each half is tried by itself.
            for half in halves(work):
                pool.alive += 1
                self._queue(pool, half, first=True)
            pool.alive -= 1
            return False
        work.attempts += 1
        if may_retry and work.attempts <= pool.stage.retries:
            pool.retries += 1
            work.is_alone = True
            return True
        pool.failed += 1
        step, payload = pool.step, work.payload
        if isinstance(payload, list):
            # Tried again, it is gathered again.
            step, payload = pool.step - 1, payload[0]
        self._died_for_good(Dead(work.id, step, pool.stage.name, work.attempts, cause, detail, payload))
        self._over(pool, work)
        return False

    def _try_again(self, pool: Pool, work: Work) -> None:
        if pool.stage.key is not None:
            # The others of its key wait for it.
            self._queue(pool, work, first=True)
        else:
            pause = min(30.0, pool.stage.backoff * 2 ** max(0, work.attempts - 1))
            self._loop.call_later(pause, self._queue, pool, work)

    def _died_for_good(self, dead: Dead) -> None:
        self._changes.dead.append(dead)
        self._note_dead(dead)

    def _note_dead(self, dead: Dead) -> None:
        self._dead += 1
        group = dead.stage, dead.cause[:200]
        if len(self._failures) < 1000 or group in self._failures:
            self._failures[group] += 1
            examples = self._examples.setdefault(group, [])
            if len(examples) < 5:
                examples.append(dead.id)
        if sum(self._failures.values()) <= 20:
            log.error(
                "item `%s` failed in `%s` after %d attempt(s): %s", dead.id, dead.stage, dead.attempts, dead.cause
            )
        most = self._options.get("max_failures")
        if most is not None and self._stopped is None and self._is_too_many(str(most)):
            self.stop(f"{self._dead} items have failed, more than --max-failures {most}")

    def _is_too_many(self, most: str) -> bool:
        if not most.endswith("%"):
            return self._dead > int(most)
        done = self._finished + self._dead
        return done >= 20 and self._dead * 100 > float(most[:-1]) * done

    def _died(self, pool: Pool, slot: int, number: int, works: list[Work], error: ActorDied) -> None:
        """A worker died with a chunk in hand: one of its items is to blame, the others are none the worse."""
        pool.deaths += 1
        self._new_process(pool, slot)
        culprit = self._culprit(pool, slot, number, works)
        comes_again = False
        if culprit is not None:
            comes_again = self._blamed(pool, culprit, number, error)
        for work in reversed(works):
            if work is not culprit:
                work.is_alone = work.is_alone or culprit is None
            elif not comes_again:
                continue
            elif pool.stage.key is None:
                self._try_again(pool, work)
                continue
            self._queue(pool, work, first=True)

    def _blamed(self, pool: Pool, culprit: Work, number: int, error: ActorDied) -> bool:
        """An item has cost its worker's life; says whether it is tried again."""
        certificate = error.certificate
        reason = certificate.reason
        has_timed_out = pool.timed_out.pop(number, None) is culprit
        is_stranger = reason.kind == "signal" and "SIGKILL" in reason.detail and certificate.killer == "unknown"
        # Also whoever was killed by name where the item before it took too long.
        is_stranger |= reason.kind == "killed" and not has_timed_out
        if is_stranger and culprit.strangers < STRANGERS:
            culprit.strangers += 1
            return True
        cause = f"it took longer than {pool.stage.timeout:g} s" if has_timed_out else f"the worker died: {reason}"
        lines = [f"killer: {certificate.killer}"] if certificate.killer else []
        lines += [reason.traceback or "", certificate.stacks, *certificate.last_output[-20:]]
        return self._failed(
            pool, culprit, _worker.valid(cause), _worker.valid("\n".join(line for line in lines if line))
        )

    def _culprit(self, pool: Pool, slot: int, number: int, works: list[Work]) -> Work | None:
        """The item that a worker had in hand by the mark that it has left; None if nobody knows."""
        if len(works) == 1:
            return works[0]
        chunk, place, _ = MARK.unpack_from(self._current.marks, (pool.first_slot + slot) * MARK.size)
        return works[place] if chunk == number and place < len(works) else None

    def _new_process(self, pool: Pool, slot: int) -> None:
        pool.cpu_before += pool.cpu.pop(slot, 0.0)

    async def _watch(self) -> None:
        """Has workers killed whose item takes too long."""
        pools = [pool for pool in self._pools.values() if pool.stage.timeout is not None]
        marks = self._current.marks
        while pools:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            for pool in pools:
                assert pool.stage.timeout is not None
                for number, (slot, works) in list(pool.in_hand.items()):
                    chunk, place, since = MARK.unpack_from(marks, (pool.first_slot + slot) * MARK.size)
                    if chunk == number and now - since > pool.stage.timeout and number not in pool.timed_out:
                        pool.timed_out[number] = works[place] if place < len(works) else None
                        _process.kill_hung(rebeam.ref(Worker, pool.names[slot]))

    # ---- the journal -------------------------------------------------------------------------------------------------

    async def _write_changes(self) -> None:
        while True:
            if not len(self._changes):
                if self._is_over:
                    return
                await self._to_write.wait()
                # Others come meanwhile, and are written with it.
                await asyncio.sleep(0 if self._is_over else 0.01)
                continue
            changes, self._changes = self._changes, Changes()
            try:
                refused = await self._in_thread(lambda changes=changes: self._commit(changes))
            except Exception as error:
                path = self._current.directory / "journal.db"
                what = (
                    _journal.unusable(path, error)
                    if isinstance(error, sqlite3.Error)
                    else f"the sink failed: {type(error).__name__}: {error}"
                )
                self._fault = str(what)
                log.error("%s", what)
                self.stop("what is done cannot be written down")
                return
            self._in_flight.difference_update(changes.taken)
            for dead in refused:
                self._note_dead(dead)
            self._written.set()

    def _commit(self, changes: Changes) -> list[Dead]:
        """Writes results and journal; gives those that the sink does not take, which are dead by the same commit."""
        refused, mark = [], None
        if changes.results:
            payloads = dict(changes.results)
            values, reasons = [], []
            for id, payload in changes.results:
                try:
                    values.append((id, pickle.loads(payload)))
                except Exception as error:
                    reasons.append((id, f"its result cannot be unpickled: {type(error).__qualname__}: {error}"))
            reasons += self._sink.write(values)
            mark = self._sink.flush()
            step = len(self._pipeline.steps)
            refused = [Dead(id, step, "sink", 1, why, "", payloads[id]) for id, why in reasons]
            changes.dead += refused
        self._journal.commit(changes, mark)
        return refused

    async def _in_thread(self, function: Any) -> Any:
        """Does something with the journal or the sink: one thing at a time."""
        return await self._loop.run_in_executor(self._journal_thread, function)

    # ---- what is told ------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._say()

    def _say(self, *, is_last: bool = False) -> None:
        from rebeam.batch import _report

        progress = self._progress()
        self._timeline.append((progress["seconds"], [stage["done"] for stage in progress["stages"]]))
        if len(self._timeline) > 1000:
            del self._timeline[::2]
        log.info("%s", _report.line(progress), extra={"batch": {**progress, "is_last": is_last}})

    def _progress(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._began
        stages: list[dict[str, Any]] = []
        for pool in self._pools.values():
            in_hand = sum(len(works) for _, works in pool.in_hand.values())
            busy = pool.seconds / (seconds * pool.stage.concurrency) if seconds else 0.0
            stages.append({
                "name": pool.stage.name, "done": pool.done, "failed": pool.failed, "retries": pool.retries,
                "in_hand": in_hand, "waiting": pool.waiting, "rate": pool.done / seconds if seconds else 0.0,
                "busy": min(1.0, busy), "deaths": pool.deaths,
            })  # fmt: skip
        left = None
        taken = self._before["taken"] + stages[0]["done"] + stages[0]["failed"]
        if self._total and stages[0]["rate"]:
            left = max(0.0, (self._total - taken) / stages[0]["rate"])
        slowest = max(stages, key=lambda stage: stage["busy"])["name"]
        return {
            "name": self._pipeline.name, "seconds": seconds, "stages": stages, "total": self._total, "left": left,
            "holds_back": slowest, "dead": self._dead,
        }  # fmt: skip

    def _command(self, code: int) -> str:
        """What goes on with the run, or tries its dead again; empty where nothing can."""
        if code == DONE or self._options["no_journal"]:
            return ""
        command: str | None = self._options["command"]
        if command is None:
            return "run()" if code == UNFINISHED else "run(retry_failed=True)"
        return command if code == UNFINISHED else f"{command} --retry-failed"

    def _report(self, code: int, counts: dict[str, int]) -> dict[str, Any]:
        progress = self._progress()
        for stage, pool in zip(progress["stages"], self._pools.values(), strict=True):
            stage.update(
                concurrency=pool.stage.concurrency, busy_seconds=pool.seconds,
                cpu_seconds=pool.cpu_before + sum(pool.cpu.values()), peak_kib=pool.peak_kib,
                slowest=[{"id": id, "seconds": seconds} for seconds, id in sorted(pool.slowest, reverse=True)],
                largest=[{"id": id, "bytes": size} for size, id in sorted(pool.largest, reverse=True)],
            )  # fmt: skip
        failures = [
            {"stage": stage, "cause": cause, "count": count, "ids": self._examples[stage, cause]}
            for (stage, cause), count in self._failures.most_common()
        ]
        state = {DONE: "done", DEAD_ITEMS: "done, with dead items", UNFINISHED: "unfinished"}[code]
        return {
            **progress, "code": code, "state": state, "run": self._journal.run, "why": self._fault or self._stopped,
            "counts": {**counts, "done": self._finished, "before": self._before}, "failures": failures,
            "timeline": self._timeline, "command": self._command(code),
            "directory": str(self._current.directory),
        }  # fmt: skip
