"""``adaptsplit tune``: search an agent's hyperparameters with Optuna, judged on validation data only.

Each trial trains the agent with ``seeds`` seeds in a process of its own; its value is the mean over seeds of the best
validation reward (or of the interquartile mean of the last three). TPE proposes (Bergstra et al. 2011), a median or
Hyperband rule (Li et al. 2018) ends trials that lag. Trial 0 is the shipped hyperparameters. The study is a journal in
OUT; the same command goes on with it: a trial that was cut off is run again, a failed one is recorded and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from adaptsplit.agents.hyperparameters import Common, load_parameters
from adaptsplit.agents.sweep_local import COMMAND, Event, TrialProcesses
from adaptsplit.agents.sweep_plan import VALIDATION_EPISODES, VALIDATIONS, with_changes
from adaptsplit.agents.sweep_table import interquartile_mean
from adaptsplit.agents.sweep_trial import TrialSpec, spec_of
from adaptsplit.agents.tune_space import Space, load_space
from adaptsplit.errors import ConfigError, MissingExtraError, RunError
from adaptsplit.scenario import Scenario

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as fault:
    raise MissingExtraError("optuna", "train") from fault

JOURNAL = "study.journal"
STARTUP_TRIALS = 5
"""Trials drawn at random, and never pruned, before sampler and median know anything (Optuna's defaults: 10 and 5)."""
LAST = 3
INTERRUPTED = "interrupted"

Objective = Literal["best", "last"]
Pruner = Literal["median", "hyperband", "none"]
Watch = Callable[[str, int, float | None], None]
"""``watch(what, trial, value)``: ``start``, ``point``, ``done``, ``pruned`` or ``failed``; at first ``known``."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How to search. ``trials``: of all attempts together, failed and pruned ones included.

    ``steps`` per training (default: the agent's own); ``timeout_s``: after so long no further trial starts; ``jobs``:
    trials at once, one torch thread each; ``space``: a file in place of the shipped search space; ``startup``: trials
    that are drawn at random and never pruned.
    """

    trials: int = 30
    steps: int | None = None
    seeds: int = 2
    timeout_s: float | None = None
    jobs: int = 1
    seed: int = 0
    objective: Objective = "best"
    pruner: Pruner = "median"
    space: Path | None = None
    startup: int = STARTUP_TRIALS
    validations: int = VALIDATIONS
    validation_episodes: int = VALIDATION_EPISODES


@dataclass(slots=True)
class _Active:
    """A trial at work: its rewards so far, by seed."""

    trial: Trial
    curves: dict[int, list[float]] = field(default_factory=dict)
    points: int = 0


def score(curve: list[float], objective: Objective) -> float:
    """Return what a validation curve is worth: its best point, or the interquartile mean of its last three."""
    return max(curve) if objective == "best" else interquartile_mean(curve[-LAST:])


class Tuner:
    """One study: its folder, its space, its trials."""

    def __init__(self, scenario: Scenario, agent: str, out: Path, options: TuneOptions) -> None:
        if min(options.trials, options.seeds, options.jobs) < 1:
            raise ConfigError("trials, seeds and jobs: expected at least 1 of each")
        self.scenario, self.agent, self.out, self.options = scenario, agent, out, options
        shipped = load_parameters(agent)
        changes = {} if options.steps is None else {"steps": options.steps}
        self.base: Common = with_changes(agent, shipped, changes, f"agent {agent!r}")
        self.space: Space = load_space(agent, self.base, options.space)
        self._active: dict[str, _Active] = {}
        self.study = self._open()

    def run(self, watch: Watch | None = None, command: Sequence[str] = COMMAND) -> None:
        """Run trials until there are as many as asked for, or the time is over; ``command`` runs a ``TrialSpec``."""
        tell = watch or (lambda what, trial, value: None)
        until = float("inf") if self.options.timeout_s is None else time.monotonic() + self.options.timeout_s
        with TrialProcesses(command=command) as processes:
            tell("known", len(self.finished()), None)
            while True:
                while len(processes) < self.options.jobs and time.monotonic() < until and self.left() > 0:
                    self._start(processes, tell)
                event = processes.wait() if len(processes) else None
                if event is not None:
                    self._take(processes, event, tell)
                elif not len(processes) and (time.monotonic() >= until or self.left() <= 0):
                    return

    def left(self) -> int:
        """Return how many trials are still to be started."""
        return self.options.trials - len(self._active) - len(self.finished())

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended: complete, pruned or failed; not those that were interrupted."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        found = self.study.get_trials(deepcopy=False, states=ended)
        return [trial for trial in found if trial.number not in self.interrupted]

    @property
    def interrupted(self) -> frozenset[int]:
        """The trials that an earlier process left unfinished; their parameters were tried again."""
        return frozenset(self.study.user_attrs.get(INTERRUPTED, ()))

    def parameters_of(self, trial: FrozenTrial | Trial) -> Common:
        """Return the whole record that a trial was trained with. ConfigError when it does not hold together."""
        chooser = optuna.trial.FixedTrial(dict(trial.params))
        return with_changes(self.agent, self.base, self.space.draw(chooser), f"trial {trial.number}")

    def _open(self) -> optuna.Study:
        """Create or load the study; ConfigError when the folder holds one that was asked for otherwise."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out.mkdir(parents=True, exist_ok=True)
        known = {JOURNAL, "trials", "tuning.json", "tuning.png", "best.yaml"}
        other = sorted(path.name for path in self.out.iterdir() if not path.name.startswith(tuple(known)))
        if other:
            raise ConfigError(f"{self.out}: holds {other[0]!r}, which is no part of a study; name another --out")
        backend = JournalFileBackend(str(self.out / JOURNAL))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=self._pruner(),
        )
        self._check(study)
        self._requeue(study)
        count = len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(
            seed=self.options.seed + count,  # the same seed again would propose the first trials again
            n_startup_trials=self.options.startup,
            multivariate=True,
            constant_liar=self.options.jobs > 1,
        )
        return study

    def _pruner(self) -> optuna.pruners.BasePruner:
        points = self.options.validations * self.options.seeds
        if self.options.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=max(1, points // 9), max_resource=points)
        if self.options.pruner == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(self.options.startup, n_warmup_steps=max(1, self.options.validations // 5))

    def request(self) -> dict[str, Any]:
        """Return what must be the same for a study to be gone on with."""
        o = self.options
        file = hashlib.sha256(self.scenario.file.model_dump_json().encode()).hexdigest()
        return {
            "scenario": self.scenario.name,
            "scenario_sha256": file,
            "agent": self.agent,
            "base": self.base.model_dump(mode="json"),
            "space": {key: asdict(value) for key, value in self.space.dimensions.items()},  # type: ignore[call-overload]
            "seeds": o.seeds,
            "seed": o.seed,
            "objective": o.objective,
            "validations": o.validations,
            "validation_episodes": o.validation_episodes,
        }

    def _check(self, study: optuna.Study) -> None:
        wanted: dict[str, Any] = json.loads(json.dumps(self.request()))
        if "request" not in study.user_attrs:
            study.set_user_attr("request", wanted)
            first = self.space.encode(self.base.model_dump(mode="json"))
            if first is not None:
                study.enqueue_trial(first, user_attrs={"shipped": True})
            return
        found = study.user_attrs["request"]
        other = sorted(key for key in wanted if found.get(key) != wanted[key])
        if other:
            raise ConfigError(
                f"{self.out}: holds a study with another {', '.join(other)}; give the same arguments, or another --out"
            )

    def _requeue(self, study: optuna.Study) -> None:
        """Run again what an earlier process left unfinished."""
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        study.set_user_attr(INTERRUPTED, [*study.user_attrs.get(INTERRUPTED, ()), *(trial.number for trial in left)])
        for trial in left:
            study.enqueue_trial(
                dict(trial.params), user_attrs={key: True for key in ("shipped",) if key in trial.user_attrs}
            )
            study.tell(trial.number, state=TrialState.FAIL)

    def _start(self, processes: TrialProcesses, tell: Watch) -> None:
        trial = self.study.ask()
        drawn = self.space.draw(trial)
        tell("start", trial.number, None)
        try:
            parameters = with_changes(self.agent, self.base, drawn, f"trial {trial.number}")
        except ConfigError as error:
            self._fail(trial, str(error), tell)
            return
        spec = self._spec(trial.number, parameters)
        self._active[spec.name] = _Active(trial)
        processes.start(spec, self._log(trial.number))

    def _spec(self, number: int, parameters: Common) -> TrialSpec:
        seeds = tuple(range(self.options.seed, self.options.seed + self.options.seeds))
        folder = self.out / "trials" / f"{number:04}"
        o = self.options
        return spec_of(
            self.scenario, str(number), self.agent, parameters, seeds, folder, o.validations, o.validation_episodes
        )

    def _log(self, number: int) -> Path:
        return self.out / "trials" / f"{number:04}.log"

    def _take(self, processes: TrialProcesses, event: Event, tell: Watch) -> None:
        active = self._active[event.trial]
        number = active.trial.number
        if event.kind == "failed":
            del self._active[event.trial]
            self._fail(active.trial, str(event.value.get("error")), tell)
        elif event.kind == "done":
            del self._active[event.trial]
            value = self._value(active)
            self.study.tell(active.trial, value)
            tell("done", number, value)
        elif self._prune(active, event):
            processes.stop(event.trial)
            del self._active[event.trial]
            self.study.tell(active.trial, state=TrialState.PRUNED)
            tell("pruned", number, self._value(active))
        else:
            tell("point", number, self._value(active))

    def _prune(self, active: _Active, event: Event) -> bool:
        """Record one validation; return whether the trial lags too far behind the others at the same point."""
        active.curves.setdefault(int(event.value["seed"]), []).append(float(event.value["reward"]))
        active.points += 1
        active.trial.report(self._value(active), active.points)
        last = active.points >= self.options.validations * self.options.seeds  # its value is here: keep it
        return not last and active.trial.should_prune()

    def _value(self, active: _Active) -> float:
        """Return the mean over the seeds so far; a trial compares with others at the same number of validations."""
        scores = [score(curve, self.options.objective) for curve in active.curves.values()]
        return sum(scores) / len(scores) if scores else float("nan")

    def _fail(self, trial: Trial, error: str, tell: Watch) -> None:
        trial.set_user_attr("error", error)
        trial.set_user_attr("log", str(self._log(trial.number)))
        self.study.tell(trial, state=TrialState.FAIL)
        tell("failed", trial.number, None)


def tune(scenario: Scenario, agent: str, out: Path, options: TuneOptions, watch: Watch | None = None) -> Tuner:
    """Search, and write ``best.yaml``, ``tuning.json`` and ``tuning.png`` (with matplotlib) into ``out``.

    RunError when no trial was completed, ConfigError or UnknownNameError for arguments that cannot be used.
    """
    from adaptsplit.agents.tune_report import write_report

    tuner = Tuner(scenario, agent, out, options)
    tuner.run(watch)
    if not any(trial.state == TrialState.COMPLETE for trial in tuner.finished()):
        failed = [trial for trial in tuner.finished() if trial.state == TrialState.FAIL]
        why = (
            f"; the last one: {failed[-1].user_attrs.get('error')} (log: {failed[-1].user_attrs.get('log')})"
            if failed
            else ""
        )
        raise RunError(f"{out}: none of {len(tuner.finished())} trials was completed{why}")
    write_report(tuner)
    return tuner
