"""Published controllers: cases whose answer is known by hand, and convergence where theory gives one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from cases import observed, summary_from
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit import outcome
from adaptsplit.agents import ControllerContext, RewardWeights, build_controller, kind_of
from adaptsplit.agents.build import context_of
from adaptsplit.agents.published_base import Plans, nominal_link
from adaptsplit.agents.published_budget import DriftPlusPenalty
from adaptsplit.agents.published_change import MAP_BPS, ChangePoints, EdgentDynamic, EmaTrigger, variation
from adaptsplit.agents.published_controllers import PUBLISHED
from adaptsplit.agents.published_exit import DynaSplit, Edgent, Spinn, pareto
from adaptsplit.agents.published_horizon import RobustMpc, forecast, start_forecast
from adaptsplit.agents.published_rate import QuantPipe, RateState, kalman, slow_share
from adaptsplit.agents.published_split import Dads, Neurosurgeon, dsh
from adaptsplit.controller import Controller
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.profiles import ProfileSummary
from adaptsplit.scenario import load_scenario
from adaptsplit.testing import check_controller

CODECS = ("q2c-zstd", "q4c-zstd", "q8c-zstd")
BRANCHES = (
    BranchSpec("stem", "split", CODECS),
    BranchSpec("deep", "split", CODECS),
    BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="stem"),
    BranchSpec("local", "local"),
)
SPACE = DecisionSpace(BRANCHES, (0.0, 0.8, 1.01))
REUSE = DecisionSpace((*BRANCHES, BranchSpec("skip", "skip")), (0.0, 0.8, 1.01))
CONTEXT = ControllerContext(fps=5, deadline_s=0.25, goodput_bps=2e6, rtt_s=0.02, server_s=0.01, compute_w=2.0)
TX2 = load_scenario("published-tx2-vgg16")


def summary_of(space: DecisionSpace = SPACE) -> ProfileSummary:
    """Return a summary of the four branches (and ``skip``): better and slower from stem to local."""
    count = len(space.branches)
    exits = np.array([0.7, 0.8, 0.7, 0.97, 0.9])[:count]
    tail = np.array([[0.85, 0.9, 0.95], [0.88, 0.92, 0.96], [0.8, 0.97, 0.97], [0.97] * 3, [0.9] * 3])[:count]
    payload = np.array([[1e3, 2e3, 4e3], [5e2, 1e3, 2e3], [2e3, 2e4, 2e4], [0.0] * 3, [0.0] * 3])[:count]
    found = summary_from(tuple(branch.name for branch in space.branches), exits, tail, payload)
    return replace(found, head_s=np.array([0.02, 0.04, 0.02, 0.19, 0.0])[:count])


def build(name: str, space: DecisionSpace = SPACE, context: ControllerContext = CONTEXT) -> Controller:
    return build_controller(name, space, summary_of(space), context)


def observe(**given: float) -> NDArray[np.float32]:
    """Return one observation (1, D): idle link of 2 Mbit/s, fresh, no round trip or queue to speak of."""
    fresh = {"goodput_known": 1.0, "goodput_age": 0.1, "heard_age": 0.1, "rtt": 0.002, "server_queue": 0.001}
    return observed(CONTEXT, **{**fresh, **given})


def choose(controller: Controller, observation: NDArray[np.float32], space: DecisionSpace = SPACE) -> str:
    state = controller.init(len(observation), np.random.default_rng(0))
    return space.name(controller.act(observation, state)[0][0])


def tx2(name: str, goodput: float) -> str:
    """Return the branch that a controller takes on the published table at this goodput, bit/s."""
    controller = build_controller(name, TX2.space, TX2.summary(), context_of(TX2))
    return choose(controller, observe(goodput=goodput), TX2.space).split("/")[0]


def plans(
    device: list[float],
    bytes_: list[float],
    tail: list[float],
    quality: list[float],
    *,
    late: list[float] | None = None,
    sent: list[float] | None = None,
    context: ControllerContext = CONTEXT,
) -> Plans:
    """Return candidates 0, 1, ... by hand; what has no bytes sends nothing."""
    count = len(device)
    rows = np.column_stack([np.arange(count), np.zeros((count, 2), dtype=np.int64)])
    wire = np.array(bytes_, dtype=np.float64)
    share = (wire > 0.0).astype(np.float64) if sent is None else np.array(sent)
    arrays = (np.array(device), np.zeros(count), wire, np.array(tail), share, np.array(quality))
    return Plans(context, rows, *arrays, np.array(quality if late is None else late))


def picks(controller: Controller, observation: NDArray[np.float32]) -> int:
    return int(controller.act(observation, controller.init(1, np.random.default_rng(0)))[0][0, 0])


ORIGINALS = [name for name in PUBLISHED if name not in ("robust-mpc", "lyapunov", "temporal-decisions-style")]
VARIANTS = [
    *PUBLISHED,
    *(f"{name}:original=1" for name in ORIGINALS),
    "neurosurgeon:minimise=energy/rate=all",
    "dads:solver=dsh",
    "dynamic-split:ends=1",
    "edgent:order=quality/rate=all",
    "spinn-style:targets=latency+energy",
    "quantpipe:branch=deep/goal=deadline/pole=0.5",
    "quantpipe:rule=oneshot",
    "robust-mpc:robust=0/horizon=1",
    "lyapunov:limit=latency/v=1",
    "temporal-decisions-style:reference=frame",
]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_controller_keeps_the_contract_and_can_be_exported(name: str) -> None:
    controller = build(name, REUSE)
    assert controller.name == name
    assert kind_of(controller) == "rule"
    check_controller(controller, REUSE)
    # A bundle carries the summary as JSON and builds the rule from its name.
    carried = ProfileSummary.from_dict(summary_of(REUSE).to_dict())
    again = build_controller(name, REUSE, carried, CONTEXT)
    batch = np.random.default_rng(1).random((32, obs.SIZE), dtype=np.float32)
    one, other = (c.act(batch, c.init(32, np.random.default_rng(0)))[0] for c in (controller, again))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", VARIANTS[: len(PUBLISHED) - 1])
def test_rows_do_not_touch_each_other(name: str) -> None:
    controller = build(name)
    batch = np.random.default_rng(2).random((5, 8, obs.SIZE), dtype=np.float32)
    rng = np.random.default_rng(0)
    together, alone = controller.init(8, rng), controller.init(1, rng)
    for frame in batch:
        decisions, together = controller.act(frame, together)
        single, alone = controller.act(frame[3:4], alone)
        assert np.array_equal(decisions[3:4], single)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("neurosurgeon:minimise=cost", "minimise='cost'; expected one of latency, energy"),
        ("quantpipe:pole=1.5", "pole=1.5; expected 0 to 0.999"),
        ("edgent:margin_s=0.3", "margin_s leaves nothing of the deadline of 0.25 s"),
        ("dads:solvr=dsh", "did you mean 'solver'"),
        ("temporal-decisions-style", "has no skip branch"),
        ("quantpipe:branch=offload/original=1", "needs codecs with a bit width"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(name: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        build(name)


def test_an_unknown_branch_and_a_space_that_cannot_send_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'deeep'; did you mean 'deep'"):
        build("quantpipe:branch=deeep")
    alone = DecisionSpace((BRANCHES[0],), (0.0,))
    with pytest.raises(ConfigError, match="finds no decision that it may take"):
        build_controller("neurosurgeon", alone, replace_branches(1), CONTEXT)


def replace_branches(count: int) -> ProfileSummary:
    """Return the summary's first branches."""
    whole = summary_of()
    arrays = ("exit_quality", "tail_quality", "payload_bytes", "head_s", "encode_s", "tail_s", "exit_ratio")
    more = ("exit_quality_above", "exit_quality_below", "tail_quality_below", "confidence_mean")
    cut = {name: getattr(whole, name)[:count] for name in (*arrays, *more)}
    return replace(whole, branches=whole.branches[:count], **cut)


# Neurosurgeon, DADS and Dynamic Split Computing


@pytest.mark.parametrize(("goodput", "branch"), [(1e6, "local"), (10.4e6, "local"), (11.0e6, "input"), (8e7, "input")])
def test_neurosurgeon_moves_from_local_to_input_where_the_published_table_says(goodput: float, branch: str) -> None:
    # 8 (602284 + 96) bits / (0.4869 - 0.0 - 0.0368 s) = 10.71 Mbit/s.
    assert tx2("neurosurgeon:original=1", goodput) == branch


def test_neurosurgeon_takes_only_the_ends_of_vgg16_as_the_survey_warns() -> None:
    assert {tx2("neurosurgeon:original=1", g) for g in np.geomspace(1e4, 1e8, 25)} == {"input", "local"}


def test_neurosurgeon_minimises_energy_by_hand() -> None:
    # 13 W 0.4869 s = 6.33 J on the device; 4.82 Mbit at 0.283 uJ/bit + 0.133 W 0.48 s = 1.43 J on the link.
    assert tx2("neurosurgeon:minimise=energy/probe_s=0", 1e7) == "input"
    # At 0.05 Mbit/s sending takes 96 s and 12.8 J + 1.4 J; p21 sends 0.133 Mbit in 2.7 s: 6.29 + 0.39 > 6.33.
    assert tx2("neurosurgeon:minimise=energy/probe_s=0", 5e4) == "local"


@pytest.mark.parametrize(("goodput", "branch"), [(9e6, "p21"), (12e6, "p19"), (36e6, "p19"), (40e6, "p14")])
def test_dynamic_split_takes_the_natural_bottlenecks_of_vgg16(goodput: float, branch: str) -> None:
    # Smaller than the input and all before: p14 (401581 B), p19 (100525), p21 (16552). They change over at
    # 8 (401581 - 100525) / (0.4186 - 0.3548) = 37.7 and 8 (100525 - 16552) / (0.4839 - 0.4186) = 10.3 Mbit/s.
    assert tx2("dynamic-split:original=1", goodput) == branch


def test_a_backlog_counts_unless_the_original_is_asked_for() -> None:
    both = plans([0.02, 0.1], [1000, 0], [0.01, 0.0], [1.0, 1.0])
    busy = observe(goodput=1e6, backlog=0.5)
    assert picks(Neurosurgeon(both, "latency"), busy) == 1
    assert picks(Neurosurgeon(both, "latency", original=True), busy) == 0


def test_a_rule_that_stays_on_the_device_probes_an_old_idle_link_only() -> None:
    both = plans([0.02, 0.1], [1000, 0], [0.01, 0.0], [1.0, 1.0])
    rule = Neurosurgeon(both, "latency", probe_s=5.0)
    assert picks(rule, observe(goodput=2e4, goodput_age=6.0)) == 0
    assert picks(rule, observe(goodput=2e4, goodput_age=4.0)) == 1
    assert picks(rule, observe(goodput=2e4, goodput_age=6.0, backlog=0.3)) == 1
    assert picks(Neurosurgeon(both, "latency"), observe(goodput=2e4, goodput_age=40.0)) == 1


def test_a_cut_that_cannot_keep_up_with_the_camera_is_left_out_unless_asked_for() -> None:
    fast = CONTEXT.model_copy(update={"fps": 10.0})
    slow_link = observe(goodput=2e4)
    assert choose(build("neurosurgeon:probe_s=0", context=fast), slow_link) == "deep/2/1.01"
    assert choose(build("neurosurgeon:probe_s=0/pace=0", context=fast), slow_link) == "local/0/0"


def test_dads_goes_heavy_when_the_light_plan_cannot_keep_up() -> None:
    # Stages at 1 Mbit/s: A 0.05, 0.05, 0.25 (sum 0.35, slowest 0.25); B 0.18, 0.1, 0.18 (sum 0.46, slowest 0.18).
    for fps, expected in ((2.0, 0), (3.9, 0), (4.1, 1), (100.0, 1)):
        context = CONTEXT.model_copy(update={"fps": fps})
        two = plans([0.05, 0.18], [6250, 12500], [0.25, 0.18], [1.0, 1.0], context=context)
        assert picks(Dads(two), observe(goodput=1e6)) == expected


def test_dsh_is_within_three_of_the_exact_bottleneck_and_misses_it_where_no_sum_can_find_it() -> None:
    times = np.random.default_rng(0).lognormal(sigma=1.5, size=(3, 200, 12))
    rows = np.arange(200)
    slowest = times.max(axis=0)
    found, best = slowest[rows, dsh(*times)], slowest.min(axis=1)
    assert np.all(found <= 3.0 * best)
    assert np.mean(found > best) < 0.5
    # No weighted sum prefers (6, 6) to (1, 9) or (9, 1): it lies above the line between them.
    cut = np.array([[[1.0, 6.0, 9.0]], [[9.0, 6.0, 1.0]], [[1e-9] * 3]])
    assert dsh(*cut)[0] != 1
    assert cut.max(axis=0).argmin() == 1


# Edgent, SPINN, DynaSplit


def edgent(original: bool = False) -> Edgent:
    """Return two cuts of the whole network and two exits on the device, 0.1 s and 0.03 s; goal 0.25 s."""
    four = plans([0.02, 0.04, 0.1, 0.03], [10000, 2000, 0, 0], [0.01, 0.01, 0, 0], [0.95, 0.95, 0.8, 0.7])
    return Edgent(four, np.array([0, 0, 1, 2]), 0.25, original=original)


@pytest.mark.parametrize(("goodput", "expected"), [(1e8, 0), (5e6, 0), (1e6, 1), (1e5, 1)])
def test_edgent_takes_the_deepest_exit_whose_best_partition_is_in_time(goodput: float, expected: int) -> None:
    # Both cuts answer alike; with 0.003 s of round trip and queue they take, in s: at 100 Mbit/s 0.034 and 0.053,
    # at 5 Mbit/s 0.049 and 0.056, at 1 Mbit/s 0.113 and 0.069, at 0.1 Mbit/s 0.83 and 0.213.
    assert picks(edgent(), observe(goodput=goodput)) == expected


def test_edgent_falls_to_the_next_exit_and_at_last_to_the_fastest_or_the_shallowest() -> None:
    assert picks(edgent(), observe(goodput=5e4)) == 2
    # A frame that has waited for 0.2 s: only the shallow exit is left.
    assert picks(edgent(), observe(goodput=5e4, frame_wait=0.2)) == 3
    # Nothing is in time: the cut takes 0.01 s, the exit 0.03 s.
    two = plans([0.005, 0.03], [1000, 0], [0.001, 0.0], [0.95, 0.7])
    assert picks(Edgent(two, np.array([0, 1]), 0.001), observe(goodput=1e8)) == 0
    assert picks(Edgent(two, np.array([0, 1]), 0.001, original=True), observe(goodput=1e8)) == 1


def test_edgent_by_name_orders_exits_by_depth() -> None:
    assert choose(build("edgent"), observe(goodput=1e8)).startswith(("stem/2/1.01", "offload/1/1.01", "deep/2/1.01"))
    assert choose(build("edgent:pace=0/probe_s=0"), observe(goodput=1.2e4)) == "local/0/0"
    late = observe(goodput=1.2e4, frame_wait=0.1)
    assert choose(build("edgent:probe_s=0"), late) == "deep/0/0"


def test_spinn_orders_targets_among_what_is_in_time() -> None:
    # Cut 0 is best but slow at 1 Mbit/s (0.33 s); cut 1 is 0.002 worse with half the server's work; exit 0.7.
    three = plans([0.02, 0.04, 0.03], [37500, 2000, 0], [0.01, 0.005, 0.0], [0.96, 0.958, 0.7])
    rule = Spinn(three, ("accuracy", "server"), goal_s=0.25)
    assert picks(rule, observe(goodput=1e6)) == 1
    assert picks(rule, observe(goodput=1e7)) == 0
    slack = Spinn(three, ("accuracy", "server"), goal_s=0.25, slack=0.1)
    assert picks(slack, observe(goodput=1e7)) == 1
    assert picks(Spinn(three, ("energy",), goal_s=0.25), observe(goodput=1e7)) == 0
    assert picks(rule, observe(goodput=1e7, heard_age=3.0)) == 2


def test_spinn_limits_a_frame_that_is_sent_and_originally_the_mean() -> None:
    # A tenth of the frames is sent and takes 0.33 s; the mean is 0.05 s.
    two = plans([0.02, 0.03], [37500, 0], [0.01, 0.0], [0.96, 0.7], sent=[0.1, 0.0])
    link = observe(goodput=1e6)
    assert picks(Spinn(two, ("accuracy",), goal_s=0.25), link) == 1
    assert picks(Spinn(two, ("accuracy",), goal_s=0.25, original=True), link) == 0


def test_pareto_by_hand_and_dynasplit_takes_the_least_energy_in_time() -> None:
    costs = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    assert pareto(costs).tolist() == [True, True, True, False, True]
    # Energies 2 W x 0.02, 0.1 and 0.2 s; at 0.1 Mbit/s the first takes 0.4 s.
    three = plans([0.02, 0.1, 0.2], [5000, 0, 0], [0.0, 0.0, 0.0], [0.9, 0.9, 0.9])
    rule = DynaSplit(three, 0.25)
    assert [picks(rule, observe(goodput=g)) for g in (2e6, 1e5)] == [0, 1]
    assert picks(rule, observe(goodput=1e5, frame_wait=0.2)) == 1
    assert picks(DynaSplit(three, 0.25, original=True), observe(goodput=1e5)) == 0


# QuantPipe


def test_the_kalman_filter_by_hand() -> None:
    state = RateState(np.array([2.0]), np.zeros(1), np.ones(1), np.zeros(1))
    base, variance = kalman(state, np.array([8.0]), 0.0, 1.0)
    # gain = 1 * 2 / (4 * 1 + 1) = 0.4; base = 0.4 * 8; variance = 1 - 0.4 * 2.
    assert base == pytest.approx([3.2])
    assert variance == pytest.approx([0.2])


def test_two_speed_ups_mix_to_the_time_that_is_wanted() -> None:
    slow, fast, wanted = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 4.0]), np.array([1.5, 4.0, 4.0])
    share = slow_share(slow, fast, wanted)
    assert share == pytest.approx([1.0 / 3.0, 0.0, 1.0])
    assert share / slow + (1.0 - share) / fast == pytest.approx(1.0 / wanted)


def three_rates() -> Plans:
    return plans([0.02] * 3, [4000, 2000, 1000], [0.01] * 3, [0.95, 0.9, 0.85])


@pytest.mark.parametrize("pole", [0.0, 0.3, 0.8])
def test_the_error_shrinks_by_the_pole_at_each_step(pole: float) -> None:
    rule = QuantPipe(three_rates(), np.array([1.0, 2.0, 4.0]), 5.0, pole=pole, unit=1.0)
    state = RateState(np.ones(1), np.array([2.0]), np.full(1, 1e-12), np.zeros(1))
    errors = []
    for _ in range(6):
        errors.append(5.0 - 2.0 * state.speedup[0])
        state = rule.controlled(2.0 * state.speedup, state)
    assert errors == pytest.approx([3.0 * pole**k for k in range(6)], abs=1e-3)


def test_quantpipe_meets_the_reference_in_the_mean() -> None:
    rule = QuantPipe(three_rates(), np.array([1.0, 2.0, 4.0]), 5.0, pole=0.0, unit=5.0)
    # 96 kbit/s carry 3 messages of 4000 bytes per second: 5/3 is wanted, a mix of 1 and 2.
    state, sizes = rule.init(1, np.random.default_rng(0)), []
    for _ in range(400):
        decision, state = rule.act(observe(goodput=96e3), state)
        sizes.append(float(rule.plans.wire_bytes[decision[0, 0]]))
    assert state.speedup == pytest.approx([5.0 / 3.0], rel=1e-3)
    assert set(sizes[100:]) == {4000.0, 2000.0}
    assert 96e3 / (8.0 * np.mean(sizes[100:])) == pytest.approx(5.0, rel=0.01)


def test_one_shot_takes_the_largest_message_that_fits() -> None:
    rule = build("quantpipe:rule=oneshot/branch=stem")
    sizes = []
    for goodput in (1e6, 1e5, 5e4, 2e4):
        sizes.append(choose(rule, observe(goodput=goodput)).split("/")[1])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == "2"
    assert sizes[-1] == "0"


# SCIoT's trigger and Edgent's change points


def run_goodput(rule: Controller, goodputs: list[float]) -> list[int]:
    state, taken = rule.init(1, np.random.default_rng(0)), []
    for goodput in goodputs:
        decision, state = rule.act(observe(goodput=goodput), state)
        taken.append(int(decision[0, 0]))
    return taken


def test_variation_by_hand() -> None:
    window = np.array([[np.nan, 1.0, 3.0], [2.0, 2.0, 2.0]])
    assert variation(window) == pytest.approx([0.5, 0.0])


def test_the_trigger_ignores_small_changes_and_sees_a_drift_only_when_mended() -> None:
    # Sending 2000 bytes takes 0.02 + 0.01 + 16 kbit / g (+ 0.003): less than 0.1 s above about 240 kbit/s.
    both = plans([0.02, 0.1], [2000, 0], [0.01, 0.0], [1.0, 1.0])
    calm = [500e3 * (1.0 + 0.05 * (-1) ** k) for k in range(40)]
    assert set(run_goodput(EmaTrigger(both), calm)) == {0}
    drift = [500e3 * 0.98**k for k in range(120)]  # 2 % a frame: the last ten vary by 6 %
    assert run_goodput(EmaTrigger(both), drift)[-1] == 1
    assert run_goodput(EmaTrigger(both, original=True), drift)[-1] == 0
    jump = [500e3] * 20 + [50e3] * 20
    assert run_goodput(EmaTrigger(both, original=True), jump)[-1] == 1


def test_the_predictive_density_integrates_to_one_and_the_first_update_is_the_conjugate_one() -> None:
    points = ChangePoints(0.0, 100.0)
    runs = points.start(1)
    x = np.sinh(np.linspace(-8.0, 8.0, 2001))  # wide: Student's t of 2 degrees of freedom
    density = points.predictive(points.start(len(x)), x)[:, 0]
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=2e-3)
    after = points.update(runs, np.array([1.05]))
    assert after.probability.sum() == pytest.approx(1.0)
    assert after.probability[0, 0] == pytest.approx(0.01)
    assert after.mean[0, 1] == pytest.approx(1.05 / 1.05)  # (kappa mu + x) / (kappa + 1), kappa = 0.05
    assert after.beta[0, 1] == pytest.approx(0.05 + 0.05 * 1.05**2 / 2.1)


def test_a_jump_is_found_within_three_samples_and_steady_noise_is_none() -> None:
    rng, points = np.random.default_rng(0), ChangePoints(0.0, 100.0)
    runs = points.start(50)
    for _ in range(40):
        runs = points.update(runs, rng.normal(0.0, 0.2, 50))
    assert np.mean(runs.longest() >= 35) > 0.9
    for _ in range(3):
        runs = points.update(runs, rng.normal(2.0, 0.2, 50))
    assert np.mean(runs.longest() <= 3) > 0.95
    assert np.abs(runs.level() - 2.0).max() < 0.5


def test_edgent_dynamic_follows_the_state_and_the_original_keeps_it_between_changes() -> None:
    both = plans([0.02, 0.1], [2000, 0], [0.01, 0.0], [0.9, 0.8])
    table = (MAP_BPS < 1e6).astype(np.int64)  # below 1 Mbit/s the device, above it the edge
    points = ChangePoints(math.log(2e6), 100.0)
    jump = [2e6] * 20 + [1e5] * 5 + [2e6] * 5
    taken = run_goodput(EdgentDynamic(both, table, points), jump)
    assert (taken[19], taken[24], taken[29]) == (0, 1, 0)
    creep = [2e6 * 0.97**k for k in range(40)]
    assert run_goodput(EdgentDynamic(both, table, points), creep)[-1] == 1
    states = []
    for original in (False, True):
        rule = EdgentDynamic(both, table, points, original=original)
        state = rule.init(1, np.random.default_rng(0))
        for sample in (0.0,) * 20 + (0.05,):
            before, state = state, rule.sampled(np.array([sample]), np.ones(1, dtype=np.bool_), state)
        states.append(float(state.state[0] - before.state[0]))
        _, later = rule.act(observe(goodput=2e6, goodput_age=3.0), state)
        assert np.array_equal(later.runs.mean, state.runs.mean) == original  # no fresh acknowledgement
    # Means of 20 and of 21 samples with the prior ln(2e6) at weight 0.05.
    prior = 0.05 * math.log(2e6)
    assert states[0] == pytest.approx((prior + 0.05) / 21.05 - prior / 20.05)
    assert states[1] == 0.0


def test_the_configuration_map_takes_the_edge_only_where_it_is_in_time() -> None:
    context = CONTEXT.model_copy(update={"deadline_s": 0.15})  # local takes 0.191 s
    rule = build("edgent-dynamic-style", context=context)
    assert isinstance(rule, EdgentDynamic)
    latency = rule.plans.latency(nominal_link(CONTEXT, MAP_BPS))
    chosen = latency[np.arange(len(MAP_BPS)), rule.table]
    assert np.all(chosen <= 0.15)
    quality = rule.plans.quality[rule.table]
    assert np.all(np.diff(quality) >= 0.0)
    assert quality[[0, -1]] == pytest.approx([0.8, 0.97])  # the deep exit; the image at full rate


# RobustMPC


def test_the_forecast_is_the_harmonic_mean_over_one_plus_the_worst_error() -> None:
    state = start_forecast(1)
    first, state = forecast(state, np.array([2e6]))
    assert first == pytest.approx([2e6])
    second, state = forecast(state, np.array([1e6]))  # predicted 2 Mbit/s, got 1: error 1; mean 2 / (1/2 + 1) = 4/3
    assert second == pytest.approx([4e6 / 3.0 / 2.0])
    plain, _ = forecast(state, np.array([1e6]), robust=False)
    assert plain == pytest.approx([1.2e6])
    for _ in range(11):
        last, state = forecast(state, np.array([1e6]))
    assert last == pytest.approx([1e6])


def by_force(rule: RobustMpc, goodput: float, backlog: float, steps: int) -> tuple[float, list[float]]:
    """Return the best value over ``steps`` frames and the best per first decision, by every sequence."""
    link = nominal_link(CONTEXT, np.array([goodput]))
    count = len(rule.plans.sent)
    best = [-math.inf] * count
    for sequence in itertools.product(range(count), repeat=steps):
        total, now = 0.0, backlog
        for c in sequence:
            reward, after = rule.step(link, np.array([[[now]]]), np.zeros((1, 1, 1)))
            total, now = total + reward[0, 0, c], float(after[0, 0, c])
        best[sequence[0]] = max(best[sequence[0]], total)
    return max(best), best


@pytest.mark.parametrize("goodput", [6e4, 1.5e5, 4e5])
def test_robust_mpc_agrees_with_every_sequence_enumerated(goodput: float) -> None:
    three = plans([0.03, 0.02, 0.02], [0, 2000, 6000], [0, 0.01, 0.01], [0.7, 0.85, 0.95], late=[0.7, 0.6, 0.6])
    rule = RobustMpc(three, horizon=4)
    for backlog in np.linspace(0.0, 0.5, 11):
        link = replace(nominal_link(CONTEXT, np.array([goodput])), backlog=np.array([[backlog]]))
        most, each = by_force(rule, goodput, float(backlog), 4)
        assert each[int(rule.choose(link)[0])] >= most - 0.01


def test_looking_ahead_spares_the_backlog_that_a_greedy_choice_fills() -> None:
    # At 120 kbit/s 3000 bytes take 0.2 s: in time now, but the next frame, 0.1 s on, finds 0.1 s of backlog and would
    # take 0.32 s. 1500 bytes take 0.1 s, which the link sustains.
    context = CONTEXT.model_copy(update={"fps": 10.0})
    two = plans([0.0, 0.0], [1500, 3000], [0.0, 0.0], [0.9, 0.95], late=[0.3, 0.3], context=context)
    link = nominal_link(context, np.array([120e3]))
    assert RobustMpc(two, horizon=1).choose(link)[0] == 1
    assert RobustMpc(two, horizon=6).choose(link)[0] == 0


def test_undominated_candidates_hold_the_best_of_all() -> None:
    weights = RewardWeights(energy_per_j=0.3, bytes_per_kib=0.002)
    context = CONTEXT.model_copy(update={"weights": weights})
    rule = build("robust-mpc:horizon=1", context=context)
    assert isinstance(rule, RobustMpc)
    assert 1 < len(rule.plans.sent) < len(SPACE.table)


# Lyapunov


def spend(controller: Controller, frames: int, energies: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Run one row; each decision spends ``energies`` of its place in the table. Return what was spent, and Z."""
    rng = np.random.default_rng(3)
    state, spent = controller.init(1, rng), []
    places = {tuple(row): i for i, row in enumerate(SPACE.table.tolist())}
    for _ in range(frames):
        decision, state = controller.act(observe(goodput=float(rng.lognormal(13.0, 1.0))), state)
        record = outcome.empty(1)
        record["compute_j"] = energies[places[tuple(decision[0].tolist())]] * rng.uniform(0.8, 1.2)
        record["radio_j"] = 0.0
        spent.append(float(record["compute_j"][0]))
        state = controller.learn(record, state)
    return np.array(spent), float(state.debt[0])


@pytest.mark.parametrize("v", [1.0, 10.0, 100.0])
def test_drift_plus_penalty_keeps_the_average_within_the_budget(v: float) -> None:
    controller = build(f"lyapunov:budget=0.1/v={v:g}")
    assert isinstance(controller, DriftPlusPenalty)
    energies = controller.plans.energy(nominal_link(CONTEXT, np.array([1e6])))[0]
    spent, debt = spend(controller, 1500, energies)
    # The inequality of the virtual queue holds on every path; the debt is bounded by V, so it vanishes over time.
    assert spent.mean() <= 0.1 * (1.0 + debt / len(spent)) + 1e-9
    assert spent.mean() <= 0.1 * 1.05
    assert debt <= 3.0 * v + 5.0


def test_a_tight_budget_binds_and_a_loose_one_changes_nothing() -> None:
    energies = build("lyapunov").plans.energy(nominal_link(CONTEXT, np.array([1e6])))[0]  # type: ignore[attr-defined]
    tight, _ = spend(build("lyapunov:budget=0.06"), 400, energies)
    loose, debt = spend(build("lyapunov:budget=10"), 400, energies)
    assert tight.mean() < 0.066
    assert loose.mean() > 1.5 * tight.mean()
    assert debt == 0.0


def test_debt_by_hand_and_a_missed_frame_costs_the_deadline() -> None:
    controller = build("lyapunov:limit=latency/budget=0.1")
    records = outcome.empty(3)
    records["env"] = (0, 1, 1)
    records["path"][1:] = outcome.Path.EXIT
    records["answer_latency_s"][1:] = (0.05, 0.3)
    state = controller.learn(records, controller.init(2, np.random.default_rng(0)))
    # Row 0: 0.25 / 0.1 - 1; row 1: max(0.5 - 1, 0) + 3 - 1.
    assert state.debt == pytest.approx([1.5, 2.0])


# Temporal Decisions


def skips(name: str, changes: list[float], held: float = 0.2) -> list[bool]:
    controller = build(name, REUSE)
    state, taken = controller.init(1, np.random.default_rng(0)), []
    for change in changes:
        decision, state = controller.act(observe(difference=change, held_age=held), state)
        taken.append(REUSE.branches[int(decision[0, 0])].name == "skip")
    return taken


def test_a_scene_lasts_until_the_changes_add_up_to_the_threshold() -> None:
    assert skips("temporal-decisions-style:threshold=0.1", [0.03] * 9) == [False, True, True, True] * 2 + [False]
    assert skips("temporal-decisions-style:threshold=0.1/reference=frame", [0.03] * 9) == [False] + [True] * 8
    assert skips("temporal-decisions-style:threshold=0.1", [0.0, 0.2, 0.0]) == [False, False, True]


def test_nothing_is_reused_when_no_answer_is_held() -> None:
    assert not any(skips("temporal-decisions-style", [0.0] * 5, held=2.0))
