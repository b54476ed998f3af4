"""Finding, importing and evaluating the application, in the zygote or in a fresh worker."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import gc
import importlib
import importlib.util
import json
import operator
import os
import sys
from typing import Any

from rebeam import _at_fork, _failure, _gateway, _generators, _import_watch, _main, _rebeam, _snapshot
from rebeam._errors import SpecError
from rebeam._spec import ChildSpec, Supervisor

_SURVIVES_FORKS = ("jemalloc_bg_thd",)
"""Threads that their library starts again in a fork, by the system's name of them."""


class TargetError(Exception):
    """What the command line points at is not there, or is not a tree."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


_Modules = tuple["list[_snapshot.Module]", "list[str]"]
_Loaded = tuple[Supervisor, ChildSpec[Any], "str | None", bool, _Modules, "list[tuple[str, float]]"]

SLOW = 0.05
"""Seconds from which on an import is worth naming."""


def load(
    kind: str,
    source: str,
    attribute: str | None,
    preload: list[str],
    fork: str,
    code: int,
    programs: list[tuple[str, str]],
) -> _Loaded:
    """Imports the application.

    Args:
        kind: `module` or `file`.
        source: its name or path.
        attribute: where in it the tree is; None: `tree`, or the only supervisor there is.
        preload: modules to import before.
        fork: `auto`; `always`, whatever it has opened; `never`.
        code: the descriptor of the memory for the project's code.
        programs: the foreign programs of the project's file: the name of each, and its options as JSON.

    Returns:
        Its tree, how a client's gateway is started, why it must not be forked if so, whether forks must run the C
        library's fork handlers, what modules of the project there are and what they miss, and which imports of others
        have taken long, in seconds.
    """
    watch = _watch(os.path.basename(source))
    watch.start()
    try:
        _add_to_path(kind, source, os.getcwd())
        for module in preload:
            _import(module, "preload")
        module = import_app(kind, source, os.getcwd())
        tree = _with_programs(_find_tree(module, source, attribute), programs)
    finally:
        watch.stop()
    _snapshot.finish(code)
    _generators.settle()
    _share_files(watch.descriptors())
    unforkable = _unforkable(watch) if fork == "auto" else None
    if fork == "never":
        unforkable = "`fork` is `never`"
    has_threads = _import_watch.thread_count() > 1
    if has_threads:
        _at_fork.has_threads()
    must_fork_twice = has_threads or _rebeam.has_fork_handlers()
    slow = [(name, seconds) for name, seconds in watch.times.items() if seconds >= SLOW]
    return tree, _gateway.spec(), unforkable, must_fork_twice, _snapshot.modules(), slow


def _watch(source: str) -> _import_watch.Watch:
    """What looks after the imports of this process; `source` is blamed for what no module's import does."""
    _generators.watch()
    return _import_watch.Watch(source, {"numpy.random.bit_generator": _generators.watch_numpy})


def preload(modules: list[str]) -> tuple[str | None, bool]:
    """Imports what does not change, in a process that is to be forked into zygotes.

    Modules of the project are left out.

    Returns:
        Why it must not be forked, if so, and whether forks must run the C library's fork handlers.
    """
    watch = _watch("preload")
    watch.start()
    try:
        for module in modules:
            # What is not found here may be found beside the application.
            with contextlib.suppress(TargetError):
                if not _snapshot.is_of_project(module.partition(".")[0]):
                    _import(module, "preload")
    finally:
        watch.stop()
    _share_files(watch.descriptors())
    return _unforkable(watch), _rebeam.has_fork_handlers()


def become_zygote(code: int) -> None:
    """Makes this process, a fork, the zygote of the version of the code that this memory is for."""
    _snapshot.renew(code)


_imported: Any = None
"""The application's module, once it is imported."""

_source = ""
"""What it is imported from."""


def pipeline(attribute: str | None) -> Any:
    """The pipeline of the application that this process has imported."""
    if attribute is not None:
        return operator.attrgetter(attribute)(_imported)
    return next(value for value in vars(_imported).values() if is_pipeline(value))


def import_app(kind: str, source: str, project: str) -> Any:
    """Imports the application's module, by name or from a file."""
    global _imported, _source
    _source = source
    arguments = os.environ.get("REBEAM_BATCH_ARGUMENTS")
    if arguments is not None:
        # Of the script that runs the pipeline it is made from.
        sys.argv[:] = json.loads(arguments)
    _imported = _import_app(kind, source, project)
    return _imported


def _add_to_path(kind: str, source: str, project: str) -> None:
    directory = project if kind == "module" else os.path.dirname(source)
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _import_app(kind: str, source: str, project: str) -> Any:
    _add_to_path(kind, source, project)
    if kind == "module":
        return _import(source, "module")
    directory, file = os.path.split(source)
    if not os.path.isfile(source) and _snapshot.source(source) is None:
        raise TargetError(f"there is no file `{source}`", _near(file, _files(directory)))
    # What of a name is no text, a module is not called.
    name = _failure.valid(os.path.splitext(file)[0])
    if name == "__main__":
        return _main.import_script(source)
    if name in sys.stdlib_module_names:
        raise TargetError(f"`{file}` has the name of a module of Python itself", "rename the file")
    if name == "rebeam":
        raise TargetError(f"`{file}` has the name of the package that it imports", "rename the file")
    if "." in name:
        raise TargetError(
            f"`{file}` has a dot in its name, and so cannot be imported", f"call it `{name.replace('.', '_')}.py`"
        )
    spec = _snapshot.spec(name, source)
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


def _with_programs(tree: Supervisor, programs: list[tuple[str, str]]) -> Supervisor:
    """Has the tree begin with a supervisor of these programs, if there are some."""
    if programs:
        from rebeam._programs import declared

        children = [declared(name, json.loads(options)) for name, options in programs]
        tree.children.insert(0, Supervisor(children, id="programs"))
    return tree


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


def _unforkable(watch: _import_watch.Watch) -> str | None:
    """Why this process must not be forked, and whose import it was; or None."""
    threads = [thread for thread in watch.threads() if not thread.name.startswith(_SURVIVES_FORKS)]
    if threads:
        module = threads[0].module
        names = ", ".join(dict.fromkeys(_name_of(thread) for thread in threads if thread.module == module))
        count = sum(thread.module == module for thread in threads)
        return f"the import of `{module}` started {count} thread{'s' if count > 1 else ''} ({names})"
    for found in watch.descriptors():
        what = _unshareable(found)
        if what is not None:
            return f"the import of `{found.module}` opened {what}"
    return None


def _name_of(thread: _import_watch.Found) -> str:
    threading = sys.modules.get("threading")
    known = threading.enumerate() if threading else []
    return next((it.name for it in known if it.native_id == thread.number), thread.name)


def _unshareable(found: _import_watch.Found) -> str | None:
    """What processes must not share of what an import has opened."""
    to = found.name
    if to.startswith("socket:"):
        return "a socket"
    if to.startswith("anon_inode:"):
        return f"an {to.removeprefix('anon_inode:').strip('[]')}"
    if to.startswith("/dev/"):
        is_harmless = to in ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero") or to.startswith("/dev/shm/")
        return None if is_harmless else f"the device `{to}`"
    if _is_file(to) and fcntl.fcntl(found.number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        return f"`{to}` to read and write"
    return None


def _is_file(to: str) -> bool:
    return to.startswith("/") and not to.startswith(("/dev/", "/memfd:")) and not to.endswith(" (deleted)")


_read_at_import: list[int] = []
"""Descriptors of files of which each fork is to have its own place to read from."""


_writes_files = False
"""Whether the import has opened files to write to."""


def _share_files(opened: list[_import_watch.Found]) -> None:
    global _writes_files
    for found in opened:
        flags = fcntl.fcntl(found.number, fcntl.F_GETFL)
        if not _is_file(found.name) or flags & (os.O_PATH | os.O_DIRECTORY):
            continue
        # Who writes, does so behind what the others have written, as long as the place is shared.
        if flags & os.O_ACCMODE == os.O_RDONLY:
            _read_at_import.append(found.number)
        else:
            _writes_files = True


def reopen_files() -> None:
    """Gives a process that has just been forked a place of its own in each file that the import opened to be read."""
    for fd in _read_at_import:
        try:
            own = os.open(f"/proc/self/fd/{fd}", fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_CLOEXEC)
        except OSError:
            # It was closed since, or may not be opened any more.
            continue
        os.lseek(own, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(own, fd, os.get_inheritable(fd))
        os.close(own)


def freeze() -> None:
    """Puts everything that is there out of the collector's sight, so that workers share its memory."""
    from rebeam import _exit_hooks, _logging

    _logging.install()
    _exit_hooks.imported(_writes_files)
    gc.collect()
    gc.freeze()
    # What lies about free is put in order here, once, and not by every worker in pages of its own.
    _rebeam.trim_memory()
    _exit_hooks.let_import_pass()


def describe_load_error(error: BaseException) -> dict[str, str | None]:
    """What the supervisor says about an application that could not be loaded."""
    if isinstance(error, TargetError):
        return {"kind": "usage", "message": _failure.valid(str(error)), "hint": error.hint, "traceback": None}
    traceback = _failure.format_traceback(error)
    if isinstance(error, SpecError):
        return {"kind": "usage", "message": _failure.message_of(error), "hint": None, "traceback": traceback}
    what = f"{_failure.kind_of(error)}: {_failure.message_of(error)}".removesuffix(": ")
    message = f"the application raised on import: {what}"
    return {"kind": "raised", "message": message, "hint": _hint_about(error), "traceback": traceback}


def _hint_about(error: BaseException) -> str | None:
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        return f"a file of a package is named as a module: `{_name_in_package()}`"
    return None


def _name_in_package() -> str:
    """The name of the file that is being imported, as a module of the package that it lies in."""
    path, name = os.path.split(_source)
    parts = [os.path.splitext(name)[0]]
    while os.path.isfile(os.path.join(path, "__init__.py")):
        path, name = os.path.split(path)
        parts.insert(0, name)
    return ".".join(parts)
