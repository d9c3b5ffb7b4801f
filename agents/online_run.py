"""Run folders of online learners: ``online:RUN`` as a controller, and ``adaptsplit learn``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptsplit.agents.base import ControllerContext, need_summary, parse_parameters
from adaptsplit.agents.build import POLICY_FILE, context_of, load_run
from adaptsplit.agents.online import OnlineController, build_online
from adaptsplit.agents.online_file import save_online
from adaptsplit.agents.online_log import GainEstimate, estimate_gain, learn_frames, read_frames, with_lessons
from adaptsplit.agents.online_state import OnlineParameters
from adaptsplit.agents.policy import PolicyController
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary
    from adaptsplit.scenario import Scenario

SCHEMA = "adaptsplit.online-run/1"
LEARN_FILE = "learn.json"
VALUES = ("dqn", "qr-dqn")  # agents whose outputs are values in the objective's unit, not log-probabilities
LEAST_TAU = 0.002


@dataclass(frozen=True, slots=True)
class Learned:
    """The learner with its lessons, and what it is estimated to gain over the frozen policy."""

    controller: OnlineController
    gain: GainEstimate


def split_argument(argument: str) -> tuple[str, str]:
    """Return (parameters, run) of ``RUN`` or ``KEY=VALUE/...:RUN``."""
    first, colon, rest = argument.partition(":")
    return (first, rest) if colon and "=" in first else ("", argument)


def online_of(
    argument: str, space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext
) -> OnlineController:
    """Return the learner over the run of ``RUN`` or ``KEY=VALUE/...:RUN``, knowing what the run's file knows.

    ConfigError for a run that is none, that is no network, or that was trained for another decision space.
    """
    text, run = split_argument(argument)
    if not run or not (Path(run) / POLICY_FILE).is_file():
        raise ConfigError(
            f"controller 'online:{argument}': {run or 'no run'} holds no {POLICY_FILE}; write online:RUN with the "
            "folder of a trained run"
        )
    given = parse_parameters("online", text, {key: float for key in OnlineParameters.model_fields})
    policy = load_run(Path(run), space)
    if isinstance(policy, OnlineController):
        parameters = policy.parameters.model_copy(update=given)
        return OnlineController(policy.name, policy.model, policy.deployment, parameters, policy.lessons)
    if not isinstance(policy, PolicyController):
        raise ConfigError(f"controller 'online:{argument}': a {type(policy).__name__}; only a network can be corrected")
    parameters = _parameters({"tau": tau_of(Path(run)), **given}, argument)
    return build_online(f"online-{policy.name}", policy, need_summary("online", summary), context, parameters)


def _parameters(given: dict[str, Any], argument: str) -> OnlineParameters:
    try:
        return OnlineParameters(**given)
    except ValueError as error:
        text = "; ".join(" ".join(str(error).split()).split("; "))
        raise ConfigError(f"controller 'online:{argument}': a parameter outside its range ({text})") from error


def tau_of(run: Path) -> float:
    """Return how much reward a unit of the policy's output is worth, by what ``run.json`` says of its training.

    1 for values; for log-probabilities the entropy coefficient, as of a policy that is optimal under it (its
    log-probability is advantage / coefficient); 0.006, PPO's default here, where nothing is known.
    """
    try:
        value = json.loads((run / "run.json").read_bytes())
        if value["agent"] in VALUES:
            return 1.0
        return max(float(value["hyperparameters"]["ent_coef"]), LEAST_TAU)
    except (OSError, ValueError, KeyError, TypeError):
        return float(OnlineParameters().tau)


def learn_from_logs(run: str, scenario: Scenario, logs: Sequence[Path], out: Path, *, seed: int = 0) -> Learned:
    """Teach ``run`` what the live logs hold and write the learner as a run folder ``out``.

    DataError for logs without observations, with too few frames or of another decision space; ConfigError when ``out``
    is in use.
    """
    if out.exists() and not (out / LEARN_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not of adaptsplit learn; name another folder with --out")
    argument = run.removeprefix("online:")
    blank = online_of(argument, scenario.space, scenario.summary(), context_of(scenario))
    frames = read_frames(logs, blank)
    gain = estimate_gain(blank, frames, seed)
    learned = with_lessons(blank, learn_frames(blank, frames))
    out.mkdir(parents=True, exist_ok=True)
    save_online(out / POLICY_FILE, learned)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run,
        "scenario": scenario.name,
        "logs": [str(path) for path in logs],
    }
    document |= {"taught": learned.lessons.taught, "gain": asdict(gain)}
    (out / LEARN_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return Learned(learned, gain)
