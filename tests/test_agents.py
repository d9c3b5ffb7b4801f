"""Light controllers: the contract over the registry, rules that do the right thing, policies in plain NumPy."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import SPACE, make_summary, observed
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit import observation as obs
from adaptsplit.agents import (
    ControllerContext,
    DecisionModel,
    InterleavedController,
    PolicyController,
    PolicyNet,
    RewardWeights,
    StaticController,
    build_controller,
    kind_of,
    load_policy,
    save_policy,
    static_grid,
)
from adaptsplit.agents.policy import parse_policy
from adaptsplit.agents.prediction import FieldReader, nominal_observation
from adaptsplit.controller import Controller, controllers
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.errors import ConfigError, DataError, UnknownNameError
from adaptsplit.outcome import Outcomes
from adaptsplit.testing import check_controller

CONTEXT = ControllerContext(fps=5, deadline_s=0.25, goodput_bps=2e6, rtt_s=0.06, server_s=0.01)


def build(name: str, context: ControllerContext = CONTEXT) -> Controller:
    return build_controller(name, SPACE, make_summary(), context)


def observe(goodput: float = 2e6, age: float = 0.1, heard: float = 0.1, backlog: float = 0.0) -> NDArray[np.float32]:
    """Return one observation (1, D) of a link with this goodput (bit/s), ages (s) and backlog (s)."""
    given = {"goodput": goodput, "goodput_age": age, "heard_age": heard, "backlog": backlog, "goodput_known": 1.0}
    return observed(CONTEXT, **given)


def act(controller: Controller, observation: NDArray[np.float32]) -> NDArray[np.int64]:
    state = controller.init(len(observation), np.random.default_rng(0))
    return controller.act(observation, state)[0]


def random_net(head: str = "flat", activation: str = "tanh", seed: int = 0) -> PolicyNet:
    rng = np.random.default_rng(seed)
    sizes = [obs.SIZE, 64, 64, len(SPACE.table) if head == "flat" else sum(SPACE.shape)]
    layers = tuple(
        (rng.normal(0, 0.4, (a, b)).astype(np.float32), rng.normal(0, 0.2, b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    )
    return PolicyNet(layers, activation, head)  # type: ignore[arg-type]


NAMES = {"static": "static:deep/1/0.8"}


# has its own tests: on a space with a skip branch; over a trained run
NEEDS_MORE = {"temporal-decisions-style", "online"}


@pytest.mark.parametrize("name", sorted(set(controllers.names()) - NEEDS_MORE))
def test_every_registered_controller_keeps_the_contract(name: str) -> None:
    check_controller(build(NAMES.get(name, name)), SPACE)


@pytest.mark.parametrize("head", ["flat", "multi"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_policy_keeps_the_contract(head: str, activation: str) -> None:
    check_controller(PolicyController("p", SPACE, random_net(head, activation)), SPACE)


def test_the_contract_catches_a_rate_that_the_branch_lacks() -> None:
    class Wrong(StaticController):
        def act(self, observation: NDArray[np.float32], state: object) -> tuple[NDArray[np.int64], object]:
            return np.repeat([[1, 2, 1]], len(observation), axis=0), state

    with pytest.raises(AssertionError, match="a rate that the branch lacks"):
        check_controller(Wrong(SPACE, Decision(0, 0, 0)), SPACE)


def test_static_names_are_canonical_and_the_grid_is_the_table() -> None:
    assert build("static:deep/1/0.8").name == "static:deep/1/0.8"
    assert build("static:deep/1/0").name == "static:deep/0/0"
    grid = static_grid(SPACE)
    assert len({controller.name for controller in grid}) == len(grid) == len(SPACE.table)
    assert np.array_equal(np.concatenate([act(c, observe()) for c in grid]), SPACE.table)


def test_kinds() -> None:
    kinds = {name: kind_of(build(NAMES.get(name, name))) for name in ("static", "random", "threshold", "deadline")}
    assert kinds == {"static": "static", "random": "random", "threshold": "rule", "deadline": "rule"}


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("deadlin", UnknownNameError, "did you mean 'deadline'"),
        ("static", ConfigError, "name one, such as"),
        ("static:stem/9/0.8", UnknownNameError, "rates 0, 1, 2"),
        ("random:7", ConfigError, "takes no parameters"),
        ("deadline:sigma=0", ConfigError, "sigma"),
        ("deadline:sgma=1", ConfigError, "did you mean 'sigma'"),
        ("threshold:margin=wide", ConfigError, "not a float"),
        ("threshold:branch=local", ConfigError, "sends nothing"),
        ("threshold:branch=stm", UnknownNameError, "did you mean 'stem'"),
    ],
)
def test_wrong_names_say_what_is_right(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build(name)


def test_field_reader_agrees_with_the_observation_module() -> None:
    batch = np.random.default_rng(0).random((16, obs.SIZE), dtype=np.float32)
    names = ("goodput", "rtt", "backlog", "load", "signal")
    for name, row in zip(names, FieldReader(names)(batch), strict=True):
        np.testing.assert_allclose(row, obs.physical(batch, name), rtol=1e-5)


def test_nominal_observation_holds_the_priors() -> None:
    nominal = nominal_observation(CONTEXT)
    assert obs.physical(nominal, "goodput")[0] == pytest.approx(CONTEXT.goodput_bps, rel=1e-4)
    assert obs.physical(nominal, "rtt")[0] == pytest.approx(CONTEXT.rtt_s, rel=1e-3)
    assert obs.physical(nominal, "goodput_known")[0] == 0.0


def test_expected_reward_by_hand() -> None:
    """A certain link, deep/1 that never exits: tail quality less energy and bytes, as the objective says."""
    context = CONTEXT.model_copy(
        update={
            "weights": RewardWeights(quality=1.0, energy_per_j=0.1, bytes_per_kib=0.01),
            "compute_w": 3.0,
            "radio_w": 0.5,
            "radio_j_per_bit": 1e-7,
        }
    )
    model = DecisionModel(SPACE, make_summary(), context)
    row = int(np.flatnonzero((SPACE.table == [1, 1, len(SPACE.thresholds) - 1]).all(axis=1))[0])
    wire = 1e3 + est.OVERHEAD_BYTES
    joules = 3.0 * (0.001 + 0.04 + 0.003) + 8 * wire * (1e-7 + 0.5 / 1e8)
    expected = 0.92 - 0.1 * joules - 0.01 * wire / 1024
    assert model.expected(observe(goodput=1e8))[0, row] == pytest.approx(expected, abs=1e-3)


def test_a_decision_that_is_too_slow_for_the_frame_rate_serves_its_share() -> None:
    fast = CONTEXT.model_copy(update={"deadline_s": 1.0})
    expected = DecisionModel(SPACE, make_summary(), fast).expected(observe())[0]
    local = SPACE.table[:, 0] == 3
    assert expected[local][0] == pytest.approx(0.97 * 0.2 / 0.401, rel=1e-3)


def test_the_deadline_rule_takes_more_bytes_on_a_better_link_and_none_on_a_dead_one() -> None:
    rule = build("deadline")
    sizes = make_summary().payload_bytes
    sent = [sizes[*act(rule, observe(goodput=g))[0, :2]] for g in (1.5e5, 8e5, 3e7)]
    assert sent == sorted(sent)
    assert sent[0] < sent[-1]
    assert SPACE.thresholds[act(rule, observe(goodput=1e4, backlog=2.0))[0, 2]] <= 0.7


def test_the_threshold_rule_climbs_its_ladder_and_exits_when_the_link_is_stale() -> None:
    rule = build("threshold:branch=stem/threshold=0.9")
    rates = [int(act(rule, observe(goodput=g))[0, 1]) for g in (1e5, 2e5, 5e5, 1e7)]
    assert rates == sorted(rates)
    assert rates[-1] == 2
    assert SPACE.name(act(rule, observe(goodput=1e7, heard=5.0))[0]) == "stem/0/0"
    assert SPACE.name(act(rule, observe(goodput=2e4))[0]) == "stem/0/0"
    assert SPACE.name(act(rule, observe(goodput=2e4, age=5.0))[0]) == "stem/0/0.9"


def test_a_better_margin_is_more_careful() -> None:
    observation = np.concatenate([observe(goodput=g) for g in np.geomspace(1e5, 1e7, 30)])
    bold = act(build("threshold:branch=stem/margin=1"), observation)[:, 1]
    careful = act(build("threshold:branch=stem/margin=4"), observation)[:, 1]
    assert np.all(careful <= bold)
    assert np.any(careful < bold)


def test_random_draws_every_decision_and_follows_its_generator() -> None:
    controller = build("random")
    observation = np.zeros((4000, obs.SIZE), dtype=np.float32)
    drawn = act(controller, observation)
    assert len(np.unique(drawn, axis=0)) == len(SPACE.table)
    assert np.array_equal(drawn, act(controller, observation))


def test_interleaving_runs_blocks_in_turn() -> None:
    controller = build_controller("static:stem/0/0,static:local/0/0,random", SPACE, make_summary(), CONTEXT, block=2)
    assert isinstance(controller, InterleavedController)
    assert kind_of(controller) == "interleaved"
    state = controller.init(1, np.random.default_rng(0))
    turns, branches = [], []
    for _ in range(12):
        turns.append(controller.active(state))
        decision, state = controller.act(observe(), state)
        branches.append(int(decision[0, 0]))
    assert turns == [0, 0, 1, 1, 2, 2] * 2
    assert branches[:4] == branches[6:10] == [0, 0, 3, 3]


def test_interleaving_tells_every_learner_of_every_outcome() -> None:
    class Learner(StaticController):
        learns = True

        def init(self, n: int, rng: np.random.Generator) -> int:
            return 0

        def learn(self, outcomes: Outcomes, state: int) -> int:
            return state + len(outcomes)

    parts = [Learner(SPACE, Decision(0, 0, 0)), StaticController(SPACE, Decision(3, 0, 0))]
    controller = InterleavedController(parts, 3)
    check_controller(controller, SPACE)
    state = controller.learn(np.zeros(5, dtype=[("env", "i4")]), controller.init(1, np.random.default_rng(0)))
    assert state.states == (5, None)


@pytest.mark.parametrize("head", ["flat", "multi"])
def test_a_policy_decides_alike_alone_and_in_a_batch_and_after_saving(tmp_path: Path, head: str) -> None:
    policy = PolicyController("p", SPACE, random_net(head))
    batch = np.random.default_rng(1).random((500, obs.SIZE), dtype=np.float32)
    together = act(policy, batch)
    alone = np.concatenate([policy.act(batch[i : i + 1], None)[0] for i in range(len(batch))])
    assert np.array_equal(together, alone)
    assert len(np.unique(together, axis=0)) > 3
    save_policy(tmp_path / "policy.npz", "ppo", SPACE, policy.net)
    loaded = load_policy(tmp_path / "policy.npz")
    assert loaded.name == "ppo"
    assert loaded.space == SPACE
    assert np.array_equal(act(loaded, batch), together)


def test_a_run_folder_is_a_controller_for_its_own_space_only(tmp_path: Path) -> None:
    folder = tmp_path / "ppo-3"
    folder.mkdir()
    save_policy(folder / "policy.npz", "ppo", SPACE, random_net())
    assert build(str(folder)).name == "ppo-3"
    other = DecisionSpace(SPACE.branches, (0.0, 0.5, 1.01))
    with pytest.raises(ConfigError, match="another decision space"):
        build_controller(str(folder), other, make_summary(), CONTEXT)


def without_meta(net: PolicyNet) -> bytes:
    buffer = io.BytesIO()
    arrays = {
        f"{kind}{i}": array for i, layer in enumerate(net.layers) for kind, array in zip("wb", layer, strict=True)
    }
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def test_damaged_policies_are_refused(tmp_path: Path) -> None:
    save_policy(tmp_path / "good.npz", "ppo", SPACE, random_net())
    good = (tmp_path / "good.npz").read_bytes()
    for bad in (b"", b"not a zip", good[: len(good) // 2], without_meta(random_net())):
        with pytest.raises(DataError, match="train"):
            parse_policy(bad, "bad.npz")
    pickled = io.BytesIO()
    np.savez(pickled, meta=np.array([object()], dtype=object))
    with pytest.raises(DataError, match="train"):
        parse_policy(pickled.getvalue(), "bad.npz")


def test_policies_of_the_wrong_size_or_with_nan_are_refused() -> None:
    net = random_net()
    with pytest.raises(DataError, match="outputs"):
        PolicyController("p", SPACE, PolicyNet(net.layers[:2], "tanh", "flat"))
    weight, bias = net.layers[-1]
    with pytest.raises(DataError, match="finite"):
        PolicyController("p", SPACE, PolicyNet((*net.layers[:2], (weight * np.nan, bias)), "tanh", "flat"))


def test_light_controllers_import_nothing_heavy() -> None:
    code = (
        "import sys, adaptsplit.agents, adaptsplit.testing, adaptsplit.bundle;"
        "print(sorted({'torch', 'gymnasium', 'stable_baselines3', 'numba', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
