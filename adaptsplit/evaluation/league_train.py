"""Training what a league lacks: one run per scenario, agent and seed, in ``RUNS/SCENARIO/AGENT/SEED``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.run_folder import RUN_FILE, read_run
from adaptsplit.errors import AdaptsplitError
from adaptsplit.evaluation.league_ablation import Removal, removals, run_folder
from adaptsplit.evaluation.league_document import Skipped
from adaptsplit.scenario import Scenario

DEFAULT_LEARNED = ("ppo", "dqn")

Tell = Callable[[str], None]
Trainer = Callable[[Scenario, str, Path, int, bool], None]
"""``trainer(scenario, agent, folder, seed, resume)``."""


@dataclass(frozen=True, slots=True)
class Training:
    """What may be trained: agents, seeds 0 to ``seeds - 1``, frames (None: as the hyperparameters say)."""

    agents: tuple[str, ...] = DEFAULT_LEARNED
    seeds: int = 5
    steps: int | None = None
    progress: bool = True


def state_of(folder: Path) -> str:
    """Return ``"done"``, ``"begun"`` (it can be resumed) or ``"absent"``.

    A run that says nothing of being complete is of an older version, which wrote ``run.json`` at the end only.
    """
    if not (folder / RUN_FILE).is_file():
        return "absent"
    if not read_run(folder).get("complete", True):
        return "begun"
    return "done" if (folder / POLICY_FILE).is_file() else "absent"


def train_missing(
    scenario: Scenario, runs: Path, training: Training, tell: Tell, trainer: Trainer | None = None
) -> list[Skipped]:
    """Train every run that is not done, resuming what was begun; return those that failed, with the reason."""
    chosen = trainer or _sb3_trainer(training)
    failed = []
    for agent in training.agents:
        for seed in range(training.seeds):
            folder = runs / scenario.name / agent / str(seed)
            try:
                state = state_of(folder)
                if state != "done":
                    tell(f"{scenario.name}: training {agent}, seed {seed}")
                    chosen(scenario, agent, folder, seed, state == "begun")
            except AdaptsplitError as error:
                failed.append(Skipped(name=f"{scenario.name}/{agent}/{seed}", reason=str(error)))
                tell(f"{failed[-1].name}: failed: {error}")
    return failed


def _sb3_trainer(training: Training) -> Trainer:
    def run(scenario: Scenario, agent: str, folder: Path, seed: int, resume: bool) -> None:
        from adaptsplit.agents.training import train

        train(scenario, agent, folder, training.steps, seed=seed, progress=training.progress, resume=resume)

    return run


def train_ablations(
    scenario: Scenario, at: str, agent: str, runs: Path, training: Training, tell: Tell
) -> Sequence[Skipped]:
    """Train every ablation of ``agent`` that is not done, knobs frozen where they stand in the decision ``at``.

    With ``steps`` given the whole agent is trained as long, too, so that equal is compared with equal.
    """
    from adaptsplit.evaluation.league_ablation_train import train_ablated

    wanted = removals(at) if training.steps is None else [Removal("full", ""), *removals(at)]
    failed = []
    for item in wanted:
        for seed in range(training.seeds):
            folder = run_folder(runs, scenario.name, agent, item, seed)
            if state_of(folder) == "done":
                continue
            tell(f"{scenario.name}: training {agent}, {item.folder}, seed {seed}")
            options = {
                "without": item.what if item.kind == "group" else None,
                "frozen": item.what if item.kind == "knob" else None,
                "at": item.at,
            }
            try:
                train_ablated(scenario, agent, folder, seed, **options, steps=training.steps, progress=False)
            except AdaptsplitError as error:
                failed.append(Skipped(name=f"{scenario.name}/{agent}/{item.folder}/{seed}", reason=str(error)))
                tell(f"{failed[-1].name}: failed: {error}")
    return failed
