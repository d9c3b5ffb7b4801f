"""Oracles over scenarios of every kind: bounds on every episode, rivals under the oracle's own knowledge, no labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.agents.build import make_controller
from adaptsplit.agents.oracle import bound, plan
from adaptsplit.agents.static import StaticController
from adaptsplit.controller import Controller
from adaptsplit.decision import Decision
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs.core import reset_row
from adaptsplit.envs.expected import expected_world
from adaptsplit.envs.layout import LOAD_OFFSET, SERVER_OFFSET, STATE_SIZE
from adaptsplit.envs.packed import pack
from adaptsplit.envs.plan import replay
from adaptsplit.outcome import OUTCOME, Outcomes
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]

EPISODES = 3
EVERYTHING = Path(__file__).with_name("everything.yaml")
SCENARIOS = (
    EVERYTHING,
    "flight-reuse",  # skip, patience, latency in the reward
    "flight-busy-server",
    "flight-batched-server",
    "flight-hot-board",
    "flight-air-to-ground",
    "mission-energy",
    "published-branchynet-alexnet",
    "published-tx2-vgg16",
)


@dataclass
class Case:
    """A scenario's worlds, and what controllers did on the same episodes."""

    scenario: Scenario

    @cached_property
    def world(self) -> World:
        return build_world(self.scenario, "validation")

    @cached_property
    def train(self) -> World:
        return build_world(self.scenario, "train")

    @cached_property
    def seeds(self) -> Array:
        return episode_seeds(12, EPISODES, "validation")

    @cached_property
    def rivals(self) -> dict[str, Outcomes]:
        """Outcomes (E, F) of two rules, of random decisions, and of a dozen static ones spread over the table."""
        space = self.scenario.space
        rows = space.table[np.unique(np.linspace(0, len(space.table) - 1, 12).astype(int))]
        controllers: list[Controller] = [StaticController(space, Decision(*(int(i) for i in row))) for row in rows]
        controllers += [make_controller(name, self.scenario) for name in ("deadline", "threshold", "random")]
        return {each.name: run_episodes(self.world, each, self.seeds) for each in controllers}

    @cached_property
    def clairvoyant(self) -> Outcomes:
        return self.oracle("oracle-clairvoyant", list(self.rivals.values()))

    def oracle(self, name: str, rivals: list[Outcomes], world: World | None = None) -> Outcomes:
        """Outcomes (E, F) of an oracle."""
        chosen = self.world if world is None else world
        return plan(chosen, self.train, self.scenario.space, self.seeds, name, rivals=rivals)

    def score(self, outcomes: Outcomes) -> Array:
        """(E,) mean reward per frame."""
        return np.asarray(self.scenario.objective.reward(outcomes).mean(axis=1))

    def value_in(self, world: World, outcomes: Outcomes) -> tuple[Array, Outcomes]:
        """(E,) mean value of the decisions of ``outcomes`` when they are taken again in ``world``; and its records."""
        packed, state = pack(world), np.zeros(STATE_SIZE)
        again = np.zeros(outcomes.shape, dtype=OUTCOME)
        values = [
            replay(packed, state, log, seed, _decisions(row))
            for log, seed, row in zip(again, self.seeds, outcomes, strict=True)
        ]
        return np.array(values) / outcomes.shape[1], again


def _decisions(records: Outcomes) -> Array:
    """Decisions per frame (F, 4) as ``replay`` takes them: -1 where none was taken."""
    taken = [
        np.where(records["branch"] < 0, -1.0, records[name]) for name in ("branch", "rate", "threshold", "patience")
    ]
    return np.ascontiguousarray(np.column_stack(taken), dtype=np.float64)


@pytest.fixture(scope="module", params=SCENARIOS, ids=[getattr(each, "stem", each) for each in SCENARIOS])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(load_scenario(request.param))


def test_bound_clairvoyant_controllers_on_every_episode(case: Case) -> None:
    """The relaxed bound holds; the clairvoyant is never below what a controller did, since it was shown its plan."""
    top, best = bound(case.world, case.scenario.space, case.seeds), case.score(case.clairvoyant)
    assert (top >= best - 1e-6).all()
    scores = {name: case.score(rival) for name, rival in case.rivals.items()}
    for name, score in scores.items():
        assert (best >= score - 1e-6).all(), name
    assert len({round(float(score.mean()), 9) for score in scores.values()}) > 3


def test_clairvoyant_needs_nobody_to_show_it_a_plan(case: Case) -> None:
    alone = case.score(case.oracle("oracle-clairvoyant", []))
    assert (alone >= np.max([case.score(rival) for rival in case.rivals.values()], axis=0) - 1e-6).all()


def test_plans_of_controllers_replay_exactly(case: Case) -> None:
    for name, rival in case.rivals.items():
        value, again = case.value_in(case.world, rival)
        again["env"] = rival["env"]
        assert again.tobytes() == rival.tobytes(), name
        assert value == pytest.approx(case.score(rival), abs=1e-6)


def test_informed_is_best_in_the_world_that_it_imagines(case: Case) -> None:
    """Without labels it may lose to a controller in the true world, never in its own."""
    imagined = expected_world(case.world, case.train)
    informed = case.oracle("oracle-informed", list(case.rivals.values()))
    own, _ = case.value_in(imagined, informed)
    for name, rival in case.rivals.items():
        value, _ = case.value_in(imagined, rival)
        assert (own >= value - 1e-6).all(), name


@pytest.mark.parametrize("name", ["oracle-informed", "oracle-informed-0"])
def test_informed_oracles_do_not_look_at_labels(case: Case, name: str) -> None:
    """Every label of the planned split turned round: other rewards, the same decisions."""
    o, answers = case.world.outcomes, case.world.answers
    turned = case.world._replace(
        outcomes=o._replace(exit_quality=1 - o.exit_quality, tail_quality=1 - o.tail_quality),
        answers=answers._replace(truth=answers.truth + 1),
    )
    before, after = case.oracle(name, []), case.oracle(name, [], turned)
    for field in ("branch", "rate", "threshold", "patience", "decided_s", "path"):
        assert np.array_equal(before[field], after[field], equal_nan=True), field
    assert not np.array_equal(before["quality"], after["quality"])


def test_knowledge_is_worth_something_in_the_mean(case: Case) -> None:
    found = {name: case.score(case.oracle(name, [])).mean() for name in ("oracle-informed", "oracle-informed-0")}
    assert case.score(case.clairvoyant).mean() >= max(found.values()) - 1e-6
    random = case.score(case.rivals["random"]).mean()
    assert min(found.values()) > random + 0.01


def test_bound_holds_without_any_round_trip() -> None:
    """A link whose round trip is 0: the bound is that of 0, not of the smallest positive one."""
    document = load_scenario("control-steady").file.model_dump(mode="json", exclude_none=True)
    for number, split in enumerate(("train", "validation", "test")):
        instant = {"capacity_bps": 5e6, "rtt_s": 0.0}
        link = {"kind": "generate", "generator": "constant", "seeds": [number], "duration_s": 60, "family": "instant"}
        document["links"][split] = [{**link, "parameters": instant}]
    case = Case(load_scenario(document))
    top = bound(case.world, case.scenario.space, case.seeds)
    assert (top >= case.score(case.clairvoyant) - 1e-6).all()
    assert (top <= 1.0).all()


MOMENT_S = 15.0


def _later_work(world: World, offset: float) -> World:
    """The world with 0.6 s more of background work on the server from ``MOMENT_S`` of the episode on."""
    server = world.server
    first = int(np.ceil((offset + MOMENT_S) / server.dt_s)) % (len(server.work_s) - 1)
    work, backlog = server.work_s.copy(), server.backlog_s.copy()
    work[first:] += 0.6
    backlog[first] += 0.6
    for step in range(first + 1, len(work)):
        backlog[step] = max(backlog[step - 1] - server.dt_s, 0.0) + work[step] - work[step - 1]
    return world._replace(server=server._replace(work_s=work, backlog_s=backlog))


def _later_load(world: World, offset: float) -> World:
    """The world whose board is loaded by nine tenths from ``MOMENT_S`` of the episode on."""
    device, load = world.device, world.device.load.copy()
    load[int(np.ceil((offset + MOMENT_S) / device.load_dt_s)) % len(load) :] = 0.9
    return world._replace(device=device._replace(load=load))


@pytest.mark.parametrize(
    ("name", "offset_at", "alter"),
    [("flight-busy-server", SERVER_OFFSET, _later_work), ("flight-hot-board", LOAD_OFFSET, _later_load)],
)
def test_informed_zero_does_not_see_the_future_of_server_or_board(name: str, offset_at: int, alter: Any) -> None:
    """Alter what others do after a moment: what was decided up to then stays the same, something later does not."""
    scenario = load_scenario(name)
    world, train = build_world(scenario, "validation"), build_world(scenario, "train")
    period, later_differs = len(world.server.work_s) * world.server.dt_s or len(world.device.load) * 0.1, False
    for seed in episode_seeds(8, 6, "validation"):
        state, seeds = np.zeros(STATE_SIZE), np.array([seed])
        reset_row(pack(world), state, seed)
        if state[offset_at] + scenario.episode_s > period:
            continue  # the altered part would come again before the moment
        after = plan(alter(world, state[offset_at]), train, scenario.space, seeds, "oracle-informed-0")[0]
        before = plan(world, train, scenario.space, seeds, "oracle-informed-0")[0]
        early = (before["decided_s"] < MOMENT_S) & (after["decided_s"] < MOMENT_S)
        assert early.sum() > 100
        same = np.all([before[field] == after[field] for field in ("branch", "rate", "threshold", "patience")], axis=0)
        assert same[early].all()
        later_differs |= bool((~same & ~early & (before["branch"] >= 0)).any())
    assert later_differs
