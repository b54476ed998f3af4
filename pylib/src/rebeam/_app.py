"""Finding, importing and evaluating the application, in the zygote or in a fresh worker."""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.util
import mmap
import operator
import os
import sys
from typing import Any

from rebeam import _failure, _rebeam
from rebeam._errors import SpecError
from rebeam._spec import Supervisor

# Libraries whose fork handlers need not run: the C library's own, and OpenSSL 3's, which do nothing.
_HARMLESS_FORK_HANDLERS = ("libc.", "libc-", "libpthread", "ld-linux", "libcrypto", "libpython", "rebeam-worker")


class TargetError(Exception):
    """What the command line points at is not there, or is not a tree."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def load(kind: str, source: str, attribute: str | None, preload: list[str]) -> tuple[Supervisor, str | None, bool]:
    """Imports the application: its tree, why it must not be forked if so, and whether fork handlers must run."""
    before = _open_descriptors()
    for module in preload:
        _import(module, "preload")
    module = import_app(kind, source, os.getcwd())
    tree = _find_tree(module, source, attribute)
    return tree, _unforkable(before), _has_fork_handlers()


_imported: Any = None
"""The application's module, once it is imported."""


def pipeline(attribute: str | None) -> Any:
    """The pipeline of the application that this process has imported."""
    if attribute is not None:
        return operator.attrgetter(attribute)(_imported)
    return next(value for value in vars(_imported).values() if is_pipeline(value))


def import_app(kind: str, source: str, project: str) -> Any:
    """Imports the application's module, by name or from a file."""
    global _imported
    _imported = _import_app(kind, source, project)
    return _imported


def _import_app(kind: str, source: str, project: str) -> Any:
    if kind == "module":
        if project not in sys.path:
            sys.path.insert(0, project)
        return _import(source, "module")
    directory, file = os.path.split(source)
    name = os.path.splitext(file)[0]
    if directory not in sys.path:
        sys.path.insert(0, directory)
    if not os.path.isfile(source):
        raise TargetError(f"there is no file `{source}`", _near(file, _files(directory)))
    if name in sys.stdlib_module_names:
        raise TargetError(f"`{file}` has the name of a module of Python itself", "rename the file")
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise TargetError(f"`{source}` is not a Python file", "its name should end in `.py`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only if the named module itself is missing, not one that it imports.
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            near = _near(name, [*_files(os.getcwd()), *sys.stdlib_module_names])
            hint = near or f"it is looked for in `{os.getcwd()}` and in `sys.path`"
            raise TargetError(f"there is no {what} `{name}`", hint) from None
        raise


def _files(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [name for name in names if name.endswith(".py")] + [name[:-3] for name in names if name.endswith(".py")]


def _near(name: str, names: list[str]) -> str | None:
    near = difflib.get_close_matches(name, names, 1, cutoff=0.7)
    return f"did you mean `{near[0]}`?" if near else None


def _find_tree(module: Any, source: str, attribute: str | None) -> Supervisor:
    trees = sorted(name for name, value in vars(module).items() if isinstance(value, Supervisor))
    is_default = attribute is None
    pipelines = sorted(name for name, value in vars(module).items() if is_pipeline(value))
    if attribute is None and "REBEAM_BATCH" in os.environ:
        if len(pipelines) != 1:
            known = f"pipelines there: {', '.join(f'`{it}`' for it in pipelines)}" if pipelines else _FIRST_PIPELINE
            raise TargetError(f"`{source}` has {len(pipelines)} pipelines: say which", known)
        attribute = pipelines[0]
    if attribute is None:
        attribute = "tree" if hasattr(module, "tree") or len(trees) != 1 else trees[0]
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            hint = None if is_default else _near(attribute, names)
            if hint is None:
                hint = f"pipelines there: {', '.join(f'`{it}`' for it in pipelines)}" if pipelines else None
            if hint is None:
                hint = f"supervisors there: {', '.join(f'`{t}`' for t in trees)}" if trees else _FIRST_TREE
            raise TargetError(f"`{source}` has no attribute `{attribute}`", hint)
        value = getattr(value, part)
    if is_pipeline(value) and "REBEAM_BATCH" in os.environ:
        return _tree_of(value)
    if is_pipeline(value):
        raise TargetError(
            f"`{attribute}` of `{source}` is a pipeline", f"run it by `rebeam batch {source}:{attribute}`"
        )
    if "REBEAM_BATCH" in os.environ:
        known = f"pipelines there: {', '.join(f'`{it}`' for it in pipelines)}" if pipelines else _FIRST_PIPELINE
        raise TargetError(f"`{attribute}` of `{source}` is no pipeline", known)
    if callable(value) and not isinstance(value, type):
        value = value()
    if not isinstance(value, Supervisor):
        kind = f"{value.__name__!r}" if isinstance(value, type) else f"of type `{type(value).__qualname__}`"
        raise TargetError(f"`{attribute}` of `{source}` is {kind}, not a `rebeam.Supervisor`", _FIRST_TREE)
    return value


def is_pipeline(value: object) -> bool:
    """Whether it is one of `rebeam.batch`, which is imported only where somebody uses it."""
    module = sys.modules.get("rebeam.batch._pipeline")
    return module is not None and isinstance(value, module.Pipeline)


def _tree_of(pipeline: Any) -> Supervisor:
    from rebeam.batch import PipelineError, _run

    try:
        return _run.tree(pipeline)
    except PipelineError as error:
        raise TargetError(str(error)) from None


_FIRST_PIPELINE = "write `pipe = rebeam.batch.pipeline(…).source(…).stage(…).sink(…)`"
_FIRST_TREE = "write `tree = rebeam.Supervisor([rebeam.child(YourActor)])`"


def _open_descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return found


def _unforkable(before: dict[str, str]) -> str | None:
    """Why this process must not be forked, or None."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"its import started {threads - 1} thread{'s' if threads > 2 else ''}{_thread_names()}"
    for fd, to in _open_descriptors().items():
        if before.get(fd) == to:
            continue
        if to.startswith("socket:"):
            return "its import opened a socket"
        if to.startswith("anon_inode:"):
            return f"its import opened an {to.removeprefix('anon_inode:').strip('[]')}"
        if to.startswith("/dev/") and to not in ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero"):
            return f"its import opened the device `{to}`"
    return None


def _thread_names() -> str:
    threading = sys.modules.get("threading")
    names = [t.name for t in threading.enumerate() if t is not threading.main_thread()] if threading else []
    return f" ({', '.join(names)})" if names else ""


def _has_fork_handlers() -> bool:
    """Whether a loaded library registered handlers with `pthread_atfork`.

    There is no way to ask; but a library that does names the function among the symbols it wants.
    """
    seen = set()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and ".so" in path:
                seen.add("/" + path)
    for path in seen:
        if os.path.basename(path).startswith(_HARMLESS_FORK_HANDLERS):
            continue
        try:
            # Mapped, since a library may have gigabytes, which are not to become the zygote's own memory.
            with open(path, "rb") as library, mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as symbols:
                if symbols.find(b"__register_atfork") >= 0:
                    return True
        except (OSError, ValueError):
            continue
    return False


def freeze() -> None:
    """Puts everything that is there out of the collector's sight, so that workers share its memory."""
    from rebeam import _logging

    _logging.install()
    gc.collect()
    gc.freeze()
    # What lies about free is put in order here, once, and not by every worker in pages of its own.
    _rebeam.trim_memory()


def describe_load_error(error: BaseException) -> dict[str, str | None]:
    """What the supervisor says about an application that could not be loaded."""
    if isinstance(error, TargetError):
        return {"kind": "usage", "message": str(error), "hint": error.hint, "traceback": None}
    traceback = _failure.format_traceback(error)
    if isinstance(error, SpecError):
        return {"kind": "usage", "message": str(error), "hint": None, "traceback": traceback}
    what = f"{_failure.kind_of(error)}: {_failure.message_of(error)}".removesuffix(": ")
    message = f"the application raised on import: {what}"
    return {"kind": "raised", "message": message, "hint": None, "traceback": traceback}
