"""What a sweep came to: one row per scenario and agent, and the progress while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adaptsplit.agents.progress import Bars
from adaptsplit.agents.sweep import FINISHED, SweepResult
from adaptsplit.agents.sweep_local import Event
from adaptsplit.agents.sweep_plan import Trial


@dataclass(frozen=True, slots=True)
class Row:
    """One agent on one scenario over its finished seeds: best validation reward (mean per frame), seconds of training.

    ``spread`` is the standard deviation over seeds (n - 1), None for fewer than two.
    """

    scenario: str
    agent: str
    done: int
    wanted: int
    mean: float | None
    iqm: float | None
    spread: float | None
    low: float | None
    high: float | None
    seconds: float | None


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half, edge values in part (Agarwal et al. 2021): of 3, weights 1/6, 2/3, 1/6."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    edges = np.clip(np.arange(len(ordered) + 1) / len(ordered), 0.25, 0.75)
    return float(np.diff(edges) @ ordered / 0.5)


def rows(result: SweepResult) -> list[Row]:
    """Summarise a sweep, in the order of the grid."""
    cells: dict[tuple[str, str], list[float]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    wanted: dict[tuple[str, str], int] = {}
    for trial in result.trials:
        key = (trial.scenario, trial.agent)
        wanted[key] = wanted.get(key, 0) + 1
        if trial.status in FINISHED and trial.reward is not None and trial.seconds is not None:
            cells.setdefault(key, []).append(trial.reward)
            times.setdefault(key, []).append(trial.seconds)
    return [_row(*key, count, cells.get(key, []), times.get(key, [])) for key, count in wanted.items()]


def _row(scenario: str, agent: str, wanted: int, values: list[float], seconds: list[float]) -> Row:
    if not values:
        return Row(scenario, agent, 0, wanted, None, None, None, None, None, None)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Row(
        scenario,
        agent,
        len(values),
        wanted,
        float(np.mean(values)),
        interquartile_mean(values),
        spread,
        min(values),
        max(values),
        float(np.mean(seconds)),
    )


def sweep_table(result: SweepResult) -> Table:
    """Return the table that the command prints."""
    title = "best validation reward, mean per frame"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("scenario", "agent"):
        table.add_column(name, no_wrap=True)
    for name in ("seeds", "mean", "IQM", "std", "min", "max", "time, s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(result):
        numbers = [_number(value, 4) for value in (row.mean, row.iqm, row.spread, row.low, row.high)]
        table.add_row(row.scenario, row.agent, f"{row.done}/{row.wanted}", *numbers, _number(row.seconds, 0))
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class SweepProgress(Bars):
    """One bar for the whole sweep and one for each trial at work, on standard error; silent when not shown."""

    def __init__(self, trials: Sequence[Trial], *, shown: bool = True) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        note = TextColumn("{task.fields[note]}", markup=False)
        self._bars = Progress(
            *columns, note, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not shown
        )
        self._total, self._failed = len(trials), 0
        self._share: dict[str, float] = {}
        self._tasks: dict[str, int] = {}
        self._done = 0
        self._all = self._bars.add_task("sweep", total=max(self._total, 1), note=self._note())

    def __call__(self, trial: Trial, event: Event) -> None:
        """Show what happened."""
        if event.kind == "point":
            self._advance(trial, event)
        else:
            self._finish(trial, event)
        self._bars.update(self._all, completed=self._done + sum(self._share.values()), note=self._note())

    def _advance(self, trial: Trial, event: Event) -> None:
        share = min(1.0, float(event.value["steps"]) / float(trial.spec.parameters["steps"]))
        if trial.name not in self._tasks:
            self._tasks[trial.name] = int(self._bars.add_task(f"  {trial.name}", total=1.0, note=""))
        self._share[trial.name] = share
        task = self._tasks[trial.name]
        self._bars.update(task, completed=share, note=f"validation {event.value['reward']:.4f}")  # type: ignore[arg-type]

    def _finish(self, trial: Trial, event: Event) -> None:
        self._share.pop(trial.name, None)
        self._done += 1
        self._failed += event.kind == "failed"
        if trial.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(trial.name))  # type: ignore[arg-type]
        if event.kind == "failed":
            text = f"failed: {trial.name}: {event.value.get('error')} (log: {trial.log})"
            self._bars.console.print(text, markup=False, highlight=False)

    def _note(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done}/{self._total} trials{failed}"
