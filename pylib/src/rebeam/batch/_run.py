"""How a pipeline becomes a tree, and a tree a run: what the zygote, the workers and whoever calls `run()` share."""

from __future__ import annotations

import ast
import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rebeam import _client, _import_watch, _main
from rebeam._spec import Supervisor, child
from rebeam.batch import _journal, _marks
from rebeam.batch._pipeline import Pipeline, PipelineError, Stage
from rebeam.batch._pools import MOST_CHUNKS

VARIABLE = "REBEAM_BATCH"
"""By this `rebeam batch` says how the pipeline is to be run, as JSON."""

ARGUMENTS = "REBEAM_BATCH_ARGUMENTS"
"""By this `run()` hands on the arguments of its script, as JSON."""


class Current(NamedTuple):
    """The run that this process is part of.

    Attributes:
        pipeline: what is run.
        options: of the command.
        directory: of the journal.
        memory: what all processes of the run share.
        marks: of the workers of all stages, then of the process that reads the source, and of the one that sorts.
    """

    pipeline: Pipeline
    options: dict[str, Any]
    directory: Path
    memory: mmap.mmap
    marks: list[_marks.Marks]

    def lock(self) -> _journal.Lock:
        """Takes the journal, or shares it with the others of this run."""
        command = self.options.get("command") or "run()"
        return _journal.Lock(self.directory, str(self.options.get("token")), command)


_current: Current | None = None
_lock: _journal.Lock | None = None
"""The journal, held by whoever makes the tree, and by all that are forked from it."""


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
    from rebeam.batch._reader import Reader, Sorter
    from rebeam.batch._worker import AsyncWorker, Worker

    pipeline.check()
    if not _options().get("no_journal"):
        _begin(pipeline)
    _become(pipeline)
    pools, slot = [], 0
    for step, stage in enumerate(pipeline.steps):
        if not isinstance(stage, Stage):
            continue
        children = []
        for number in range(stage.concurrency):
            name = f"{stage.name}.{number}"
            options: dict[str, Any] = {"name": name, "id": str(number), "memory": stage.memory}
            if stage.is_async:
                options["concurrency"] = min(stage.in_flight, MOST_CHUNKS) + 1
            children.append(child(AsyncWorker if stage.is_async else Worker, step, slot, **options))
            slot += 1
        # A worker that dies is the item's business: what is too much is said by `--max-failures`.
        pools.append(Supervisor(children, id=stage.name, max_restarts=1000, max_seconds=10))
    for name, what in (("source", Reader), ("sorter", Sorter)):
        pools.append(
            Supervisor(
                [child(what, slot, name=name, shutdown="brutal_kill")], id=name, max_restarts=1000, max_seconds=10
            )
        )
        slot += 1
    conductor = child(Conductor, name="conductor", restart="transient", significant=True, shutdown="infinity")
    return Supervisor([*pools, conductor], auto_shutdown="any_significant")


def _options() -> dict[str, Any]:
    options: dict[str, Any] = json.loads(os.environ.get(VARIABLE) or "{}")
    return options


def _directory(pipeline: Pipeline) -> Path:
    journal = os.fsdecode(bytes(_options().get("journal") or b".rebeam/batch"))
    return (Path(journal) / pipeline.name).absolute()


def _counts(pipeline: Pipeline) -> list[int]:
    """How many items each worker has in hand at most; the reader and the sorter have one."""
    stages = [stage for stage in pipeline.steps if isinstance(stage, Stage)]
    return [stage.in_flight for stage in stages for _ in range(stage.concurrency)] + [1, 1]


def _begin(pipeline: Pipeline) -> None:
    """Takes the journal, and readies it for a run.

    Raises:
        PipelineError: another run has it, it is somebody else's, or it does not fit the pipeline.
    """
    global _lock
    options, directory = _options(), _directory(pipeline)
    is_trusted = options.get("trust_journal") or options.get("fresh")
    check = None if is_trusted else lambda: _journal.check_owner(directory)
    _lock = _journal.Lock(directory, str(options.get("token")), options.get("command") or "run()", check)
    if not _lock.is_first:
        # A zygote that takes another's place makes the tree once more, in the middle of the run.
        return
    if options.get("fresh"):
        _start_over(pipeline, directory)
    journal = _journal.Journal(directory, pipeline.name, looks=True)
    try:
        _check_changes(pipeline, journal, accepts=bool(options.get("accept_changes")))
        _look_for_suspects(journal, directory / "marks", _counts(pipeline))
    finally:
        journal.close()


def _start_over(pipeline: Pipeline, directory: Path) -> None:
    """Forgets a journal, and removes what the sink has written by it."""
    if (directory / "journal.db").exists() and pipeline.target is not None:
        try:
            _journal.check_owner(directory)
            journal = _journal.Journal(directory, pipeline.name, looks=True)
        except PipelineError:
            # It is another's, or broken: what it says of files is not to be gone by.
            pass
        else:
            if journal.meta("sink") == pipeline.target.describe():
                pipeline.target.forget(journal)
            journal.close()
    _journal.clear(directory)


def _look_for_suspects(journal: _journal.Journal, path: Path, counts: list[int]) -> None:
    """If the last run ended without a word, notes what was in hand; and makes room for the marks of this one."""
    if journal.meta("open") == "true" and json.loads(journal.meta("counts") or "null") == counts and path.exists():
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            if len(memory) >= _marks.size(counts):
                entries = [it for marks in _marks.split(memory, counts) for it in marks.in_hand()]
                digests = {it.digest for it in entries if it.phase not in (_marks.PREPARE, _marks.ITERATE)}
                # Of the source, one record is in hand at a time.
                alone = {it.digest for it in entries if it.chunk == _marks.READING}
                journal.suspect(digests, alone | {int(journal.meta("alone") or 0)})
    journal.set_meta(counts=counts)
    with open(path, "wb") as made:
        made.truncate(_marks.size(counts))


def _become(pipeline: Pipeline) -> Current:
    global _current
    options, directory, counts = _options(), _directory(pipeline), _counts(pipeline)
    path = options.get("marks") if options.get("no_journal") else directory / "marks"
    memory = _memory(path, _marks.size(counts))
    _current = Current(pipeline, options, directory, memory, _marks.split(memory, counts))
    return _current


def _memory(path: str | Path | None, size: int) -> mmap.mmap:
    """Memory that all of a run share, however their processes were made."""
    if path is None:
        return mmap.mmap(-1, size)
    with open(path, "r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        with _import_watch.shares_on_purpose():
            return mmap.mmap(file.fileno(), size)


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
        # The file is imported again, and may make its pipeline by its arguments.
        environment[ARGUMENTS] = json.dumps(sys.argv)
        told = ""
        if "ipykernel" in sys.modules:
            code, told = _show([*command, "--json"], environment)
        else:
            with subprocess.Popen(command, env=environment) as program_:
                code = _waited(program_)
        if not os.path.exists(report):
            raise PipelineError(f"it did not run (exit code {code}){told and ': '}{told}")
        with open(report, encoding="utf-8") as file:
            result: dict[str, Any] = json.load(file)
    return result


def _waited(program: subprocess.Popen[bytes]) -> int:
    """The exit code of the program. Ctrl-C reaches it as well: it finishes what is in hand, and is waited for."""
    while True:
        try:
            return program.wait()
        except KeyboardInterrupt:
            continue


def _target(pipeline: Pipeline, folder: str) -> str:
    """Where the program finds a pipeline: in the file of the script, or, of a notebook, in one made for it."""
    main: Any = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is not None:
        names = [name for name, value in vars(main).items() if value is pipeline]
        found = next((name for name in names if name in _made_on_import(path)), None)
        if found is not None:
            return f"{path}:{found}"
    try:
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise PipelineError(
            "a pipeline that is not made where its file is imported (in a function, under `if __name__ == ...`, in a "
            "notebook) needs the package `cloudpickle` to be run"
        ) from None
    stem = os.path.join(folder, "notebook")
    with open(f"{stem}.pickle", "wb") as file:
        cloudpickle.dump(pipeline, file)
    with open(f"{stem}.py", "w", encoding="utf-8") as file:
        file.write(f"import cloudpickle\n\npipe = cloudpickle.load(open({stem + '.pickle'!r}, 'rb'))\n")
    return f"{stem}.py:pipe"


def _made_on_import(path: str) -> set[str]:
    """The names that a script gives whenever it is imported, and not only when it is run."""
    try:
        with open(path, "rb") as file:
            rest: list[ast.AST] = list(ast.parse(file.read()).body)
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    while rest:
        node = rest.pop()
        if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            rest += node.orelse
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {it.id for target in targets for it in ast.walk(target) if isinstance(it, ast.Name)}
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.NamedExpr):
            rest.append(node.value)
        elif isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.Try)):
            rest += [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            rest += [it for handler in getattr(node, "handlers", []) for it in handler.body]
    return names


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
