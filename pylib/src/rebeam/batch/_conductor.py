"""Runs a pipeline: has the source read, hands items to the workers of each stage, keeps the journal, and never waits
for one of them alone.

Demand runs from the end to the beginning: a stage takes up no more than there is room for behind it, and the source is
read no further than the first stage has room. An item is held here as bytes, and nothing here looks into it: no
function and no value of the user's can end the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import rebeam
from rebeam import _process
from rebeam._actor import Actor
from rebeam._errors import ActorDied, NoProc, RebeamError, Stop
from rebeam.batch import _ids, _journal, _marks, _worker
from rebeam.batch._journal import SOURCE, Changes, DeadItem, Journal, Waiting
from rebeam.batch._pipeline import Batch, PipelineError, Stage
from rebeam.batch._pools import Gatherer, Pool, Signal, Work, gathered, halves
from rebeam.batch._reader import Reader, Record, Sorter
from rebeam.batch._worker import Chunk, Done, Failure, Worker

if TYPE_CHECKING:
    from rebeam._exit import Certificate
    from rebeam.batch._ids import Id
    from rebeam.batch._marks import Entry
    from rebeam.batch._pipeline import Pipeline
    from rebeam.batch._reader import Block
    from rebeam.batch._run import Current

log = logging.getLogger("rebeam.batch")
# The report goes this way, whatever level the application has chosen for the others.
log.setLevel(logging.INFO)

UNWRITTEN = 20_000
"""Changes that may wait to be written before stages pause."""

UNWRITTEN_BYTES = 64 * 1024 * 1024
"""The same in bytes."""

STRANGERS = 5
"""How often an item may be in hand when somebody else kills its worker, before that counts as its fault."""

STRIKES = 3
"""Runs that end without a word while an item is in hand alone, before that counts as its fault."""

MOST_BROKEN = 5
"""How often in a row workers of a stage may fail to be prepared."""

LONGEST_PAUSE = 60.0
"""Seconds that a stage pauses at most, of which many items in a row have failed."""

OWN_SECONDS = 60.0
"""How long `id`, `key`, `name` and the like may take for one item, where the stage has no `timeout`."""

GRACE = 2.0
"""Seconds for which an `async def` may go on after it was cancelled for its time."""

DONE, START_FAILED, DEAD_ITEMS, UNFINISHED = 0, 3, 4, 5
"""Exit codes of a batch: all is done; a stage cannot be prepared; some items are dead; it goes on when it is run
again."""


class SinkError(Exception):
    """The sink cannot write."""


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
        self._flow.stop_for_good()


class Flow:
    """The state of a run."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self._pipeline: Pipeline = current.pipeline
        self._options = current.options
        in_memory = bool(self._options.get("no_journal"))
        self._lock = None if in_memory else current.lock()
        self._journal = Journal(current.directory, self._pipeline.name, in_memory=in_memory)
        assert self._pipeline.origin is not None and self._pipeline.target is not None
        self._source, self._sink = self._pipeline.origin, self._pipeline.target
        mark = self._journal.meta("mark")
        if self._journal.meta("sink") != self._sink.describe():
            # Another sink begins at its beginning.
            mark = None
        try:
            self._sink.open(mark, self._journal, may_replace=bool(self._options.get("fresh")))
        except (PipelineError, OSError, sqlite3.Error, ValueError) as error:
            raise PipelineError(f"the sink `{self._sink.describe()}`: {error}") from None
        self._journal.set_meta(sink=self._sink.describe(), mark=mark if mark is not None else "0", open=True, alone="")
        self._before = self._journal.counts()
        self._pools: dict[int, Pool] = {}
        self._gatherers: dict[int, Gatherer] = {}
        slot = 0
        for step, stage in enumerate(self._pipeline.steps):
            if isinstance(stage, Stage):
                self._pools[step] = Pool(step, stage, current.marks[slot : slot + stage.concurrency])
                slot += stage.concurrency
        for step, batch in enumerate(self._pipeline.steps):
            if isinstance(batch, Batch):
                self._gatherers[step] = Gatherer(step, batch, self._pools[step + 1])
        self._reading = current.marks[slot]
        # Makes keys, and what the sink writes, of items that come from no worker.
        self._sorter = Pool(SOURCE, Stage(None, "sorter", "sort"), [current.marks[slot + 1]])  # type: ignore[arg-type]
        self._sorter.names = ["sorter"]
        self._has_killed_reader = False
        """Whether it was killed for the time that a record took."""
        self._sorting: Counter[int] = Counter()
        self._fed_later: set[int] = set()
        self._changes = Changes()
        self._written, self._to_write = Signal(), Signal()
        self._is_writing = False
        self._stopped: str | None = None
        self._fault: str | None = None
        self._code: int | None = None
        self._is_over = False
        # A worker may still be at a chunk of the conductor before this one.
        self._chunks = itertools.count(time.monotonic_ns())
        self._hands: set[asyncio.Task[None]] = set()
        self._total = self._count()
        self._read = 0
        self._finished = 0
        self._failures: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[Id]] = {}
        self._dead = 0
        self._timeline: list[tuple[float, list[int]]] = []
        self._began = time.monotonic()
        self._resources = dict(self._pipeline.resources)
        self._freed = Signal()
        self._met: set[str] = set()
        """Which of the ids of `--only` were found."""
        self._suspects = self._journal.suspects()
        self._aside: list[tuple[Pool, Work]] = []
        """Items that were in hand when a run ended without a word: they come last, one by one."""
        self._trial: Work | None = None
        self._is_read = False
        self._journal_thread = ThreadPoolExecutor(1)
        self._ordered = asyncio.Event()
        if self._journal.meta("stopping") == str(self._options.get("token")):
            # The conductor before this one was told so.
            self.stop("it was asked to stop")

    # ---- the whole ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._crash: asyncio.Future[None] = self._loop.create_future()
        pools = [self._sorter, *self._pools.values()]
        drivers = [self._drive(pool, slot) for pool in pools for slot in range(pool.stage.concurrency)]
        tasks = [asyncio.ensure_future(it) for it in (self._feed(), *drivers)]
        beside = [asyncio.ensure_future(it) for it in (self._watch(), self._tell())]
        writer = asyncio.ensure_future(self._write_changes())
        whole = asyncio.ensure_future(_all(tasks))
        ends: list[asyncio.Future[None]] = [whole, self._crash]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        failed = next((it.exception() for it in ends if it.done() and it.exception() is not None), None)
        if failed is not None:
            log.error("the run cannot go on", exc_info=failed)
            # A fault of ours, or of the journal: nothing that was not written is done.
            self.stop(f"{type(failed).__name__}: {failed}")
            # It may have left a change half noted: what was not written is done again.
            self._changes = Changes()
            for task in (whole, *tasks, *self._hands):
                task.cancel()
        self._is_over = True
        self._to_write.set()
        await writer
        for task in beside:
            task.cancel()
        self._end()

    def _count(self) -> int | None:
        """How many items there are, if that is known."""
        if self._options.get("only"):
            return len(self._options["only"])
        try:
            return self._source.count()
        except Exception:
            # Whoever reads it will say it.
            return None

    @property
    def _is_behind(self) -> bool:
        """Whether more waits to be written than may."""
        return len(self._changes) > UNWRITTEN or self._changes.bytes > UNWRITTEN_BYTES

    def stop(self, why: str) -> None:
        """Takes up nothing new."""
        if self._stopped is None:
            self._stopped = why
            log.warning("stopping: %s; what is in hand is finished", why)
        for pool in (self._sorter, *self._pools.values()):
            pool.work.set()
            pool.room.set()
        self._freed.set()
        self._written.set()
        self._ordered.set()

    def stop_for_good(self) -> None:
        """As `stop`; a conductor that takes this one's place stops, too."""
        self.stop("it was asked to stop")
        token = str(self._options.get("token"))
        with contextlib.suppress(RuntimeError):
            # Unless it has come to its end just now.
            self._journal_thread.submit(lambda: self._journal.set_meta(stopping=token))

    def _end(self) -> None:
        # Nobody is to be at the journal when it is closed.
        self._journal_thread.shutdown(wait=True)
        try:
            self._sink.close()
        except (OSError, sqlite3.Error) as error:
            log.error("the sink was not closed: %s", error)
        counts = self._journal.counts()
        if self._stopped is not None or self._fault is not None:
            code = self._code or UNFINISHED
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
            self._journal.set_meta(last=report["state"], open=False)
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
                self._suspects.clear()
            self._journal.set_meta(revived=token)
        await self._feed_waiting()
        only = set(self._options["only"]) if self._options.get("only") else None
        if self._stopped is None:
            await self._feed_source(only)
        if only and self._stopped is None and (unknown := only - self._met):
            self._fault = f"there is no item {', '.join(f'`{id}`' for id in sorted(unknown))}"
            log.error("%s", self._fault)
        self._is_read = True
        self._fed(0)
        self._look_aside()

    async def _feed_waiting(self) -> None:
        only = self._options.get("only")
        for step in reversed(range(len(self._pipeline.steps) + 1)):
            after = 0
            while page := await self._in_thread(lambda step=step, after=after: self._journal.waiting(step, after)):
                after = page[-1][0]
                for _, it in page:
                    if only and str(it.id) not in only:
                        continue
                    if only:
                        self._met.add(str(it.id))
                    written = _journal.unpacked(it.value)
                    if step == len(self._pipeline.steps) and written is not None:
                        # The sink refused it, and is to be asked again.
                        self._changes.add_result(it.id, written, it.root)
                        self._changes.remove([(it.id, step, it.root)])
                        self._finished += 1
                        self._to_write.set()
                        continue
                    self._push(step, Work(it.id, it.value, [], [(it.id, step, it.root)], it.attempts, root=it.root))
                    await self._room_before(step)
                    if self._stopped is not None:
                        return

    async def _feed_source(self, only: set[str] | None) -> None:
        source = self._source
        looks = not source.has_numbers or self._before["taken"] > 0
        self._read = skipped = self._journal.taken_up_to() if source.has_numbers and source.is_replayable else 0
        if only is not None:
            # What is passed over unread is there all the same.
            self._met.update(id for id in only if id.isdecimal() and int(id) < skipped and f"{int(id)}" == id)
        blamed = self._blamed_records()
        self._position = skipped if source.is_replayable else self._known_position()
        times = 0
        block: Block | None = None
        while self._stopped is None and (block is None or not block.is_over):
            try:
                block = await self._next_block(blamed)
                times = 0
            except ActorDied as error:
                times += 1
                why = self._reader_died(error.certificate, blamed, times)
                if why is not None:
                    return self._source_failed(why, "")
                continue
            except (NoProc, RebeamError) as error:
                return self._source_failed(f"{type(error).__name__}: {error}", "")
            if block is None:
                return None
            records = await self._looked_up([Record._make(it) for it in block.records], looks=looks)
            wanted = []
            for record, is_known in records:
                if only is not None:
                    if str(record.id) not in only:
                        continue
                    self._met.add(str(record.id))
                if not is_known:
                    wanted.append(record)
            if not source.is_replayable:
                await self._write_down(wanted, block.position)
            self._position = block.position
            for record in wanted:
                await self._take_up(record)
                if self._stopped is not None:
                    return None
            self._read += len(records)
        if block is not None and block.error is not None:
            self._source_failed(block.error.cause, block.error.detail)
        return None

    def _known_position(self) -> int:
        """How far a source that cannot be read again has been written down in this run."""
        token, _, position = (self._journal.meta("position") or "").partition(" ")
        return int(position) if token == str(self._options.get("token")) else 0

    async def _write_down(self, records: list[Record], position: int) -> None:
        """Has records written that do not come again, before any of them is gone on with."""
        for record in records:
            if record.failure is None:
                self._changes.taken.append((record.id, record.stamp))
                self._changes.add_waiting(Waiting(record.id, 0, 0, record.payload, record.id))
        self._to_write.set()
        while self._stopped is None and (len(self._changes) or self._is_writing):
            await self._written.wait()
        token = str(self._options.get("token"))
        await self._in_thread(lambda: self._journal.set_meta(position=f"{token} {position}"))

    def _blamed_records(self) -> dict[int, str]:
        """Records that were in hand whenever a run ended without a word."""
        first = _ids.record_digest(0)
        why = f"it was being read in {STRIKES} runs that ended without a word"
        return {it - first: why for it, times in self._suspects.items() if it >= first and times >= STRIKES}

    async def _next_block(self, blamed: dict[int, str]) -> Block | None:
        """What the source gives next; None if the run is to stop meanwhile."""
        reader = rebeam.ref(Reader, "source").options(timeout=None)
        asked = asyncio.ensure_future(reader.acall(Reader.read, self._position, blamed))
        stop = asyncio.ensure_future(self._ordered.wait())
        try:
            await asyncio.wait([asked, stop], return_when=asyncio.FIRST_COMPLETED)
            return await asked if asked.done() else None
        finally:
            asked.cancel()
            stop.cancel()

    def _reader_died(self, certificate: Certificate, blamed: dict[int, str], times: int) -> str | None:
        """The process that reads has died: says why the source has failed by that, if it has."""
        cause = f"the process that read it died: {certificate.reason}"
        entry = next(iter(_left_in_hand(self._reading, _marks.READING)), None)
        has_timed_out = self._has_killed_reader
        self._has_killed_reader = False
        if not self._source.is_replayable:
            return f"{cause}, and what it had read is lost"
        if _is_strangers(certificate) and not has_timed_out and times <= STRANGERS:
            return None
        if entry is None or entry.phase == _marks.ITERATE:
            return None if times < 2 else cause
        what = {_marks.ID: "its id", _marks.KEY: "its key"}.get(entry.phase, "it cannot be pickled")
        why = f"it took longer than {self._own_limit(entry):g} s" if has_timed_out else cause
        blamed[entry.place] = _worker.valid(f"{what}: {why}")
        return None

    def _source_failed(self, cause: str, detail: str) -> None:
        # What was read is finished; what comes behind is not known to anybody.
        what = f"the source failed after {self._read} items: {cause}"
        log.error("%s%s", what, f"\n{detail}" if detail else "")
        self._fault = what

    async def _looked_up(self, records: list[Record], *, looks: bool) -> list[tuple[Record, bool]]:
        """Records under ids of their own, and whether each is known, and no other than it was."""
        if not records:
            return []
        if not self._source.has_numbers:
            records = await self._in_thread(lambda: _told_apart(self._journal, records))
        if not looks:
            return [(it, False) for it in records]
        known = await self._in_thread(lambda: self._journal.taken_of([it.id for it in records]))
        looked_up: list[tuple[Record, bool]] = []
        for it in records:
            is_known = it.id in known
            if is_known and it.stamp is not None and known[it.id] not in (None, it.stamp):
                log.info("`%s` has changed since it was done, and is done again", it.id)
                self._changes.forgotten.append(it.id)
                is_known = False
            looked_up.append((it, is_known))
        return looked_up

    async def _take_up(self, record: Record) -> None:
        root = record.id, record.stamp
        if record.failure is not None:
            self._changes.taken.append(root)
            step = 0 if record.payload else SOURCE
            failure = record.failure
            self._died_for_good(
                DeadItem(record.id, step, "source", 1, failure.cause, failure.detail, record.payload, record.id)
            )
            self._to_write.set()
            return
        work = Work(record.id, record.payload, [root], [], key=record.key)
        if not self._source.is_replayable:
            # It waits in the journal, and not in the source.
            work.roots, work.rows = [], [(record.id, 0, record.id)]
        self._push(0, work)
        await self._room_before(0)

    async def _room_before(self, step: int) -> None:
        pool = self._pool_from(step)
        while pool is not None and pool.is_full and self._stopped is None:
            await pool.room.wait()
        while self._sorter.alive and self._sorter.is_full and self._stopped is None:
            await self._sorter.room.wait()
        while self._is_behind and self._stopped is None:
            await self._written.wait()

    def _pool_from(self, step: int) -> Pool | None:
        """The pool that gets what comes to a step."""
        return self._pools.get(step) or self._pools.get(step + 1)

    def _fed(self, step: int) -> None:
        """Nothing comes to a step any more."""
        if self._sorting[step]:
            self._fed_later.add(step)
            return None
        if step in self._gatherers:
            gatherer = self._gatherers[step]
            if self._stopped is None:
                gatherer.release_all(lambda work: self._push(step + 1, work))
            return self._fed(step + 1)
        if step in self._pools:
            self._pools[step].is_fed = True
            self._look_for_end(self._pools[step])
        else:
            self._sorter.is_over = True
            self._sorter.work.set()
        return None

    def _look_for_end(self, pool: Pool) -> None:
        if pool.is_fed and pool.alive == 0 and not pool.is_over:
            pool.is_over = True
            pool.work.set()
            self._fed(pool.step + 1)

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _push(self, step: int, work: Work) -> None:
        """An item comes to a step."""
        target = self._pipeline.steps[step] if step < len(self._pipeline.steps) else None
        if target is None or (target.key is not None and work.key is None):
            # Nobody knows yet what belongs to it.
            work.target = step
            self._sorting[step] += 1
            self._sorter.alive += 1
            self._queue(self._sorter, work)
        elif step in self._gatherers:
            self._gatherers[step].add(work, lambda batch: self._push(step + 1, batch))
        else:
            pool = self._pools[step]
            pool.alive += 1
            if self._suspects and not self._is_above_suspicion(pool, work):
                return
            self._queue(pool, work)

    def _queue(self, pool: Pool, work: Work, *, first: bool = False) -> None:
        queue = pool.queues[pool.slot_of(work.key) if pool.stage.key is not None else 0]
        queue.appendleft(work) if first else queue.append(work)
        pool.bytes += work.size
        pool.work.set()

    def _sorted(self, work: Work, result: _worker.Result) -> None:
        """It is known now what belongs to an item for the step that it goes to."""
        _, extra, failure = result
        step, target = work.target, self._pipeline.steps[work.target : work.target + 1]
        if failure is not None:
            where = target[0].name if target else "sink"
            payload = work.payload if isinstance(work.payload, bytes) else _worker.joined(work.payload)
            self._died_for_good(
                DeadItem(work.id, step, where, work.attempts + 1, failure.cause, failure.detail, payload, work.root)
            )
            self._changes.taken.extend(work.roots)
            self._changes.remove(work.rows)
        elif target:
            work.key = extra
            self._push(step, work)
        else:
            self._changes.add_result(work.id, extra, work.root)
            self._changes.remove(work.rows)
            self._finished += 1
        self._sorting[step] -= 1
        if not self._sorting[step] and step in self._fed_later:
            self._fed_later.discard(step)
            self._fed(step)

    # ---- items that have perhaps ended a whole run -------------------------------------------------------------------

    def _is_above_suspicion(self, pool: Pool, work: Work) -> bool:
        """Whether an item was not in hand when a run ended without a word; else it is set aside, or dead."""
        alone = self._suspects.get(_ids.digest(work.id))
        if alone is None or work is self._trial:
            return True
        if len(work.members) > 1:
            # Somebody among them.
            for member in work.members:
                half = gathered([member])
                self._suspects.setdefault(_ids.digest(half.id), 0)
                pool.alive += 1
                self._set_aside(pool, half)
            pool.alive -= 1
        elif alone >= STRIKES:
            why = f"it was in hand, alone, in {alone} runs that ended without a word"
            self._failed(pool, work, Failure(why, may_retry=False))
            self._acquit(work)
            self._look_for_end(pool)
        else:
            self._set_aside(pool, work)
        return False

    def _set_aside(self, pool: Pool, work: Work) -> None:
        self._aside.append((pool, work))
        pool.aside += 1

    def _look_aside(self) -> None:
        """If nothing else is left to do, one of those that were set aside is tried, with nobody beside it."""
        alive = sum(pool.alive for pool in self._pools.values()) + self._sorter.alive
        if not self._is_read or self._stopped is not None or self._trial is not None:
            return
        if self._aside and alive == len(self._aside):
            pool, work = self._aside.pop(0)
            pool.aside -= 1
            self._trial = work
            self._hand(self._try_alone(pool, work))

    async def _try_alone(self, pool: Pool, work: Work) -> None:
        digest = _ids.digest(work.id)
        # What the others have done is to be written down by then.
        self._to_write.set()
        while len(self._changes) or self._is_writing:
            await self._written.wait()
        log.warning("`%s` was in hand when a run ended without a word: it is tried with nobody beside it", work.id)
        await self._in_thread(lambda: self._journal.set_meta(alone=str(digest)))
        work.is_alone = True
        self._queue(pool, work)

    def _acquit(self, work: Work) -> None:
        """An item that was under suspicion is through, one way or the other."""
        if work is self._trial:
            self._trial = None
        if self._suspects and self._suspects.pop(digest := _ids.digest(work.id), None) is not None:
            self._hand(self._in_thread(lambda: self._journal.acquit(digest)))

    # ---- workers -----------------------------------------------------------------------------------------------------

    def _hand(self, work: Any) -> None:
        """Has something done beside the others."""
        task = asyncio.ensure_future(work)
        self._hands.add(task)
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._hands.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._crash.done():
            self._crash.set_exception(task.exception())  # type: ignore[arg-type]

    async def _drive(self, pool: Pool, slot: int) -> None:
        """Hands chunks to one worker, as long as there are some."""
        while (works := await self._next_chunk(pool, slot)) is not None:
            if not pool.chunks_of[slot]:
                await self._take_resources(pool)
            number = next(self._chunks)
            pool.in_hand[number] = slot, works
            pool.chunks_of[slot] += 1
            pool.items_of[slot] += len(works)
            self._hand(self._hand_over(pool, slot, number, works))
        while pool.in_hand:
            await pool.work.wait()

    async def _hand_over(self, pool: Pool, slot: int, number: int, works: list[Work]) -> None:
        """Has a worker do a chunk."""
        try:
            done = await self._done(pool, slot, number, works)
        except ActorDied as error:
            self._died(pool, slot, number, works, error)
        except NoProc:
            self._put_back(pool, works)
            self.stop(f"the workers of `{pool.stage.name}` died too often: their supervisor has given up")
        except RebeamError as error:
            # Too large to be sent, there or back.
            self._not_sent(pool, works, error)
        except Exception as error:
            # What the worker said cannot be understood.
            self._not_sent(pool, works, error)
        else:
            if done.broken is not None:
                self._put_back(pool, works)
                self._is_broken(pool, done.broken)
            else:
                self._heard(pool, slot, works, done)
        finally:
            pool.in_hand.pop(number, None)
            pool.timed_out.pop(number, None)
            pool.chunks_of[slot] -= 1
            pool.items_of[slot] -= len(works)
            pool.is_alone_in[slot] = False
            if not pool.chunks_of[slot]:
                for resource, amount in pool.stage.uses:
                    self._resources[resource] += amount
                self._freed.set()
            if pool.stage.is_async:
                for work in works:
                    if work.key is not None and not work.is_later:
                        pool.release(work.key)
            pool.work.set()
        if not pool.is_full:
            pool.room.set()
        self._to_write.set()
        self._look_for_end(pool)
        self._look_aside()

    async def _take_resources(self, pool: Pool) -> None:
        """What a worker needs while it works."""
        for resource, amount in pool.stage.uses:
            while self._resources[resource] < amount:
                await self._freed.wait()
            self._resources[resource] -= amount

    async def _done(self, pool: Pool, slot: int, number: int, works: list[Work]) -> Done:
        if pool is self._sorter:
            chunk = Chunk(number, [(it.id, it.target, it.payload) for it in works])
            return await rebeam.ref(Sorter, "sorter").options(timeout=None).acall(Sorter.sort, chunk)
        chunk = Chunk(number, [(it.id, it.attempts + 1, it.payload) for it in works])
        # The two sorts of workers are called alike.
        return await rebeam.ref(Worker, pool.names[slot]).options(timeout=None).acall(Worker.run, chunk)

    def _heard(self, pool: Pool, slot: int, works: list[Work], done: Done) -> None:
        """A worker has told what came of a chunk."""
        pool.is_prepared, pool.broken, pool.strangers = True, 0, 0
        pool.is_ready[slot] = True
        if pool.cpu.get(slot, 0.0) > done.cpu:
            self._new_process(pool, slot)
        pool.cpu[slot] = done.cpu
        pool.peak_kib = max(pool.peak_kib, done.peak_kib)
        # With keys, what comes behind a failure was not begun.
        self._put_back(pool, works[len(done.outcomes) :])
        for work, (tag, result, seconds) in zip(works, done.outcomes, strict=False):
            pool.note(work, seconds)
            if pool is self._sorter:
                pool.alive -= 1
                self._sorted(work, result)
            else:
                self._concluded(pool, work, tag, result)

    def _is_broken(self, pool: Pool, failure: Failure) -> None:
        """A worker could not be prepared, by `init` of its stage: what is not is tried again, a few times."""
        now = time.monotonic()
        if self._stopped is not None or now < pool.paused_until:
            # Others have told of the same.
            return
        pool.broken += 1
        if pool.is_prepared and pool.broken < MOST_BROKEN:
            log.warning("`init` of `%s` failed: %s", pool.stage.name, failure.cause)
            pool.paused_until = now + min(10.0, 0.2 * 2**pool.broken)
            return
        times = "" if pool.broken == 1 else f" {pool.broken} times"
        self._fault = f"`init` of `{pool.stage.name}` failed{times}: {failure.cause}"
        log.error("%s%s", self._fault, f"\n{failure.detail}" if failure.detail else "")
        self._code = UNFINISHED if pool.is_prepared else START_FAILED
        self.stop("a stage cannot be prepared")

    async def _next_chunk(self, pool: Pool, slot: int) -> list[Work] | None:
        queue = pool.queues[slot if pool.stage.key else 0]
        behind = self._pool_from(pool.step + 1) if pool is not self._sorter else None
        while True:
            if pool.is_over or self._stopped is not None:
                return None
            if behind is not None and behind.is_full:
                await behind.room.wait()
            elif self._is_behind:
                await self._written.wait()
            elif not queue or not pool.has_room(slot):
                await pool.work.wait()
            elif (pause := self._pause(pool)) > 0:
                await pool.work.wait(pause)
            elif pool.stage.is_async and not pool.is_ready[slot]:
                # It is prepared first: no item is to wait for the first one.
                return []
            elif works := pool.take(slot):
                if not pool.is_full:
                    pool.room.set()
                return works
            elif queue:
                # The first is to be alone, and is not yet.
                await pool.work.wait()

    def _pause(self, pool: Pool) -> float:
        """How long until a stage may take another item, in seconds: by its rate, or after many failures."""
        rate, now = pool.stage.rate, time.monotonic()
        if now < pool.paused_until:
            return pool.paused_until - now
        if rate is None:
            return 0.0
        pool.tokens = min(max(1.0, rate / 10), pool.tokens + (now - pool.filled) * rate)
        pool.filled = now
        return 0.0 if pool.tokens >= 1 else (1 - pool.tokens) / rate

    def _concluded(self, pool: Pool, work: Work, tag: int, result: Any) -> None:
        """A worker has told what came of an item."""
        if tag == _worker.FAILED:
            if self._failed(pool, work, result):
                self._try_again(pool, work, result.after)
            return
        if self._suspects or self._trial is not None:
            self._acquit(work)
        pool.failed_in_row = 0
        if pool.pauses:
            pool.pauses = 0
            log.info("`%s` works again", pool.stage.name)
        match tag:
            case _worker.ONE:
                self._passed_on(pool, work, [(work.id, result)])
            case _worker.MANY:
                self._passed_on(pool, work, [(f"{work.id}/{number}", it) for number, it in enumerate(result)])
            case _worker.SAME:
                payload = work.payload if isinstance(work.payload, bytes) else _worker.joined(work.payload)
                self._passed_on(pool, work, [(work.id, (payload, *result[1:]))])
            case _:
                self._passed_on(pool, work, [])
        pool.done += 1
        self._over(pool, work)

    def _put_back(self, pool: Pool, works: list[Work]) -> None:
        for work in reversed(works):
            pool.put_back(work)

    def _not_sent(self, pool: Pool, works: list[Work], error: Exception) -> None:
        """A chunk, or what came of it, could not be sent: each item is tried alone, and one alone is at fault."""
        if len(works) != 1:
            for work in works:
                work.is_alone = True
            self._put_back(pool, works)
            return
        failure = Failure(_worker.valid(_worker.words(error)), may_retry=False)
        if pool is self._sorter:
            pool.alive -= 1
            self._sorted(works[0], (None, None, failure))
        else:
            self._failed(pool, works[0], failure, is_crash=True)

    def _passed_on(self, pool: Pool, work: Work, results: list[tuple[Id, _worker.Result]]) -> None:
        step = pool.step + 1
        is_end = step == len(self._pipeline.steps)
        self._finished += is_end
        for id, (payload, extra, failure) in results:
            if failure is not None:
                where = "sink" if is_end else self._pipeline.steps[step].name
                detail = failure.detail
                self._died_for_good(DeadItem(id, step, where, 1, failure.cause, detail, payload or b"", work.root))
            elif is_end:
                if self._sink.takes_values:
                    self._changes.add_result(id, extra, work.root)
            else:
                assert payload is not None
                self._changes.add_waiting(Waiting(id, step, 0, payload, work.root))
                self._push(step, Work(id, payload, [], [(id, step, work.root)], key=extra, root=work.root))

    def _over(self, pool: Pool, work: Work) -> None:
        """This step is done with an item, one way or the other."""
        self._changes.taken.extend(work.roots)
        self._changes.remove(work.rows)
        pool.alive -= 1
        if self._suspects or self._trial is not None:
            self._acquit(work)

    def _failed(self, pool: Pool, work: Work, failure: Failure, *, is_crash: bool = False) -> bool:
        """An attempt at an item has failed: says whether there is to be another."""
        is_batch = isinstance(work.payload, list) and len(work.payload) > 1
        if not (is_batch and is_crash):
            work.attempts += 1
            if failure.may_retry and work.attempts <= pool.stage.retries:
                pool.retries += 1
                work.is_alone = work.is_alone or is_crash
                if not is_crash and not failure.after:
                    self._note_failed_attempt(pool, failure)
                return True
        if is_batch:
            # Somebody among them: each half is tried by itself.
            for half in halves(work, alone=is_crash):
                pool.alive += 1
                pool.put_back(half)
            pool.alive -= 1
            return False
        pool.failed += 1
        step, payload = pool.step, work.payload
        if isinstance(payload, list):
            # Tried again, it is gathered again.
            step, payload = pool.step - 1, payload[0]
        cause, detail = failure.cause, failure.detail
        name, attempts = pool.stage.name, work.attempts
        self._died_for_good(DeadItem(work.id, step, name, attempts, cause, detail, payload, work.root))
        self._over(pool, work)
        return False

    def _note_failed_attempt(self, pool: Pool, failure: Failure) -> None:
        """After many in a row that are to be tried again, a stage pauses: what it needs is gone, most likely."""
        pool.failed_in_row += 1
        now = time.monotonic()
        if not pool.is_half_open or now < pool.paused_until:
            return
        pause = min(LONGEST_PAUSE, 2.0**pool.pauses)
        pool.pauses += 1
        pool.paused_until = now + pause
        log.warning(
            "`%s` pauses for %g s: %d attempts in a row have failed, the last by %s",
            pool.stage.name, pause, pool.failed_in_row, failure.cause,
        )  # fmt: skip

    def _try_again(self, pool: Pool, work: Work, after: float = 0.0) -> None:
        stage = pool.stage
        grown = stage.backoff * 2.0 ** min(max(0, work.attempts - 1), 64)
        pause = max(min(30.0, grown) * (1 - stage.jitter * random.random()), after)
        work.is_later = True
        if work.key is not None:
            pool.hold(work)
        self._loop.call_later(pause, self._comes_again, pool, work)

    def _comes_again(self, pool: Pool, work: Work) -> None:
        work.is_later = False
        if work.key is not None:
            pool.release(work.key)
        else:
            self._queue(pool, work)

    def _died_for_good(self, dead: DeadItem) -> None:
        self._changes.dead.append(dead)
        self._note_dead(dead)

    def _note_dead(self, dead: DeadItem) -> None:
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
        certificate = error.certificate
        if certificate.pid != pool.last_dead:
            # It had other chunks in hand as well.
            pool.last_dead = certificate.pid
            pool.deaths += 1
            pool.is_ready[slot] = False
            pool.last_running = _left_running(pool.marks[slot], set(pool.in_hand)) if pool.stage.is_async else None
            pool.last_items = pool.items_of[slot]
            self._new_process(pool, slot)
        entries = _left_in_hand(pool.marks[slot], number)
        if entries and entries[0].phase == _marks.PREPARE:
            self._put_back(pool, works)
            self._died_preparing(pool, certificate)
            return
        culprit = self._culprit(pool, number, works, entries)
        if culprit is None and not entries and not error.begun:
            # It had not come to these.
            self._put_back(pool, works)
            return
        comes_again = False
        if culprit is not None:
            phase = next((it.phase for it in entries if works[it.place] is culprit), _marks.APPLY)
            comes_again = self._blamed(pool, culprit, number, certificate, _IN_PHASE.get(phase, ""))
        is_known = culprit is not None or pool.last_running is not None or _is_strangers(certificate)
        for work in reversed(works):
            if work is not culprit:
                work.is_alone = work.is_alone or not is_known
                pool.put_back(work)
            elif comes_again:
                self._try_again(pool, work)

    def _died_preparing(self, pool: Pool, certificate: Certificate) -> None:
        if _is_strangers(certificate) and pool.strangers < STRANGERS:
            pool.strangers += 1
            return
        lines = [certificate.stacks, *certificate.last_output[-20:]]
        detail = _worker.valid("\n".join(line for line in lines if line))
        self._is_broken(pool, Failure(f"its worker died: {certificate.reason}", detail))

    def _culprit(self, pool: Pool, number: int, works: list[Work], entries: list[Entry]) -> Work | None:
        """The item that a worker had in hand by the marks that it has left; None if nobody knows."""
        if number in pool.timed_out:
            return pool.timed_out[number][0]
        if not pool.stage.is_async:
            at_it = next(iter(entries), None)
        elif (running := pool.last_running) is not None:
            at_it = running if running.chunk == number else None
        else:
            # Whatever it was that ran, it was of the one that was there.
            at_it = entries[0] if len(entries) == 1 and pool.last_items == 1 else None
        if at_it is not None:
            return works[at_it.place] if at_it.place < len(works) else None
        # It may be that the item could not even be received.
        return works[0] if len(works) == 1 and not pool.stage.is_async and not entries else None

    def _blamed(self, pool: Pool, culprit: Work, number: int, certificate: Certificate, what: str) -> bool:
        """An item has cost its worker's life; says whether it is tried again. `what` was done with it."""
        reason = certificate.reason
        late, limit = pool.timed_out.pop(number, (None, 0.0))
        has_timed_out = late is culprit
        if not has_timed_out and _is_strangers(certificate) and culprit.strangers < STRANGERS:
            culprit.strangers += 1
            return True
        cause = f"it took longer than {limit:g} s" if has_timed_out else f"the worker died: {reason}"
        lines = [f"killer: {certificate.killer}"] if certificate.killer else []
        lines += [reason.traceback or "", certificate.stacks, *certificate.last_output[-20:]]
        detail = _worker.valid("\n".join(line for line in lines if line))
        failure = Failure(_worker.valid(what + cause), detail)
        if pool is self._sorter:
            pool.alive -= 1
            self._sorted(culprit, (None, None, failure))
            return False
        return self._failed(pool, culprit, failure, is_crash=True)

    def _new_process(self, pool: Pool, slot: int) -> None:
        pool.cpu_before += pool.cpu.pop(slot, 0.0)

    def _limit(self, pool: Pool, work: Work, phase: int) -> float | None:
        """How long an item may take: its stage, or what the next step or the sink needs of it."""
        if phase in (_marks.APPLY, _marks.PREPARE):
            return pool.stage.timeout if phase == _marks.APPLY else None
        own = pool if pool is not self._sorter else self._pools.get(work.target)
        return (own.stage.timeout if own is not None else None) or OWN_SECONDS

    def _own_limit(self, entry: Entry) -> float:
        """How long a record of the source may take that is made an item."""
        first = self._pools.get(0)
        timeout = first.stage.timeout if first is not None and entry.phase == _marks.KEY else None
        return timeout or OWN_SECONDS

    def _may_be_late(self, pool: Pool, slot: int) -> list[Entry]:
        """Those in hand whose worker cannot see to their time itself."""
        marks = pool.marks[slot]
        # Of those that wait beside others, the one whose code runs lets nobody else run. If none does, the worker has
        # cancelled those that are late, and they do not mind.
        running = marks.running() if pool.stage.is_async else None
        return marks.in_hand() if running is None else [running]

    async def _watch(self) -> None:
        """Has workers killed whose item takes too long."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            for pool in (*self._pools.values(), self._sorter):
                for slot in range(pool.stage.concurrency):
                    for entry in self._may_be_late(pool, slot) if pool.chunks_of[slot] else ():
                        _, works = pool.in_hand.get(entry.chunk, (slot, []))
                        if entry.place >= len(works) or entry.chunk in pool.timed_out:
                            continue
                        work = works[entry.place]
                        limit = self._limit(pool, work, entry.phase)
                        if limit is not None and now - entry.since > limit + GRACE * pool.stage.is_async:
                            pool.timed_out[entry.chunk] = work, limit
                            _process.kill_hung(rebeam.ref(Worker, pool.names[slot]))
            for entry in self._reading.in_hand():
                is_own = entry.chunk == _marks.READING and entry.phase != _marks.ITERATE
                if is_own and now - entry.since > self._own_limit(entry) and not self._has_killed_reader:
                    self._has_killed_reader = True
                    _process.kill_hung(rebeam.ref(Reader, "source"))

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
            self._is_writing = True
            try:
                refused = await self._in_thread(lambda changes=changes: self._commit(changes))
            except Exception as error:
                path = self._current.directory / "journal.db"
                what = error if isinstance(error, SinkError) else _journal.unusable(path, error)
                self._fault = str(what)
                log.error("%s", what)
                self.stop("what is done cannot be written down")
                return
            finally:
                self._is_writing = False
            for dead in refused:
                self._note_dead(dead)
            self._written.set()

    def _commit(self, changes: Changes) -> list[DeadItem]:
        """Writes results and journal; gives those that the sink does not take, which are dead by the same commit."""
        refused: list[DeadItem] = []
        mark = None
        if changes.results:
            written = dict(changes.results)
            try:
                reasons = self._sink.write(changes.results)
                mark = self._sink.flush()
            except Exception as error:
                raise SinkError(f"the sink failed: {type(error).__name__}: {error}") from error
            step = len(self._pipeline.steps)
            for id, why in reasons:
                value, root = _journal.packed(written[id]), changes.roots.get(id, id)
                refused.append(DeadItem(id, step, "sink", 1, why, "", value, root))
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
            # What is in hand is known after a loss of power, too, if it has been for a moment.
            await self._in_thread(self._current.memory.flush)

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
            at_once = pool.stage.concurrency * pool.stage.in_flight
            busy = pool.seconds / (seconds * at_once) if seconds else 0.0
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
            return "run(retry_failed=True)" if code == DEAD_ITEMS else "run()"
        return f"{command} --retry-failed" if code == DEAD_ITEMS else command

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
        state = {DONE: "done", DEAD_ITEMS: "done, with dead items"}.get(code, "unfinished")
        return {
            **progress, "code": code, "state": state, "run": self._journal.run, "why": self._fault or self._stopped,
            "counts": {**counts, "done": self._finished, "before": self._before}, "failures": failures,
            "timeline": self._timeline, "command": self._command(code),
            "directory": str(self._current.directory),
        }  # fmt: skip


_IN_PHASE = {_marks.KEY: "its key: ", _marks.SINK: "the sink: "}
"""What was done with an item when it cost its worker's life, where that was not its own stage."""


def _is_strangers(certificate: Certificate) -> bool:
    """Whether somebody else has killed a worker, which says nothing of what it had in hand."""
    reason = certificate.reason
    is_unknown = reason.kind == "signal" and "SIGKILL" in reason.detail and certificate.killer == "unknown"
    # Also a worker that was killed by name just after the late item had ended.
    return is_unknown or reason.kind == "killed"


def _left_in_hand(marks: _marks.Marks, chunk: int) -> list[Entry]:
    """What a process that has died had in hand of a chunk: its successor may have begun."""
    assert marks.left is not None
    now = [it for it in marks.in_hand() if it.chunk == chunk]
    return now or [it for it in marks.left.in_hand() if it.chunk == chunk]


def _left_running(marks: _marks.Marks, chunks: set[int]) -> Entry | None:
    """Whose code ran when a process died that had these chunks in hand."""
    assert marks.left is not None
    for running in (marks.left.running(), marks.running()):
        if running is not None and running.chunk in chunks:
            return running
    return None


def _told_apart(journal: Journal, records: list[Record]) -> list[Record]:
    """Records under ids of their own: of several with one id, all but the first are dead."""
    apart = []
    for record, times in zip(records, journal.times_seen([it.id for it in records]), strict=True):
        if times == 1:
            apart.append(record)
            continue
        id = f"{record.id}#{times}"
        while journal.times_seen([id]) != [1]:
            times += 1
            id = f"{record.id}#{times}"
        failure = Failure(f"its id `{record.id}` is that of an earlier item as well", may_retry=False)
        apart.append(record._replace(id=id, key=None, failure=record.failure or failure))
    return apart


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)
