"""Pipelines that survive crashes and resume.

    from rebeam.batch import pipeline, source, sink

    pipe = (
        pipeline("invoices")
        .source(source.files("in/**/*.pdf"))
        .stage(parse, concurrency=8, memory="1GB", timeout=60, retries=2)
        .sink(sink.jsonl("out.jsonl"))
    )

`rebeam batch app:pipe` runs it, and goes on where it was if it ended before its end, by whatever means: what was done
is not done again, and none of it is in the output twice where the sink is one of `sink.jsonl`, `sink.files` and
`sink.sql`. A function as a sink gets each item *at least once*: after a crash of the whole, those that were in hand
come again, with the same `item.id`, by which it can tell.
"""

from rebeam.batch import _sinks as sink
from rebeam.batch import _sources as source
from rebeam.batch._pipeline import Dead, Item, Pipeline, PipelineError, Retry, Skip, pipeline

__all__ = ["Dead", "Item", "Pipeline", "PipelineError", "Retry", "Skip", "pipeline", "sink", "source"]
