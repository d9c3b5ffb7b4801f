"""What an evaluation says, in one sentence and a few rows: shared by the report and the terminal."""

from __future__ import annotations

from adaptsplit.evaluation.results import ControllerResult, Estimate, ResultsDocument

ADAPTIVE = ("rule", "bandit", "learned")


def featured(document: ResultsDocument) -> list[ControllerResult]:
    """Return the rows of the summary: best static decisions, rules, bandits, learned, oracles."""
    best = document.best_static
    statics = [document.controller(name) for name in dict.fromkeys((best.chosen_on_train, best.hindsight))]
    rest = [row for kind in (*ADAPTIVE, "oracle") for row in document.of_kind(kind)]
    return [*statics, *rest]


def label(document: ResultsDocument, name: str) -> str:
    """Return how a controller is called in tables and figures."""
    best = document.best_static
    short = name.removeprefix("static:")
    if name == best.hindsight == best.chosen_on_train:
        return f"best static ({short})"
    if name == best.hindsight:
        return f"best static, hindsight ({short})"
    if name == best.chosen_on_train:
        return f"best static, from train ({short})"
    return name


def champion(document: ResultsDocument) -> ControllerResult | None:
    """Return the adaptive controller (rule, bandit or learned) with the best reward; None if there is none."""
    found = document.of_kind(*ADAPTIVE)
    return found[0] if found else None


def headline(document: ResultsDocument) -> str:
    """Return the result in plain words, with its numbers and without flattery."""
    found = champion(document)
    statics = len(document.of_kind("static"))
    best = document.controller(document.best_static.hindsight)
    if found is None:
        return (
            f"The best of {statics} static decisions, {best.name.removeprefix('static:')}, earns a reward of "
            f"{best.number('reward'):.3f} per frame; no adaptive controller was evaluated."
        )
    difference = found.paired["hindsight"].difference["reward"]
    share = found.number("gap_closed")
    better = difference.low is not None and difference.low > 0
    closed = f" It closes {100 * share:.0f} % of the gap to the informed oracle." if better and share else ""
    return (
        f"{found.name} earns a reward of {found.number('reward'):.3f} per frame, {_verdict(difference)} the best of "
        f"{statics} static decisions even when that one is chosen in hindsight ({_interval_only(difference)}).{closed}"
    )


def _verdict(difference: Estimate) -> str:
    value, low, high = difference.value or 0.0, difference.low, difference.high
    if low is not None and low > 0:
        return f"{value:.3f} more than"
    if high is not None and high < 0:
        return f"{-value:.3f} less than"
    return "not told apart from"


def _interval_only(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return "no interval"
    return f"95 % interval {value.low:+.3f} to {value.high:+.3f}"
