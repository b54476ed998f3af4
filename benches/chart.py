#!/usr/bin/env python3
"""Draws `docs/concepts/peers.svg` from `peers.json` and `results.json`: ours beside the peers, all of one run."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FIGURES = (
    ("call p50, µs", "call, actor to actor: median, µs", False),
    ("casts, /s", "casts per second, one to one", True),
    ("start of each, ms", "start of an actor, ms", False),
    ("SIGKILL to answering, ms", "SIGKILL to the next answer, ms", False),
)


def main() -> None:
    peers = json.loads((HERE / "peers.json").read_text())
    machine = json.loads((HERE / "results.json").read_text())
    matplotlib.rcParams["svg.hashsalt"] = "rebeam"
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained")
    for axis, (key, title, is_more_better) in zip(axes.flat, FIGURES, strict=True):
        rows = [(name, figures[key]) for name, figures in peers.items() if key in figures]
        rows.sort(key=lambda row: (row[1] is None, row[1] or 0), reverse=not is_more_better)
        values = [value for _, value in rows if value]
        for place, (name, value) in enumerate(rows):
            colour = "#b3471d" if name == "rebeam" else "#8a94a0"
            if value is None:
                axis.text(min(values), place, " never", va="center", fontsize=8)
                continue
            axis.barh(place, value, color=colour)
            axis.text(value, place, f" {value:,.0f}" if value >= 10 else f" {value:.1f}", va="center", fontsize=8)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 4)
        axis.set_title(f"{title} ({'more' if is_more_better else 'less'} is better)", fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"Median of three runs, {machine['date']}, {machine['cpus']} CPUs ({machine['cpu']})", fontsize=9)
    figure.savefig(HERE.parent / "docs/concepts/peers.svg", metadata={"Date": None})


main()
