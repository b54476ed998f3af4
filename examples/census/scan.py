"""What one file holds: definitions, imports and names, counted from its syntax tree."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Census:
    """Counts that can be added up in any order."""

    definitions: int = 0
    imports: int = 0
    names: Counter[str] = field(default_factory=Counter)
    modules: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0

    def __iadd__(self, other: Census) -> Census:
        self.definitions += other.definitions
        self.imports += other.imports
        self.names.update(other.names)
        self.modules.update(other.modules)
        self.unreadable += other.unreadable
        return self


def scan(path: Path) -> Census:
    """The census of one file; one that is no Python (the library's tests have some) counts as unreadable."""
    census = Census()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        census.unreadable = 1
        return census
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            census.definitions += 1
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            census.imports += len(node.names)
        elif isinstance(node, ast.Name):
            census.names[node.id] += 1
    census.modules[str(path.stem if path.stem != "__init__" else path.parent.name)] = census.definitions
    return census
