"""Which constraint binds: each is taken away in turn, and the informed oracle plans anew.

Physics is relaxed in the world (and in the train world, on which expectations are fitted); a price is relaxed in the
objective. A relaxation is never a prediction of another scenario: it says where the reward is lost in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptsplit.decision import DecisionSpace
from adaptsplit.envs import World
from adaptsplit.envs.exogenous import NOTHING, Board, Server
from adaptsplit.evaluation.diagnose_bench import Bench
from adaptsplit.evaluation.diagnose_document import Relaxation
from adaptsplit.evaluation.diagnose_use import decisions_of
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes

FAST_BPS = 1e10
SLIGHT = 1e-6
LONGER = 2.0


@dataclass(frozen=True, slots=True)
class Physics:
    """A relaxation of the world."""

    name: str
    meaning: str
    apply: Callable[[World], World]


def unlimited_capacity(world: World) -> World:
    """Return the world with 10 Gbit/s everywhere, outages included; round trips and losses stay."""
    links, table = world.links, world.links.table.copy()
    for first, count, dt in zip(links.first, links.samples, links.dt_s, strict=True):
        seconds = np.arange(count + 1) * dt
        table[first : first + count + 1, 0], table[first : first + count + 1, 5] = FAST_BPS * seconds, seconds
        table[first : first + count, 1] = FAST_BPS
    return world._replace(links=links._replace(table=table))


def no_round_trip(world: World) -> World:
    """Return the world without round trip and without loss (a lost message costs a round trip)."""
    table = world.links.table.copy()
    table[:, 2:4] = 0.0
    return world._replace(links=world.links._replace(table=table))


def instant_board(world: World) -> World:
    """Return the world in which the device's stages take no time but the same energy, without heat and other load."""
    s, c = world.stages, world.constants
    stages = s._replace(head=s.head * SLIGHT, encode=s.encode * SLIGHT, signal=s.signal * SLIGHT)
    constants = c._replace(decision_s=c.decision_s * SLIGHT, compute_w=c.compute_w / SLIGHT)
    thermal = world.device.thermal._replace(k_per_w=0.0, minimum_clock=1.0)
    idle: Board = world.device._replace(load=NOTHING, thermal=thermal, has_thermal=False)
    return world._replace(stages=stages, constants=constants, device=idle)


def instant_server(world: World) -> World:
    """Return the world whose server answers at once and has no other customers."""
    dt = world.server.dt_s
    return world._replace(
        stages=world.stages._replace(tail=world.stages.tail * 0.0),
        server=Server(NOTHING, NOTHING, NOTHING, dt, 0.0, 1.0),
    )


def longer_deadline(world: World) -> World:
    """Return the world with twice the deadline."""
    c = world.constants
    return world._replace(constants=c._replace(deadline_s=LONGER * c.deadline_s))


PHYSICS = (
    Physics("capacity", "a link of unlimited capacity without outages", unlimited_capacity),
    Physics("round trip", "no round trip, no loss", no_round_trip),
    Physics("compute time", "a board that takes no time but the same energy", instant_board),
    Physics("server", "a server that answers at once", instant_server),
    Physics("deadline", "twice the deadline", longer_deadline),
)
PRICES = {
    "energy": ("energy_per_j", "energy free of charge"),
    "bytes": ("bytes_per_kib", "bytes free of charge"),
    "switching": ("switch", "switching free of charge"),
    "miss": ("miss", "no penalty for a miss"),
    "lateness": ("latency_per_s", "no price of latency"),
}


def relaxations(bench: Bench, count: int, base: Outcomes, rivals: Sequence[Outcomes]) -> tuple[Relaxation, ...]:
    """Relax each constraint on the first ``count`` episodes; ``base`` is the informed oracle's plan as things are.

    Sorted by worth, the greatest first. The base plan and ``rivals`` compete in every relaxed world.
    """
    objective, base = bench.scenario.objective, base[:count]
    prices = [name for name, (weight, _) in PRICES.items() if getattr(objective, weight) > 0]
    total, found = len(PHYSICS) + len(prices), []
    for physics in PHYSICS:
        world, train = physics.apply(bench.world), physics.apply(bench.train)
        plan = bench.plan("oracle-informed", count, world=world, train=train, rivals=[base, *rivals])
        worth = bench.paired(bench.reward(plan), bench.reward(base))
        changed = _changed(plan, base, bench.scenario.space)
        found.append(
            Relaxation(constraint=physics.name, meaning=physics.meaning, worth=worth, paid=None, changed=changed)
        )
        bench.progress("constraints", len(found), total)
    for name in prices:
        found.append(_price(bench, name, base, rivals))
        bench.progress("constraints", len(found), total)
    return tuple(sorted(found, key=lambda item: -(item.worth.value or 0.0)))


def _price(bench: Bench, name: str, base: Outcomes, rivals: Sequence[Outcomes]) -> Relaxation:
    """The gain in all other terms of an oracle for which this one is free."""
    weight, meaning = PRICES[name]
    objective = bench.scenario.objective
    free = objective.scaled(weight, 0.0)
    world, train = (priced(each, free) for each in (bench.world, bench.train))
    plan = bench.plan("oracle-informed", len(base), world=world, train=train, rivals=[base, *rivals])
    return Relaxation(
        constraint=name,
        meaning=meaning,
        worth=bench.paired(bench.reward(plan, free), bench.reward(base, free)),
        paid=float(-objective.terms(base)[name].mean()),
        changed=_changed(plan, base, bench.scenario.space),
    )


def priced(world: World, objective: Objective) -> World:
    """Return the world under another objective."""
    return world._replace(weights=type(world.weights)(*objective.weights()))


def _changed(plan: Outcomes, base: Outcomes, space: DecisionSpace) -> float:
    """Share of frames with another decision or another way of answering."""
    same = (decisions_of(plan, space) == decisions_of(base, space)).all(axis=-1)
    return float((~same | (plan["path"] != base["path"])).mean())


def binding(found: Sequence[Relaxation]) -> str | None:
    """Return the constraint whose relaxation is worth most, None when no interval lies above zero."""
    gains = [item for item in found if item.worth.low is not None and item.worth.low > 0]
    return max(gains, key=lambda item: item.worth.value or 0.0).constraint if gains else None
