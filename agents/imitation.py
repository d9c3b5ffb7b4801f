"""Imitation of the informed oracle: where training may start (``adaptsplit train --start informed``).

The oracle plans policy-train episodes knowing link and confidences but no labels; the actor learns to do the same from
what a device sees (behavioural cloning: Pomerleau, Neural Computation 3, 1991). The oracle needs no threshold: it knows
the confidence before it decides. What is imitated is therefore what became of the frame: where the exit answered, every
threshold up to its confidence did the same, and the likelihood is that of all of them together. The oracle knows more
than any policy can, so this is a place to start from, not a policy to keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.bandits_arms import rule_of
from adaptsplit.agents.hyperparameters import A2cParameters, OnPolicy, Parameters, PpoParameters
from adaptsplit.agents.oracle import plan
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.controller import Decisions, Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs import Simulator, World, build_world, episode_seeds
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

ORACLE = "oracle-informed"
EPISODES = 96
EPOCHS = 30
BATCH = 512
LEARNING_RATE = 3e-3
SEED_OFFSET = 1 << 20  # of the planned episodes: none of those that training begins with
SAME = 1e-4  # records hold 32 bits
Masks = NDArray[np.bool_]
ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def imitate(
    scenario: Scenario,
    parameters: Parameters,
    seed: int = 0,
    *,
    episodes: int = EPISODES,
    epochs: int = EPOCHS,
    progress: Callable[[int, int], None] | None = None,
) -> PolicyNet:
    """Return an actor of the agent's own shape that imitates the informed oracle on ``episodes`` train episodes.

    ``progress(done, total)`` counts planned episodes. ConfigError for an agent without an actor: outputs of a Q network
    are rewards, which decisions alone do not tell.
    """
    if type(parameters) not in (PpoParameters, A2cParameters):
        raise ConfigError("imitation starts a plain actor: train ppo or a2c, or start from a RUN of the same agent")
    actor = cast("OnPolicy", parameters)
    world, space = build_world(scenario, "train"), scenario.space
    seeds = episode_seeds(seed + SEED_OFFSET, episodes, "train")
    outcomes = plan(world, world, space, seeds, ORACLE, progress=progress)
    seen, records = demonstrations(world, space, seeds, outcomes)
    return clone(seen, _targets(space, equivalent(space, records), actor), actor, seed, epochs)


def demonstrations(
    world: World, space: DecisionSpace, seeds: NDArray[np.uint64], outcomes: Outcomes
) -> tuple[Observations, Outcomes]:
    """Return what a device would have seen (N, D) at each decision of played episodes (E, F), and the records (N,).

    The episodes are played again, decision by decision.
    """
    decisions = _indices(space, outcomes)
    simulator = Simulator(world, len(seeds))
    observations, rows = simulator.reset(seeds), np.arange(len(seeds))
    seen, taken = [], []
    while not simulator.done.all():
        going = ~simulator.done
        frame = np.minimum(simulator.frame, decisions.shape[1] - 1)
        seen.append(observations[going].copy())
        taken.append(outcomes[rows, frame][going])
        observations = simulator.step(decisions[rows, frame])[0]
    return np.concatenate(seen), np.concatenate(taken)


def _indices(space: DecisionSpace, outcomes: Outcomes) -> Decisions:
    """Return the decisions (E, F, 3) that records name by the rule's values; dropped frames get the first one."""
    decided, rule = outcomes["branch"] >= 0, rule_of(space, outcomes.ravel()).reshape(outcomes.shape)
    every = np.stack([outcomes["branch"], outcomes["rate"], rule], axis=-1).astype(np.int64)
    return np.where(decided[..., None], every, 0)


def equivalent(space: DecisionSpace, records: Outcomes) -> tuple[Masks, Masks, Masks]:
    """Return which branches (N, B), rates (N, R) and rules (N, T) would have done what each record says."""
    branch = np.arange(len(space.branches)) == records["branch"][:, None]
    exited = (records["sent_bytes"] == 0) & np.isfinite(records["exit_confidence"])
    exited |= space.answers_alone[records["branch"]]
    rate = exited[:, None] | (np.arange(space.shape[1]) == records["rate"][:, None])
    confidence = records["exit_confidence"].astype(np.float64)[:, None]
    thresholds, patience = np.array(space.thresholds), np.array(space.patience)
    sends = (thresholds > confidence) & (np.abs(patience - records["patience"][:, None]) < SAME)
    rule = np.where(exited[:, None], thresholds <= confidence, sends)
    alone = space.answers_alone[records["branch"]]
    return branch, rate, rule | alone[:, None]


def _targets(space: DecisionSpace, allowed: tuple[Masks, Masks, Masks], parameters: OnPolicy) -> list[Masks]:
    """Return the outputs of each head that are right (N, outputs): one array for a flat head, three for three."""
    if parameters.actions == "multi":
        return list(allowed)
    b, r, t = space.table.T
    return [allowed[0][:, b] & allowed[1][:, r] & allowed[2][:, t]]


def clone(seen: Observations, targets: list[Masks], parameters: OnPolicy, seed: int, epochs: int) -> PolicyNet:
    """Fit a network so that each head puts its probability on the outputs that are right (N, outputs)."""
    torch.manual_seed(seed)
    outputs = [target.shape[1] for target in targets]
    net = _network(parameters, sum(outputs))
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    inputs, wanted = torch.from_numpy(seen), [torch.from_numpy(target) for target in targets]
    steps = epochs * max(1, len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        rows = torch.randint(len(seen), (BATCH,))
        parts = net(inputs[rows]).split(outputs, dim=1)
        losses = [_missed(part, right[rows]) for part, right in zip(parts, wanted, strict=True)]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    layers = [module for module in net if isinstance(module, torch.nn.Linear)]
    arrays = tuple((m.weight.detach().numpy().T.copy(), m.bias.detach().numpy().copy()) for m in layers)
    return PolicyNet(arrays, parameters.activation, parameters.actions)


def _missed(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean -log of the probability of all right outputs together; rows without any count for nothing."""
    known = right.any(dim=1)
    inside = logits.masked_fill(~right, -math.inf)[known].logsumexp(dim=1)
    return (logits[known].logsumexp(dim=1) - inside).mean()


def _network(parameters: OnPolicy, outputs: int) -> torch.nn.Sequential:
    sizes: list[int] = [obs.SIZE, *parameters.net_arch]
    modules: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [torch.nn.Linear(before, after), ACTIVATIONS[parameters.activation]()]
    return torch.nn.Sequential(*modules, torch.nn.Linear(sizes[-1], outputs))
