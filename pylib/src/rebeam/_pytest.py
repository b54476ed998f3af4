"""The pytest plugin: fixtures that run trees, and end them with the test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebeam import Supervisor
    from rebeam.testing import Node, ProcessNode


@pytest.fixture
def rebeam_running() -> Iterator[Callable[[Supervisor], Node]]:
    """Runs a tree in the process of the test: `node = rebeam_running(tree)`. See `rebeam.testing.running`."""
    from rebeam.testing import running

    with contextlib.ExitStack() as stack:
        yield lambda tree: stack.enter_context(running(tree))


@pytest.fixture
def rebeam_processes() -> Iterator[Callable[..., ProcessNode]]:
    """Runs a node with processes: `node = rebeam_processes("app:tree", directory)`. See `rebeam.testing.processes`."""
    from rebeam.testing import processes

    with contextlib.ExitStack() as stack:
        yield lambda target, directory=".": stack.enter_context(processes(target, directory))
