"""The progress line of a training run, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from adaptsplit.agents.validation import ValidationPoint


class Bars:
    """Base of progress displays: ``_bars`` is shown while one is entered."""

    _bars: Progress

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()


class TrainingProgress(Bars):
    """A bar with training reward, validation reward, variety of decisions and time left; silent when not shown."""

    def __init__(self, agent: str, steps: int, done: int = 0, *, shown: bool = True) -> None:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._console = Console(stderr=True)
        self._bars = Progress(*columns, console=self._console, disable=not shown, transient=False)
        self._task = self._bars.add_task(f"train {agent}", total=steps, completed=done, note="")
        self._shown, self._valid = shown, "validation -"

    def advance(self, steps: int, reward: float) -> None:
        """Show ``steps`` done and the mean training reward per frame."""
        self._bars.update(self._task, completed=steps, note=f"reward {reward:.4f}  {self._valid}")

    def validated(self, point: ValidationPoint, best: float, *, collapsed: bool = False) -> None:
        """Show a validation result, and whether the policy has collapsed."""
        mark = "  [yellow]COLLAPSED[/]" if collapsed else ""
        self._valid = (
            f"validation {point.reward:.4f} (best {best:.4f})  {point.distinct} decisions, top {point.top_share:.0%}"
            f"{mark}"
        )

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        if self._shown:
            self._console.print(f"[yellow]warning:[/] {text}")
