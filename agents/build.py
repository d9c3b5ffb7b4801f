"""From a name on the command line to a controller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from adaptsplit.agents import rules as _rules  # noqa: F401  (importing it registers its controllers)
from adaptsplit.agents import static as _static
from adaptsplit.agents.base import ControllerContext, Factory, Kind, RewardWeights
from adaptsplit.agents.policy import load_policy
from adaptsplit.agents.published_controllers import PUBLISHED
from adaptsplit.controller import Controller, controllers
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.registry import did_you_mean

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary
    from adaptsplit.scenario import Scenario

POLICY_FILE = "policy.npz"
BANDITS = {
    **dict.fromkeys(("ucb1", "ucb-v", "ucb-tuned", "kl-ucb", "bayes-ucb"), "bandits"),
    **dict.fromkeys(("splitee", "splitee-s"), "bandits_splitee"),
    "ans": "bandits_ans",
    "linear-ts": "bandits_linear",
    "probing": "bandits_probe",
}
for _name, _module in (BANDITS | PUBLISHED).items():
    controllers.register_from(f"adaptsplit.agents.{_module}", _name)
controllers.register_lazy("online", "adaptsplit.agents.online:online")
controllers.register_lazy("service", "adaptsplit.device_bridge.advice:service")
DEFAULT_BLOCK = 50


def build_controller(
    name: str,
    space: DecisionSpace,
    summary: ProfileSummary | None,
    context: ControllerContext,
    block: int = DEFAULT_BLOCK,
) -> Controller:
    """Return the controller called ``name``: ``FAMILY[:ARGUMENT]``, a run's folder, or several with commas between.

    Several give an ``InterleavedController`` in blocks of ``block`` frames. UnknownNameError for a name that nothing
    answers to, ConfigError for an argument or a run that does not fit the decision space.
    """
    names = [part.strip() for part in name.split(",") if part.strip()]
    if len(names) > 1:
        parts = [build_controller(part, space, summary, context) for part in names]
        return _static.InterleavedController(parts, block)
    name = names[0] if names else ""
    folder = Path(name)
    if name and (folder / POLICY_FILE).is_file():
        return load_run(folder, space)
    family, _, argument = name.partition(":")
    if family not in controllers:
        known = ", ".join(controllers.names())
        raise UnknownNameError(
            f"unknown controller {name!r}{did_you_mean(family, controllers.names())} Known: {known}, "
            f"or the folder of a run of 'adaptsplit train' (it holds {POLICY_FILE})."
        )
    return cast("Factory", controllers.get(family))(space, summary, context, argument)


def load_run(folder: Path, space: DecisionSpace) -> Controller:
    """Return the policy of a run's folder; ConfigError when it was trained for another space.

    It is named as the folder; a folder that is only a number (a training seed) as ``PARENT-NUMBER``.
    """
    place = folder.resolve()
    name = f"{place.parent.name}-{place.name}" if place.name.isdigit() else place.name
    policy = load_policy(folder / POLICY_FILE, name)
    if policy.space != space:
        raise ConfigError(
            f"{folder}: trained for another decision space (branches, codecs or thresholds differ from the "
            "scenario's); train it again on this scenario"
        )
    return policy


def make_controller(name: str, scenario: Scenario, block: int = DEFAULT_BLOCK) -> Controller:
    """Return the controller called ``name`` for a scenario; see ``build_controller``."""
    return build_controller(name, scenario.space, scenario.summary(), context_of(scenario), block)


def context_of(scenario: Scenario) -> ControllerContext:
    """Return the constants of a scenario that controllers may use."""
    objective = scenario.objective
    weights = {key: getattr(objective, key) for key in RewardWeights.model_fields}
    return ControllerContext(
        fps=scenario.fps,
        deadline_s=scenario.deadline_s,
        window=scenario.window,
        stage_scale=scenario.stage_scale,
        codec_scale=scenario.codec_scale,
        weights=RewardWeights(**weights),
        decision_s=scenario.decision_s,
        compute_w=scenario.compute_w,
        radio_w=scenario.radio_w,
        radio_j_per_bit=scenario.radio_j_per_bit,
        goodput_bps=scenario.priors.goodput_bps,
        rtt_s=scenario.priors.rtt_s,
        server_s=scenario.priors.server_s,
    )


def kind_of(controller: Controller) -> Kind:
    """Return how results list a controller: static, random, rule, learned, interleaved or oracle."""
    return cast("Kind", getattr(controller, "kind", "rule"))
