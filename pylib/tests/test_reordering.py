"""The worker's real code, with messages that overtake each other and acknowledgements that come late."""

from __future__ import annotations

import collections
import time
from typing import Any

import pytest
import rebeam
from rebeam import Actor, Supervisor, child
from rebeam.testing import running

handled: list[tuple[str, int]] = []
"""What sinks have handled, over all their lives: actors of a test share its process."""

recycled: list[int] = []
"""How many messages sinks had handled when they were recycled."""


class Sink(Actor):
    def init(self) -> None:
        self.count = 0

    def checkpoint(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state
        recycled.append(state)

    def put(self, source: str, number: int) -> int:
        handled.append((source, number))
        self.count += 1
        return self.count

    def total(self) -> int:
        return self.count


class AsyncSink(Sink):
    async def put(self, source: str, number: int) -> int:  # type: ignore[override]
        return super().put(source, number)


class Source(Actor):
    def run(self, name: str, count: int) -> list[int]:
        sink = rebeam.ref(Sink, "sink").options(timeout=None)
        answers = []
        for number in range(count):
            if number % BURST == BURST - 1:
                answers.append(sink.call(Sink.put, name, number))
            else:
                sink.cast(Sink.put, name, number)
        return answers


def orders() -> dict[str, list[int]]:
    """What was handled of each source, in order."""
    found = collections.defaultdict(list)
    for source, number in handled:
        found[source].append(number)
    return found


SOURCES, COUNT, BURST = 3, 60, 20


def run(sink: Any, seed: int, *, ages: bool = False) -> None:
    """Has all sources speak to the sink at once, and looks at what has become of it; `ages`: while time flies."""
    handled.clear()
    recycled.clear()
    sources = [child(Source, name=f"source{number}") for number in range(SOURCES)]
    with running(Supervisor([sink, *sources]), seed=seed) as node:
        refs = [rebeam.ref(Source, f"source{number}").options(timeout=None) for number in range(SOURCES)]
        pending = [ref.request(Source.run, f"s{number}", COUNT) for number, ref in enumerate(refs)]
        if ages:
            before = 0
            while not all(one.done() for one in pending):
                time.sleep(0)
                if len(handled) >= before + 5:
                    before = len(handled)
                    # Past `advance`, which waits until everybody is idle: the sink grows old with mail before it.
                    node._node.advance(1.0)
        for one in pending:
            answers = one.result()
            assert len(answers) == COUNT // BURST and answers == sorted(answers)
        assert rebeam.ref(Sink, "sink").options(timeout=None).call(Sink.total) == SOURCES * COUNT
        assert not node.deaths and not node.dead_letters
    assert recycled == sorted(set(recycled)) and len(recycled) >= SOURCES
    assert orders() == {f"s{number}": list(range(COUNT)) for number in range(SOURCES)}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("actor", [Sink, AsyncSink])
def test_recycling_loses_nothing_does_nothing_twice_and_keeps_the_order(actor: type[Sink], seed: int) -> None:
    concurrency = 1 if actor is AsyncSink else None
    run(child(actor, name="sink", max_messages=5, concurrency=concurrency), seed)


@pytest.mark.parametrize("seed", range(6))
def test_a_full_mailbox_loses_nothing_and_keeps_the_order(seed: int) -> None:
    run(child(Sink, name="sink", max_messages_waiting=2, max_messages=7), seed)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("actor", [Sink, AsyncSink])
def test_recycling_with_messages_handed_over_puts_them_back_in_order(actor: type[Sink], seed: int) -> None:
    concurrency = 1 if actor is AsyncSink else None
    run(child(actor, name="sink", max_age=1.0, concurrency=concurrency), seed, ages=True)
