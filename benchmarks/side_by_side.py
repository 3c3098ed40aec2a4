"""How the benchmarks here measure: rivals in turn, in one process, and the floor in the same table.

Times on a shared machine drift, so rivals take turns and only their ratios are claimed. A script's
`main` builds a `Report`, adds a `Comparison` for each setting and calls `finish`: the table goes to
stderr, the JSON to stdout and, with `--out FILE`, to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whiten.utils.devices import cpu_name

Action = Callable[[], object]
PAUSE = 0.1  # seconds between turns


@dataclass
class Comparison:
    """Rivals in one setting.

    Attributes:
        setting: what was measured, such as `n=100,000, D=2048`.
        ours: name of whiten's own way among the rivals.
        seconds: every measured time of each rival.
        targets: smallest ratio `rival / ours` that is aimed at, by rival.
        facts: everything else worth recording: errors, memory, why a rival could not run.
    """

    setting: str
    ours: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(times) for name, times in self.seconds.items()}

    def ratios(self) -> dict[str, float]:
        """Median over the rounds of rival's time / our time in the same round."""
        mine = self.seconds[self.ours]
        return {
            name: statistics.median(theirs / own for theirs, own in zip(times, mine, strict=False))
            for name, times in self.seconds.items()
        }

    def summary(self) -> dict[str, Any]:
        ratios = self.ratios()
        rows = {
            name: {"median_s": median, "ratio_to_ours": round(ratios[name], 3)}
            for name, median in self.medians().items()
        }
        met = {name: ratios[name] >= least for name, least in self.targets.items()}
        return {
            "setting": self.setting,
            "ours": self.ours,
            "rounds": max(len(times) for times in self.seconds.values()),
            "rivals": rows,
            "targets": self.targets,
            "targets_met": met,
            **self.facts,
        }


def take_turns(
    setting: str, rivals: Mapping[str, Action], *, ours: str, rounds: int = 5, warmup: int = 1
) -> Comparison:
    """Time the rivals in turn, `rounds` times after `warmup` unmeasured turns.

    Between turns the threads of NumPy's and torch's pools, which spin on for a while after work,
    get time to fall asleep: they would slow whichever rival comes next.
    """
    result = Comparison(setting, ours, {name: [] for name in rivals})
    for number in range(warmup + rounds):
        for name, action in rivals.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            action()
            elapsed = time.perf_counter() - began
            if number >= warmup:
                result.seconds[name].append(elapsed)
    return result


def logarithmic(axes: Any) -> None:
    """Scale both axes of a plot logarithmically, with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def peak_bytes(action: Action) -> int:
    """Growth of this process's resident memory while `action` runs, at its highest.

    Sampled each 2 ms from the kernel's count, so that it sees NumPy, torch and BLAS alike.
    """
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return max(0, max(highest, resident()) - before)


class Report:
    """Collects comparisons and prints them."""

    def __init__(self, title: str, **facts: Any) -> None:
        self.title = title
        self.facts = {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **facts,
        }
        self.comparisons: list[Comparison] = []

    def add(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)
        print(f"\n{self.title}: {comparison.setting}", file=sys.stderr)
        ratios, targets = comparison.ratios(), comparison.targets
        for name, median in comparison.medians().items():
            aim = f"  aim ≥ {targets[name]:g}×" if name in targets else ""
            mark = "  ← whiten" if name == comparison.ours else ""
            row = f"  {name:<44} {median * 1000:>12,.1f} ms  {ratios[name]:>7.2f}×{aim}{mark}"
            print(row, file=sys.stderr)
        for name, fact in comparison.facts.items():
            print(f"  {name}: {fact}", file=sys.stderr)

    def finish(self, out: Path | None) -> None:
        facts = {
            "benchmark": self.title,
            "machine": self.facts,
            "comparisons": [c.summary() for c in self.comparisons],
        }
        text = json.dumps(facts, indent=2)
        print(text)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text + "\n")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: `--out` and `--quick`."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    return parser
