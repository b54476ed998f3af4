"""Compares `out.jsonl` with a plain loop over the same files: `python check.py`, after `rebeam batch modules.py`."""

import json
import os
from pathlib import Path

import modules


def main() -> None:
    """Fails unless both are the same."""
    done = {line["name"]: line for line in map(json.loads, Path("out.jsonl").read_text(encoding="utf-8").splitlines())}
    bad = {modules.CRASHES, modules.LEAKS, modules.HANGS}
    expected = {}
    for path in sorted(Path(modules.ROOT).glob("*.py")):
        name = os.path.relpath(path, modules.ROOT)
        if name not in bad:
            expected[name] = modules.count(modules.parse(str(path)))
    assert done == expected, sorted(set(done) ^ set(expected))
    print(f"{len(done)} modules as by a plain loop; without {', '.join(sorted(bad))}")


main()
