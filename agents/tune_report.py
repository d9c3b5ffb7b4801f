"""What a search found: ``best.yaml``, ``tuning.json``, a table, importances and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from adaptsplit.agents.tune import INTERRUPTED, Tuner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = "adaptsplit.tuning/1"
SHOWN = 10
MIN_FOR_IMPORTANCE = 4
"""Fewer completed trials say nothing about importance."""


def best_trial(tuner: Tuner) -> FrozenTrial:
    """Return the completed trial of the largest value; of equal ones the first."""
    complete = [trial for trial in tuner.finished() if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (_value(trial), -trial.number))


def shipped_value(tuner: Tuner) -> float | None:
    """Return the value of the shipped hyperparameters, None when that trial was not completed."""
    values = [t.value for t in tuner.finished() if "shipped" in t.user_attrs and t.state == TrialState.COMPLETE]
    return values[0] if values else None


def importances(tuner: Tuner) -> dict[str, float]:
    """Return each searched key's share of the value's variance (fANOVA, Hutter et al. 2014), largest first.

    Empty for fewer than four completed trials. With few trials these are hints.
    """
    complete = [trial for trial in tuner.finished() if trial.state == TrialState.COMPLETE]
    if len(complete) < MIN_FOR_IMPORTANCE or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=tuner.options.seed)
    found = optuna.importance.get_param_importances(tuner.study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def document(tuner: Tuner) -> dict[str, Any]:
    """Return the content of ``tuning.json``."""
    best = best_trial(tuner)
    return {
        "schema": SCHEMA,
        "request": tuner.request(),
        "best": {
            "number": best.number,
            "value": best.value,
            "parameters": tuner.parameters_of(best).model_dump(mode="json"),
        },
        "shipped_value": shipped_value(tuner),
        "importances": importances(tuner),
        "trials": [
            _entry(trial, tuner) for trial in tuner.study.get_trials(deepcopy=False) if trial.state.is_finished()
        ],
    }


def _entry(trial: FrozenTrial, tuner: Tuner) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration else None
    return {
        "number": trial.number,
        "state": INTERRUPTED if trial.number in tuner.interrupted else trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "seconds": None if seconds is None else round(seconds, 1),
        "params": trial.params,
        "points": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
        "error": trial.user_attrs.get("error"),
        "log": trial.user_attrs.get("log"),
    }


def write_report(tuner: Tuner) -> None:
    """Write ``best.yaml``, ``tuning.json`` and, where matplotlib is installed, ``tuning.png``."""
    value = document(tuner)
    (tuner.out / "tuning.json").write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (tuner.out / "best.yaml").write_text(_best_yaml(tuner, value), encoding="utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return
    draw(tuner, tuner.out / "tuning.png")


def _best_yaml(tuner: Tuner, value: dict[str, Any]) -> str:
    best, o = value["best"], tuner.options
    head = (
        f"# Found by adaptsplit tune on {tuner.scenario.name}: trial {best['number']}, {o.objective} validation reward "
        f"{best['value']:.6g},\n# mean of {o.seeds} seed(s). Use: adaptsplit train SCENARIO --agent {tuner.agent} "
        "--params THIS_FILE\n"
        "# The value is the largest of many, so it is too good: train anew with other seeds before it is reported.\n"
    )
    return head + yaml.safe_dump({tuner.agent: best["parameters"]}, sort_keys=False)


def tuning_table(tuner: Tuner) -> Table:
    """Return the best trials, and what became of the others."""
    trials = tuner.finished()
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (-_value(t), t.number))
    ends = {state: sum(t.state == state for t in trials) for state in (TrialState.PRUNED, TrialState.FAIL)}
    title = f"{len(complete)} trials completed, {ends[TrialState.PRUNED]} pruned, {ends[TrialState.FAIL]} failed"
    table = Table(title=title, title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("value", justify="right")
    for key in tuner.space.dimensions:
        table.add_column(key, justify="right", overflow="fold")
    for trial in complete[:SHOWN]:
        drawn = tuner.space.draw(optuna.trial.FixedTrial(dict(trial.params)))
        mark = " (shipped)" if "shipped" in trial.user_attrs else ""
        table.add_row(f"{trial.number}{mark}", f"{_value(trial):.4f}", *(_text(drawn[key]) for key in drawn))
    return table


def importance_table(found: dict[str, float]) -> Table:
    """Return the list of importances."""
    table = Table(title="importance: share of the value's variance", title_justify="left")
    table.add_column("key")
    table.add_column("share", justify="right")
    for name, share in found.items():
        table.add_row(name, f"{share:.0%}")
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " to ".join(_text(end) for end in value["linear"])
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("'", "")


def _value(trial: FrozenTrial) -> float:
    return float("-inf") if trial.value is None else trial.value


def draw(tuner: Tuner, path: Path) -> None:
    """Draw the values in the order of trials, and against each searched key."""
    from matplotlib.figure import Figure

    complete = [trial for trial in tuner.finished() if trial.state == TrialState.COMPLETE]
    names = list(importances(tuner)) or list(complete[0].params)
    columns = 4
    lines = 1 + (len(names) + columns - 1) // columns
    figure = Figure(figsize=(11, 2.6 * lines), layout="constrained")
    grid = figure.add_gridspec(lines, columns)
    _draw_history(figure.add_subplot(grid[0, :]), tuner, complete)
    for i, name in enumerate(names):
        _draw_key(figure.add_subplot(grid[1 + i // columns, i % columns]), name, complete, tuner)
    figure.savefig(path, dpi=110)


def _draw_history(axes: Axes, tuner: Tuner, complete: list[FrozenTrial]) -> None:
    numbers, values = [t.number for t in complete], [_value(t) for t in complete]
    best = [max(values[: i + 1]) for i in range(len(values))]
    axes.plot(numbers, values, "o", color="#0072b2", ms=4, label="completed")
    axes.step(numbers, best, where="post", color="#c2410c", label="best so far")
    pruned = [t for t in tuner.finished() if t.state == TrialState.PRUNED]
    axes.plot([t.number for t in pruned], [min(values)] * len(pruned), "|", color="#5b6270", label="pruned (no value)")
    shipped = shipped_value(tuner)
    if shipped is not None:
        axes.axhline(shipped, color="#5b6270", lw=0.8, ls="--", label="shipped hyperparameters")
    axes.set(xlabel="trial", ylabel="validation reward", title=f"{tuner.agent} on {tuner.scenario.name}")
    axes.legend(fontsize=8, frameon=False)


def _draw_key(axes: Axes, name: str, complete: list[FrozenTrial], tuner: Tuner) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    known = [trial for trial in complete if name in trial.params]
    values = [trial.params[name] for trial in known]
    texts = any(isinstance(value, str) for value in values)
    order = sorted(set(values)) if texts else []
    places = [order.index(value) for value in values] if texts else values
    axes.scatter(places, [_value(trial) for trial in known], s=12, color="#0072b2", clip_on=False)
    best = best_trial(tuner)
    axes.scatter(
        [places[known.index(best)]], [_value(best)], s=40, facecolors="none", edgecolors="#c2410c", clip_on=False
    )
    if not texts:
        ends = known[0].distributions[name]
        axes.set_xlim(getattr(ends, "low", None), getattr(ends, "high", None))
    if texts:
        axes.set_xticks(range(len(order)), order, fontsize=7)
    elif any(getattr(trial.distributions[name], "log", False) for trial in known):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(value, int) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)
