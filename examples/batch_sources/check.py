"""Compares `out.jsonl` with a plain loop over the same files: `python check.py`, after `rebeam batch app.py`."""

import json
import os
from pathlib import Path

import app


def main() -> None:
    """Fails unless both are the same."""
    done = {line["name"]: line for line in map(json.loads, Path("out.jsonl").read_text(encoding="utf-8").splitlines())}
    bad = {app.CRASHES, app.LEAKS, app.HANGS}
    expected = {}
    for path in sorted(Path(app.ROOT).glob("*.py")):
        name = os.path.relpath(path, app.ROOT)
        if name not in bad:
            expected[name] = app.count(app.parse(str(path)))
    assert done == expected, sorted(set(done) ^ set(expected))
    print(f"{len(done)} modules as by a plain loop; without {', '.join(sorted(bad))}")


main()
