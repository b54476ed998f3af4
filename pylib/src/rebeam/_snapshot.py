"""One version of the project's code: what is imported from it is the same for all, whatever is saved meanwhile.

The first zygote of a version writes down what it imports, and what lies beside that, in memory that the supervisor has
made. Whoever imports later takes it from there: forks that import late, fresh interpreters, the zygote that replaces a
dead one.
Installed packages are none of the project's, and are imported as ever. Editable installations are the project's.

It must not know what an application is, nor of actors.
"""

from __future__ import annotations

import _imp
import importlib.machinery
import importlib.util
import itertools
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from rebeam import _failure

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

MOST_FILES = 5_000
MOST_ENTRIES = 20_000
MOST_OF_ONE = 2_000
"""How many files that nobody has imported yet are written down, how many entries of directories are read for that, and
how many of one directory: the application may stand where much else is."""

_HEAD = 16
"""Bytes before everything else: where the index begins, and how long it is."""


_files: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
"""Where a file's source and code begin and end in memory. A file that nobody has imported has no code."""

_modules: dict[str, tuple[str, bool]] = {}
"""Of each module that was imported: its file, and whether it is a package."""

_memory: mmap.mmap | None = None
_recorded: dict[str, tuple[bytes, bytes]] | None = None
"""Source and code of each file, while they are being written down."""


def begin(fd: int) -> None:
    """Imports from a snapshot from now on, or takes one if there is none yet. The descriptor is used up."""
    global _recorded
    sys.meta_path.insert(0, _Finder())
    if not _is_complete(fd):
        _recorded = {}
        return
    _map(fd)
    os.close(fd)
    _keep_lines()


def finish(fd: int) -> None:
    """Ends the taking of a snapshot, if this process takes one. The descriptor is used up."""
    global _recorded
    if _recorded is None:
        return
    for path in (*_run, *_beside(list(_recorded))):
        try:
            with open(path, "rb") as file:
                _recorded[path] = file.read(), b""
        except OSError:
            continue
    _write(fd, _recorded)
    _recorded = None
    _map(fd)
    os.close(fd)
    _keep_lines()


_run: list[str] = []
"""Files that are run and not imported."""


def include(path: str) -> None:
    """Has a file that is run written down, too, if a snapshot is being taken."""
    _run.append(os.path.abspath(path))


def spec(name: str, path: str) -> ModuleSpec | None:
    """The module that a file is, by a name of one's own."""
    _modules.setdefault(name, (path, False))
    return importlib.util.spec_from_file_location(name, path, loader=Loader(name, path))


def source(path: str) -> bytes | None:
    """What a file of the project holds in this version; None if that is not known."""
    if _memory is None or path not in _files:
        return None
    (begin, end), _ = _files[path]
    return _memory[begin:end]


def renew(fd: int) -> None:
    """In a fork of a process that has imported nothing of the project: imports from this snapshot, or takes it."""
    global _recorded
    if _is_complete(fd):
        _recorded = None
        _map(fd)
        os.close(fd)
        _keep_lines()


class Module(NamedTuple):
    """A module of the project, or a file that is run."""

    name: str
    """Its name, or its path."""
    path: bytes
    own: int
    """A digest of its source."""
    closure: int
    """A digest of its source, and of all modules of the project that it imports."""


def has_loaded(name: str) -> bool:
    """Whether a module that is imported is one of the project's, whatever it is called."""
    return isinstance(getattr(sys.modules.get(name), "__loader__", None), Loader)


def is_of_project(name: str) -> bool:
    """Whether a module is one of the project's."""
    spec = importlib.util.find_spec(name)
    return spec is not None and isinstance(spec.loader, Loader)


def modules() -> tuple[list[Module], list[str]]:
    """The modules of the project that are loaded, and those that they may import later, once the snapshot is complete.

    What a module imports is read off its code, also where that is done within functions. A module that imports by names
    which are made at run time depends on all of the project.

    Returns:
        The modules, and what is imported that is none of them: the last part of each name, or `*` for whatever comes.
    """
    paths = _module_paths()
    below: dict[str, list[str]] = {}
    for name in paths:
        below.setdefault(name.rpartition(".")[0], []).append(name)
    imports: dict[str, list[str] | None] = {}
    missing: dict[str, None] = {}
    queue = dict.fromkeys(name for name, path in paths.items() if name in sys.modules or path in _run)
    while queue:
        name = next(iter(queue))
        del queue[name]
        imported = imports[name] = _imported_by(name, paths[name], paths, below, missing)
        further = paths if imported is None else imported
        queue.update((other, None) for other in further if other not in imports and other not in queue)
    digests = {name: _digest(source(paths[name]) or b"") for name in imports}
    closures = _closures(imports, digests, _Everything(paths))
    found = [Module(_failure.valid(name), os.fsencode(paths[name]), digests[name], closures[name]) for name in imports]
    if None in imports.values():
        missing["*"] = None
    return found, [_failure.valid(name) for name in missing]


def _module_paths() -> dict[str, str]:
    """The names of all files of the snapshot as modules, and where they are."""
    paths = {name: path for name, (path, _) in _modules.items() if path in _files}
    known = set(paths.values())
    for path in _files:
        if path not in known:
            # One that was imported goes first: `models/__init__.py` hides `models.py`.
            paths.setdefault(path if path in _run else _name_of(path), path)
    paths.update((path, path) for path in _run if path in _files)
    return paths


def _digest(content: bytes) -> int:
    return int.from_bytes(_imp.source_hash(_DIGEST_KEY, content), "little")


class _Everything:
    """A digest of all files, if one is asked for."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._found: int | None = None

    def digest(self) -> int:
        if self._found is None:
            self._found = _digest(b"".join(source(path) or b"" for _, path in sorted(self._paths.items())))
        return self._found


_DIGEST_KEY = 0x7265_6265_616D
"""Any number: digests are compared with each other."""


def _name_of(path: str) -> str:
    """The name by which a file that nobody has imported would be."""
    places = [os.path.join(os.path.abspath(place), "") for place in sys.path if place]
    place = max((place for place in places if path.startswith(place)), key=len, default="/")
    return path.removeprefix(place).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported_by(
    name: str, path: str, known: dict[str, str], below: dict[str, list[str]], missing: dict[str, None]
) -> list[str] | None:
    """The modules of the project that one of them imports; None if that cannot be known.

    Args:
        name: its name.
        path: its file.
        known: the files of all modules.
        below: the modules of each package.
        missing: to this is added what is imported and not known, by the last part of its name.
    """
    code = _code_of(path)
    if code is None:
        return []
    above = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
    packages = [name, *above] if os.path.basename(path) == "__init__.py" else above
    codes = list(_codes(code))
    # What one function imports, another may use.
    names = dict.fromkeys(itertools.chain.from_iterable(part.co_names for part in codes))
    if not _BY_NAMES.isdisjoint(names):
        return None
    found: dict[str, None] = {}
    for part in codes:
        takes_all = ("*",) in part.co_consts
        for imported in _imports(part):
            if imported and imported not in sys.modules and imported not in known:
                missing[imported.rpartition(".")[2]] = None
            for module in [imported, *(f"{package}.{imported}" if imported else package for package in packages)]:
                parts = module.split(".")
                found.update((".".join(parts[: count + 1]), None) for count in range(len(parts)))
                if takes_all:
                    found.update(dict.fromkeys(below.get(module, ())))
    queue = list(found)
    # It grows as it is gone through: `package.module.x` may be used wherever `package` is imported.
    for module in queue:
        if module not in below:
            continue
        for used in names:
            inner = f"{module}.{used}"
            if inner in known and inner not in found:
                found[inner] = None
                queue.append(inner)
    return [module for module in found if module in known]


def _code_of(path: str) -> CodeType | None:
    import marshal

    assert _memory is not None
    (begin, end), (code_begin, code_end) = _files[path]
    if code_begin < code_end:
        code: CodeType = marshal.loads(_memory[code_begin:code_end])
        return code
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(_memory[begin:end], path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Nobody has imported it yet; whoever does will be told.
        return None


_BY_NAMES = frozenset(("__import__", "import_module", "importlib", "pkgutil", "run_module", "run_path"))
"""What imports by names that are made at run time."""


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and all code that is within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from _codes(constant)


def _imports(code: CodeType) -> Iterator[str]:
    """The names that code imports, not looking at code that is within."""
    from opcode import EXTENDED_ARG, opmap

    operations, arguments = code.co_code[::2], code.co_code[1::2]
    at = operations.find(opmap["IMPORT_NAME"])
    while at >= 0:
        number, before, shift = arguments[at], at - 1, 8
        while before >= 0 and operations[before] == EXTENDED_ARG:
            number |= arguments[before] << shift
            before, shift = before - 1, shift + 8
        yield code.co_names[number]
        at = operations.find(opmap["IMPORT_NAME"], at + 1)


def _closures(imports: dict[str, list[str] | None], digests: dict[str, int], everything: _Everything) -> dict[str, int]:
    """For each module a digest of itself and of all that it imports.

    Modules that import each other, by whatever way round, have one digest: of their own, and those of what else they
    import (Tarjan's algorithm, which meets such a group only after all that it imports).
    """
    closures: dict[str, int] = {}
    numbers: dict[str, int] = {}
    least: dict[str, int] = {}
    group: list[str] = []
    for root in imports:
        path = [(root, iter(imports[root] or ()))] if root not in numbers else []
        while path:
            name, rest = path[-1]
            if name not in numbers:
                numbers[name] = least[name] = len(numbers)
                group.append(name)
            for other in rest:
                if other not in numbers:
                    path.append((other, iter(imports[other] or ())))
                    break
                if other not in closures:
                    least[name] = min(least[name], numbers[other])
            else:
                path.pop()
                if path:
                    least[path[-1][0]] = min(least[path[-1][0]], least[name])
                if least[name] == numbers[name]:
                    members = [group.pop()]
                    while members[-1] != name:
                        members.append(group.pop())
                    digest = _digest_of_group(members, imports, digests, closures, everything)
                    closures.update(dict.fromkeys(members, digest))
    return closures


def _digest_of_group(
    members: list[str],
    imports: dict[str, list[str] | None],
    digests: dict[str, int],
    closures: dict[str, int],
    everything: _Everything,
) -> int:
    own = set(members)
    parts = {digests[name] for name in members}
    for name in members:
        imported = imports[name]
        if imported is None:
            parts.add(everything.digest())
        parts.update(closures[other] for other in imported or () if other not in own)
    return _digest(b"".join(part.to_bytes(8, "little") for part in sorted(parts)))


def _keep_lines() -> None:
    """Has tracebacks show the lines that run, rather than those that the files hold by now."""
    import linecache

    update = linecache.updatecache

    def updatecache(filename: str, module_globals: dict[str, object] | None = None) -> list[str]:
        found = source(filename)
        if found is None:
            return update(filename, module_globals)
        lines = importlib.util.decode_source(found).splitlines(keepends=True)
        linecache.cache[filename] = len(found), None, lines, filename
        return lines

    linecache.updatecache = updatecache


def _is_complete(fd: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)


def _write(fd: int, recorded: dict[str, tuple[bytes, bytes]]) -> None:
    import fcntl
    import marshal

    parts: list[bytes] = []
    files: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    end = _HEAD
    for path, (text, code) in recorded.items():
        files[path] = (end, end + len(text)), (end + len(text), end + len(text) + len(code))
        end += len(text) + len(code)
        parts += text, code
    index = marshal.dumps((files, _modules))
    parts = [end.to_bytes(8, "little"), len(index).to_bytes(8, "little"), *parts, index]
    # Of a zygote that died while it wrote.
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "wb", closefd=False) as memory:
        memory.writelines(parts)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _map(fd: int) -> None:
    global _memory
    import marshal
    import mmap

    # Shared: older kernels would have nothing mapped so that is sealed against writing.
    _memory = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    begin, length = (int.from_bytes(_memory[at : at + 8], "little") for at in (0, 8))
    files, modules = marshal.loads(_memory[begin : begin + length])
    _files.update(files)
    _modules.update(modules)


def _beside(paths: list[str]) -> Iterator[str]:
    """Files beside those given, beside what else the path leads to, and below those: what may still be imported."""
    known = set(paths)
    directories = dict.fromkeys(os.path.dirname(path) for path in paths)
    directories.update(dict.fromkeys(os.path.abspath(path) for path in sys.path if path and _is_of_project(path)))
    found = read = 0
    # It grows as it is gone through.
    queue = [directory for directory in directories if _is_of_project(os.path.join(directory, ""))]
    for directory in queue:
        try:
            with os.scandir(directory) as listed:
                entries = sorted(itertools.islice(listed, MOST_OF_ONE), key=lambda entry: entry.name)
        except OSError:
            continue
        read += len(entries)
        if read > MOST_ENTRIES:
            return
        for entry in entries:
            if entry.name.endswith(".py") and entry.path not in known and os.path.isfile(entry.path):
                known.add(entry.path)
                found += 1
                yield entry.path
                if found == MOST_FILES:
                    return
            elif _may_be_package(entry) and entry.path not in directories:
                directories[entry.path] = None
                queue.append(entry.path)


def _may_be_package(entry: os.DirEntry[str]) -> bool:
    """Whether a directory could be imported from; other environments, and what caches there are, are not."""
    try:
        is_directory = entry.name.isidentifier() and entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
    is_ours = is_directory and _is_of_project(os.path.join(entry.path, ""))
    return is_ours and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))


_not_ours = tuple(os.path.join(os.path.dirname(os.path.abspath(file)), "") for file in (os.__file__, __file__))
"""Directories of Python's standard library, and of this package."""


def _is_of_project(path: str) -> bool:
    return not path.startswith(_not_ours) and "/site-packages/" not in path and "/dist-packages/" not in path


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module of the project: from the snapshot, if that has it."""

    _source = b""
    _read_at: os.stat_result

    def get_code(self, fullname: str) -> CodeType | None:
        import marshal

        found = source(self.path)
        if found is not None:
            _, (begin, end) = _files[self.path]
            if _memory is not None and begin < end:
                code: CodeType = marshal.loads(_memory[begin:end])
                return code
            return self.source_to_code(found, self.path)
        # Read once, so that what runs is what is written down, whoever saves it meanwhile.
        with open(self.path, "rb") as file:
            self._read_at = os.fstat(file.fileno())
            self._source = file.read()
        code = super().get_code(fullname)  # type: ignore[assignment]
        if _recorded is not None:
            _recorded[self.path] = self._source, marshal.dumps(code)
        self._source = b""
        return code

    def path_stats(self, path: str) -> dict[str, float]:
        return {"mtime": self._read_at.st_mtime, "size": self._read_at.st_size}

    def get_data(self, path: str) -> bytes:
        if path == self.path:
            return self._source or source(path) or super().get_data(path)
        # Bytecode says of which second its source is; another save within that second is known by the files' own times.
        # Times come in steps of some milliseconds.
        if path.endswith(".pyc") and os.stat(path).st_mtime_ns <= self._read_at.st_mtime_ns:
            raise OSError(f"`{path}` is not newer than its source")
        return super().get_data(path)

    def _cache_bytecode(self, source_path: str, bytecode_path: str, data: bytes) -> None:
        if os.stat(source_path).st_mtime_ns == self._read_at.st_mtime_ns:
            super()._cache_bytecode(source_path, bytecode_path, data)  # type: ignore[misc]


class _Finder:
    """Finds modules of the project where they were, and has them loaded from the snapshot."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _memory is not None and fullname in _modules:
            return _spec_of(fullname, *_modules[fullname])
        found = find_behind(self, fullname, path, target)
        if found is None:
            found = _find_deleted(fullname, sys.path if path is None else path)
        elif type(found.loader) is importlib.machinery.SourceFileLoader and found.origin is not None:
            file = os.path.abspath(found.origin)
            if file in _files or _is_of_project(file):
                if _recorded is not None:
                    _modules[fullname] = file, found.submodule_search_locations is not None
                found.loader = Loader(fullname, file)
        return found


def find_behind(
    finder: object, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """What the finders behind this one in `sys.meta_path` find."""
    for other in sys.meta_path[sys.meta_path.index(finder) + 1 :]:  # type: ignore[arg-type]
        find_spec = getattr(other, "find_spec", None)
        found: ModuleSpec | None = find_spec(fullname, path, target) if find_spec is not None else None
        if found is not None:
            return found
    return None


def _find_deleted(fullname: str, directories: Sequence[str]) -> ModuleSpec | None:
    name = fullname.rpartition(".")[2]
    for directory in directories:
        for file, is_package in ((os.path.join(name, "__init__.py"), True), (f"{name}.py", False)):
            path = os.path.join(os.path.abspath(directory), file)
            if path in _files:
                return _spec_of(fullname, path, is_package)
    return None


def _spec_of(fullname: str, path: str, is_package: bool) -> ModuleSpec | None:
    places = [os.path.dirname(path)] if is_package else None
    loader = Loader(fullname, path)
    return importlib.util.spec_from_file_location(fullname, path, loader=loader, submodule_search_locations=places)
