"""How a pipeline becomes a tree, and a tree a run: what the zygote, the workers and whoever calls `run()` share."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rebeam import _client, _main
from rebeam._spec import Supervisor, child
from rebeam.batch._pipeline import Pipeline, PipelineError, Stage
from rebeam.batch._worker import MARK

VARIABLE = "REBEAM_BATCH"
"""By this `rebeam batch` says how the pipeline is to be run, as JSON."""


class Current(NamedTuple):
    """The run that this process is part of.

    Attributes:
        pipeline: what is run.
        options: of the command.
        directory: of the journal.
        marks: memory that all workers share with the conductor.
    """

    pipeline: Pipeline
    options: dict[str, Any]
    directory: Path
    marks: mmap.mmap


_current: Current | None = None


def current() -> Current:
    """The run that this process is part of: made in the zygote, or, in an interpreter of its own, found anew."""
    if _current is None:
        from rebeam import _app

        pipeline = _app.pipeline(json.loads(os.environ[VARIABLE]).get("attribute"))
        return _become(pipeline)
    return _current


def tree(pipeline: Pipeline) -> Supervisor:
    """The tree that runs a pipeline by the options in the environment.

    Raises:
        PipelineError: something is missing, or its journal does not fit it.
    """
    from rebeam.batch._conductor import Conductor
    from rebeam.batch._journal import Journal
    from rebeam.batch._worker import Worker

    pipeline.check()
    stages = [(step, stage) for step, stage in enumerate(pipeline.steps) if isinstance(stage, Stage)]
    run = _become(pipeline)
    # A zygote that takes another's place makes the tree once more, in the middle of the run.
    is_first = not (run.directory / "run").exists() or (run.directory / "run").read_text() != run.options.get("token")
    in_memory = bool(run.options.get("no_journal"))
    journal = Journal(
        run.directory, pipeline.name, in_memory=in_memory, looks=True, fresh=is_first and bool(run.options.get("fresh"))
    )
    try:
        if is_first:
            _check_changes(pipeline, journal, accepts=bool(run.options.get("accept_changes")))
            (run.directory / "run").write_text(str(run.options.get("token")))
    finally:
        journal.close()
    pools, slot = [], 0
    for step, stage in stages:
        children = []
        for number in range(stage.concurrency):
            name = f"{stage.name}.{number}"
            children.append(child(Worker, step, slot, name=name, id=str(number), memory=stage.memory))
            slot += 1
        # A worker that dies is the item's business: what is too much is said by `--max-failures`.
        pools.append(Supervisor(children, id=stage.name, max_restarts=1000, max_seconds=10))
    conductor = child(Conductor, name="conductor", restart="transient", significant=True, shutdown="infinity")
    return Supervisor([*pools, conductor], auto_shutdown="any_significant")


def _become(pipeline: Pipeline) -> Current:
    global _current
    options = json.loads(os.environ.get(VARIABLE) or "{}")
    journal = os.fsdecode(bytes(options.get("journal") or b".rebeam/batch"))
    directory = Path(journal) / pipeline.name
    workers = sum(stage.concurrency for stage in pipeline.steps if isinstance(stage, Stage))
    _current = Current(pipeline, options, directory.absolute(), _marks(options.get("marks"), workers))
    return _current


def _marks(path: str | None, workers: int) -> mmap.mmap:
    """Memory that all of a run share, however their processes were made."""
    if path is None:
        return mmap.mmap(-1, workers * MARK.size)
    with open(path, "r+b") as file:
        if os.fstat(file.fileno()).st_size < workers * MARK.size:
            file.truncate(workers * MARK.size)
        return mmap.mmap(file.fileno(), workers * MARK.size)


def _check_changes(pipeline: Pipeline, journal: Any, *, accepts: bool) -> None:
    now = pipeline.fingerprint()
    before = json.loads(journal.meta("fingerprint") or "null")
    if before is not None and before != now and not accepts:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise PipelineError(
            f"since the journal of `{pipeline.name}` was begun, this has changed: {', '.join(names)}; "
            "`--accept-changes` goes on, `--fresh` starts over"
        )
    steps = [f"{type(step).__name__} {step.name}" for step in pipeline.steps]
    known = json.loads(journal.meta("steps") or "null")
    counts = journal.counts()
    if known not in (None, steps) and (counts["waiting"] or counts["dead"]):
        raise PipelineError(
            f"the steps of `{pipeline.name}` are others than when its journal was begun ({', '.join(known)}), "
            "and items wait between them: finish it as it was, or start over by `--fresh`"
        )
    journal.set_meta(fingerprint=now, steps=steps)


def run(pipeline: Pipeline, options: dict[str, Any]) -> dict[str, Any]:
    """Runs a pipeline of a script or a notebook by the program, and gives its report."""
    if _main.is_imported(None):
        raise PipelineError(f"`run()` is called as the script is imported: {_main.GUARD}")
    try:
        program = _client.program()
    except FileNotFoundError as error:
        raise PipelineError(f"{error}: is the package installed?") from None
    flags = []
    for option, value in options.items():
        flag = "--" + option.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value not in (None, False):
            flags += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [program, "batch", _target(pipeline, folder), "--report", report, *flags]
        # By our Python, if nothing else is said; and it goes with us, whatever becomes of us.
        environment = {"REBEAM_PYTHON": sys.executable, **os.environ, "REBEAM_PARENT": str(os.getpid())}
        told = ""
        if "ipykernel" in sys.modules:
            code, told = _show([*command, "--json"], environment)
        else:
            code = subprocess.run(command, env=environment).returncode
        if not os.path.exists(report):
            raise PipelineError(f"it did not run (exit code {code}){told and ': '}{told}")
        with open(report, encoding="utf-8") as file:
            result: dict[str, Any] = json.load(file)
    return result


def _target(pipeline: Pipeline, folder: str) -> str:
    """Where the program finds a pipeline: in the file of the script, or, of a notebook, in one made for it."""
    main: Any = sys.modules["__main__"]
    names = [name for name, value in vars(main).items() if value is pipeline]
    path = getattr(main, "__file__", None)
    if path is not None and names:
        return f"{path}:{names[0]}"
    try:
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise PipelineError(
            "a pipeline that stands in no file under a name of its own needs the package `cloudpickle` to be run"
        ) from None
    stem = os.path.join(folder, "notebook")
    with open(f"{stem}.pickle", "wb") as file:
        cloudpickle.dump(pipeline, file)
    with open(f"{stem}.py", "w", encoding="utf-8") as file:
        file.write(f"import cloudpickle\n\npipe = cloudpickle.load(open({stem + '.pickle'!r}, 'rb'))\n")
    return f"{stem}.py:pipe"


def _show(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs the program and shows in a notebook how far it is, in one place that is written anew.

    Returns:
        Its exit code, and what it has written to stderr, which no notebook shows.
    """
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    place: Any = None
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as program,
    ):
        assert program.stdout is not None
        for line in program.stdout:
            record = json.loads(line)
            extra = record.get("extra") or {}
            if "batch" in extra or "batch_report" in extra:
                shown = {"text/plain": record["message"]}
                if place is None:
                    place = display(shown, raw=True, display_id=True)
                else:
                    place.update(shown, raw=True)
            elif record["level"] in ("warning", "error", "critical"):
                print(f"{record['actor']}: {record['message']}", file=sys.stderr)
        code = program.wait()
        errors.seek(0)
        return code, errors.read().strip()
