"""What is told of a run: a line as it goes, a report at its end. `rebeam batch` draws the pictures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, report: dict[str, Any]) -> None:
    """Leaves the report beside the journal, whole or not at all."""
    path = directory / "report.json"
    try:
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            # Names of files need not be Unicode.
            json.dump(report, file)
        os.replace(f"{path}.part", path)
    except OSError:
        # A full disk is told of by other means.
        return


def line(progress: dict[str, Any]) -> str:
    """How far a run is, a line for each stage."""
    width = max(len(stage["name"]) for stage in progress["stages"])
    lines = []
    for number, stage in enumerate(progress["stages"]):
        of = f"/{progress['total']:,}" if number == 0 and progress["total"] else ""
        parts = [f"{stage['done']:,}{of} done", f"{stage['rate']:,.0f}/s", f"{stage['in_hand']} in hand"]
        parts += [f"{stage['waiting']} waiting"] if stage["waiting"] else []
        parts += [f"{stage['retries']} retries"] if stage["retries"] else []
        parts += [f"{stage['failed']} failed"] if stage["failed"] else []
        parts += [f"{stage['busy']:.0%} busy"]
        if number == 0 and progress["left"] is not None:
            parts.append(f"{duration(progress['left'])} left")
        if len(progress["stages"]) > 1 and stage["name"] == progress["holds_back"]:
            parts.append("holds the others back")
        lines.append(f"{stage['name']:<{width}}  {', '.join(parts)}")
    return "\n".join(lines)


def text(report: dict[str, Any]) -> str:
    """The report as people read it."""
    counts = report["counts"]
    lines = [f"{report['name']}: {report['state']} after {duration(report['seconds'])}"]
    lines.append(
        f"  {counts['done']:,} done in this run, {counts['dead']:,} dead, {counts['waiting']:,} wait between stages"
    )
    for stage in report["stages"]:
        lines.append(
            f"  {stage['name']}: {stage['done']:,} at {stage['rate']:,.1f}/s, {stage['busy_seconds']:.1f} s of work by "
            f"{stage['concurrency']}, {stage['cpu_seconds']:.1f} s of CPU, peak {stage['peak_kib'] / 1024:.0f} MiB, "
            f"{stage['deaths']} deaths, {stage['retries']} retries"
        )
        if stage["slowest"]:
            slowest = stage["slowest"][0]
            lines.append(f"    slowest: `{slowest['id']}`, {slowest['seconds']:.3f} s")
    for failure in report["failures"][:10]:
        ids = ", ".join(f"`{id}`" for id in failure["ids"]) + (", …" if failure["count"] > 5 else "")
        lines.append(f"  {failure['count']} x in `{failure['stage']}`: {failure['cause']} ({ids})")
    if report["why"]:
        lines.append(f"  it ended early: {report['why']}")
    if report["command"]:
        what = "they are tried again with" if report["code"] == 4 else "it goes on with"
        lines.append(f"  {what}: {report['command']}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"
