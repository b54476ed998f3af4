"""What `rebeam batch status`, `dead`, `replay` and `report` ask of a journal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rebeam.batch._journal import Journal, Lock
from rebeam.batch._pipeline import PipelineError


def main() -> int:
    """Tells what the arguments ask for; gives an exit code."""
    verb, name, root, *flags = sys.argv[1:]
    as_json = "--json" in flags
    directory = Path(root) / name
    if not (directory / "journal.db").exists():
        known = sorted(path.parent.name for path in Path(root).glob("*/journal.db"))
        print(f"error: there is no journal of `{name}` in `{root}`", file=sys.stderr)
        print(f"hint: there are: {', '.join(known)}" if known else "hint: has it been run?", file=sys.stderr)
        return 1
    journal = Journal(directory, name, looks=True)
    try:
        return _tell(verb, journal, directory, as_json=as_json)
    finally:
        journal.close()


def _tell(verb: str, journal: Journal, directory: Path, *, as_json: bool) -> int:
    if verb == "status":
        _show(
            {
                "name": directory.name,
                "last": journal.meta("last"),
                "run": int(journal.meta("run") or 0),
                **journal.counts(),
            },
            as_json,
        )
    elif verb == "dead":
        dead = list(journal.dead())
        if as_json:
            shown = [{**it._asdict(), "value": None, "bytes": len(it.value)} for it in dead]
            print(json.dumps(shown))
            return 0
        for it in dead:
            print(f"{it.id}: {it.cause} (in `{it.stage}`, {it.attempts} attempts)")
            print("".join(f"    {line}\n" for line in it.detail.splitlines()), end="")
    elif verb == "replay":
        # Not in the middle of a run.
        _lock = Lock(directory, f"{os.getpid()}.replay", f"rebeam batch replay {directory.name}")
        _show({"waiting again": journal.revive()}, as_json)
    else:
        page, data = directory / "report.html", directory / "report.json"
        if not data.exists():
            print("error: it has not ended yet: there is no report", file=sys.stderr)
            return 1
        print(data.read_text(encoding="utf-8") if as_json else page)
    return 0


def _show(values: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(values) if as_json else "\n".join(f"{key}: {value}" for key, value in values.items()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
