"""``adaptsplit sweep``: train a grid of scenarios x agents x seeds, resumable; a failed trial does not stop the rest.

``OUT/SCENARIO/AGENT/SEED`` is a run folder, ``OUT/SCENARIO/AGENT/SEED.log`` what that trial printed, ``OUT/sweep.json``
what was asked for and how each trial went. The same command again trains only what is missing: a trial is done when its
``run.json`` is complete and made with the same hyperparameters; one that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.run_folder import RUN_FILE, read_run
from adaptsplit.agents.sweep_local import Event, run_local
from adaptsplit.agents.sweep_plan import Sweep, Trial
from adaptsplit.agents.sweep_trial import state_of
from adaptsplit.errors import AdaptsplitError, ConfigError, DataError

SCHEMA = "adaptsplit.sweep/1"
SWEEP_FILE = "sweep.json"

FINISHED = ("done", "reused")

Executor = Callable[[Sequence[Trial]], Iterator[Event]]
"""Runs trials and yields their events; every trial ends in exactly one ``done`` or ``failed``."""
Watch = Callable[[Trial, Event], None]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How one trial went. ``reward`` is the best validation reward, ``seconds`` the time of training."""

    scenario: str
    agent: str
    seed: int
    status: Literal["done", "reused", "failed", "open"]
    folder: str
    log: str
    identity: str
    reward: float | None = None
    steps: int | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep's trials, in the order of the grid."""

    out: Path
    trials: tuple[TrialResult, ...]

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.trials if trial.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form: the content of ``sweep.json``."""
        return {"schema": SCHEMA, "trials": [asdict(trial) for trial in self.trials]}


def local(workers: int, timeout_s: float | None = None) -> Executor:
    """Return the executor of this machine: ``workers`` processes at once, each ended after ``timeout_s``."""
    return lambda trials: run_local([(trial.spec, trial.log) for trial in trials], workers, timeout_s)


def run_sweep(sweep: Sweep, executor: Executor, *, anew: bool = False, watch: Watch | None = None) -> SweepResult:
    """Train what is missing of a sweep and return how every trial went (``sweep.json`` says the same).

    ``anew`` trains a trial again whose folder holds a run with other hyperparameters (or of a scenario that has
    changed); without it that is a ConfigError. DataError for a damaged ``sweep.json`` or ``run.json``.
    """
    by_name = {trial.name: trial for trial in sweep.trials}
    known = _identities(sweep.out)
    results = {trial.name: _before(trial, known, anew) for trial in sweep.trials}
    missing = [by_name[name] for name, result in results.items() if result.status == "open"]
    _write(sweep, results)
    for trial in sweep.trials:
        if watch is not None and results[trial.name].status == "reused":
            watch(trial, Event(trial.name, "done"))
    for event in executor(missing) if missing else ():
        trial = by_name[event.trial]
        if event.kind != "point":
            results[trial.name] = _after(trial, event)
            _write(sweep, results)
        if watch is not None:
            watch(trial, event)
    return SweepResult(sweep.out, tuple(results.values()))


def _identities(out: Path) -> dict[str, str]:
    """Return the identity that each trial had when it was last run."""
    path = out / SWEEP_FILE
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        return {f"{t['scenario']}/{t['agent']}/{t['seed']}": str(t["identity"]) for t in value["trials"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a sweep of ours ({error!r}); remove it, or name another --out") from error


def _before(trial: Trial, known: dict[str, str], anew: bool) -> TrialResult:
    """Return the result that is there already, or one that is open; what is different is refused or removed."""
    try:
        state = state_of(trial.spec, trial.seed)
        if state != "absent" and known.get(trial.name, trial.identity) != trial.identity:
            raise ConfigError(
                f"{trial.folder}: its scenario or hyperparameters have changed since; "
                "name another --out, or train it anew with --anew"
            )
    except (ConfigError, DataError):
        if not anew:
            raise
        shutil.rmtree(trial.folder)
        state = "absent"
    return _after(trial, Event(trial.name, "done"), "reused") if state == "done" else _result(trial, "open")


def _after(trial: Trial, event: Event, status: Literal["done", "reused"] = "done") -> TrialResult:
    """Return the result of a trial that has ended: what its ``run.json`` says, or why it failed."""
    error = str(event.value.get("error", "no reason given")) if event.kind == "failed" else None
    run: dict[str, Any] = {}
    try:
        run = read_run(trial.folder) if (trial.folder / RUN_FILE).is_file() else {}
        if error is None and state_of(trial.spec, trial.seed) != "done":
            error = "its process ended without a complete run.json"
    except AdaptsplitError as fault:
        error = error or str(fault)
    return _result(
        trial,
        status if error is None else "failed",
        reward=float(run["best"]["reward"]) if run.get("best") else None,
        steps=int(run["steps"]) if run else None,
        seconds=float(run["seconds"]) if run else None,
        error=error,
    )


def _result(
    trial: Trial,
    status: Literal["done", "reused", "failed", "open"],
    reward: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    error: str | None = None,
) -> TrialResult:
    return TrialResult(
        trial.scenario,
        trial.agent,
        trial.seed,
        status,
        str(trial.folder),
        str(trial.log),
        trial.identity,
        reward,
        steps,
        seconds,
        error,
    )


def _write(sweep: Sweep, results: dict[str, TrialResult]) -> None:
    """Write ``sweep.json`` as a whole, or not at all."""
    sweep.out.mkdir(parents=True, exist_ok=True)
    value = SweepResult(sweep.out, tuple(results.values())).to_dict()
    beside = sweep.out / (SWEEP_FILE + ".new")
    beside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(sweep.out / SWEEP_FILE)


def agent_folders(sweep: Sweep, result: SweepResult, scenario: str) -> tuple[list[str], list[str]]:
    """Return what to evaluate on one scenario (folders of run folders), and the agents that are left out.

    Left out is an agent without a finished trial, and one of which an unfinished trial has left a half-trained policy:
    it would be pooled with the finished ones.
    """
    folders, left_out = [], []
    for agent in sweep.agents:
        trials = [trial for trial in result.trials if (trial.scenario, trial.agent) == (scenario, agent)]
        open_ones = [trial for trial in trials if trial.status not in FINISHED]
        half = any((Path(trial.folder) / POLICY_FILE).is_file() for trial in open_ones)
        if half or len(open_ones) == len(trials):
            left_out.append(agent)
        else:
            folders.append(str(sweep.out / scenario / agent))
    return folders, left_out
