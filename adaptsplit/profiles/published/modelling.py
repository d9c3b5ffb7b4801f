"""The stated models that fill what a source does not give. Each is one formula; none is a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit.profiles.arrays import LEVELS

if TYPE_CHECKING:
    from adaptsplit.profiles.published.table import Cut, Exit, PublishedTable

ERROR_RATIO = 4.0
"""Assumed: samples that pass an exit are answered wrongly four times as often as those that leave there."""


@dataclass(frozen=True, slots=True)
class ExitModel:
    """Accuracies at an exit: of samples that leave (``above``), of the exit on the others (``below``), and of whatever
    answers the others in the end (``rest``)."""

    above: float
    below: float
    rest: float


def exit_model(rule: Exit, classes: int) -> ExitModel:
    """Fill an exit's accuracies so that share * above + (1 - share) * rest = overall.

    ``above`` null: the errors of the two groups stand 1 : ``ERROR_RATIO``. ``below`` null: half way between chance and
    ``rest``.
    """
    error, share = 1.0 - rule.overall, rule.share
    above = rule.accuracy
    if above is None:
        above = 1.0 - error / (share + ERROR_RATIO * (1.0 - share))
    rest = (rule.overall - share * above) / (1.0 - share)
    below = rule.accuracy_below if rule.accuracy_below is not None else (1.0 / classes + rest) / 2.0
    return ExitModel(above, below, rest)


def server_seconds(table: PublishedTable, cut: Cut | None) -> float:
    """Server time of ``cut`` (None: the input was sent): as published, else remaining MACs / the server's rate."""
    if cut is not None and cut.server_s is not None:
        return cut.server_s
    macs = table.macs_full if cut is None or cut.macs_after is None else cut.macs_after
    return macs / float(table.server.macs_per_s or 1.0)


def quantiles(seconds: float, spread: float) -> NDArray[np.float32]:
    """(Q,) stage-time quantiles: uniform from (1 - spread) to (1 + spread) times ``seconds``; mean and median stay."""
    return np.asarray(seconds * (1.0 + spread * (2.0 * LEVELS - 1.0)), dtype=np.float32)
