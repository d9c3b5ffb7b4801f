"""Online learning: the frozen policy when nothing is known, the filter against its closed form, exploration, drops,
probes, a shift that it must find, the file, live logs, and a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import SPACE, make_paced_summary
from numpy.typing import NDArray
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit import outcome
from adaptsplit.agents import ControllerContext, DecisionModel, PolicyController, PolicyNet, RewardWeights, save_policy
from adaptsplit.agents.build import build_controller, context_of, make_controller
from adaptsplit.agents.online import RING, OnlineController, build_online
from adaptsplit.agents.online_file import parse_online
from adaptsplit.agents.online_log import estimate_gain, learn_frames, read_frames, with_lessons
from adaptsplit.agents.online_model import CONTEXTS
from adaptsplit.agents.online_run import learn_from_logs, online_of, tau_of
from adaptsplit.agents.online_state import Deployment, Lessons, OnlineParameters, OnlineState
from adaptsplit.agents.online_view import GOODPUTS, View
from adaptsplit.agents.policy import PARSERS, Head, load_policy
from adaptsplit.agents.policy_file import read_policy
from adaptsplit.agents.prediction import nominal_observation
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.device_bridge.decider import STATE_FILE, Decider
from adaptsplit.device_bridge.learner_state import load_learned, save_learned
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.envs.runner import Delivery
from adaptsplit.envs.simulator import Simulator
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.guard import GuardLimits, guard_learned
from adaptsplit.outcome import Outcomes
from adaptsplit.outcome import Path as Route
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller, extreme_observations

Floats32 = NDArray[np.float32]

CONTEXT = ControllerContext(
    fps=10,
    deadline_s=0.25,
    goodput_bps=2e6,
    rtt_s=0.06,
    server_s=0.01,
    compute_w=2.5,
    weights=RewardWeights(energy_per_j=0.2),
)
QUIET = {"share": 0.0, "probe_s": 0.0}


def random_net(space: DecisionSpace, head: Head, seed: int = 0) -> PolicyNet:
    rng = np.random.default_rng(seed)
    outputs = len(space.table) if head == "flat" else sum(space.shape)
    sizes = [(obs.SIZE, 16), (16, outputs)]
    layers = tuple((rng.normal(size=s).astype(np.float32), rng.normal(size=s[1]).astype(np.float32)) for s in sizes)
    return PolicyNet(layers, "tanh", head)


def fixed_net(space: DecisionSpace, name: str, by: float = 1.0) -> PolicyNet:
    """A policy that always takes one decision, ``by`` ahead of the others, over a hidden layer that shows the input."""
    outputs = np.zeros(len(space.table), dtype=np.float32)
    d = space.parse(name)
    outputs[np.flatnonzero((space.table == (d.branch, d.rate, d.threshold)).all(axis=1))[0]] = by
    hidden = np.eye(obs.SIZE, 12, dtype=np.float32)
    last = np.zeros((12, len(outputs)), dtype=np.float32)
    return PolicyNet(((hidden, np.zeros(12, dtype=np.float32)), (last, outputs)), "tanh", "flat")


def make(net: PolicyNet, **given: float) -> OnlineController:
    policy = PolicyController("p", SPACE, net)
    return build_online("online-p", policy, make_paced_summary(), CONTEXT, OnlineParameters(**given))


def batch(n: int, seed: int = 1) -> Floats32:
    return np.random.default_rng(seed).random((n, obs.SIZE), dtype=np.float32)


def paid(decisions: NDArray[np.int64], confidence: NDArray[np.float64] | float, frame: int = 0) -> Outcomes:
    """Answers of the exits to (n, 3) decisions, without any cost."""
    out = outcome.empty(len(decisions))
    out["env"], out["frame"] = np.arange(len(decisions)), frame
    out["branch"], out["rate"] = decisions[:, 0], decisions[:, 1]
    out["threshold"] = np.array(SPACE.thresholds)[decisions[:, 2]]
    out["patience"], out["path"], out["confidence"], out["quality"] = 1.0, Route.EXIT, confidence, np.nan
    return out


# ---- the frozen policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["multi", "flat"])
def test_it_is_the_frozen_policy_until_it_knows_better(head: Head) -> None:
    net = random_net(SPACE, head)
    frozen, online = PolicyController("p", SPACE, net), make(net, **QUIET)
    rows = np.concatenate([batch(500), extreme_observations()])
    wanted = frozen.act(rows, None)[0]
    assert np.array_equal(online.act(rows, online.init(len(rows), np.random.default_rng(0)))[0], wanted)
    one = [online.act(rows[i : i + 1], online.init(1, np.random.default_rng(0)))[0][0] for i in range(100)]
    assert np.array_equal(np.array(one), wanted[:100])


def test_preferences_are_the_best_of_the_grid_points_that_do_the_same() -> None:
    net = random_net(SPACE, "multi", 3)
    rows = batch(50)
    output = PolicyController("p", SPACE, net).outputs(rows)
    b, r, t = np.split(output, np.cumsum(SPACE.shape)[:2], axis=1)
    grid = (b[:, :, None, None] + r[:, None, :, None] + t[:, None, None, :]).reshape(50, -1)
    wanted = np.stack([grid[:, (SPACE.grid == row).all(axis=1)].max(axis=1) for row in SPACE.table], axis=1)
    seen = make(net, tau=0.5).model.see(rows)
    assert seen.margin == pytest.approx(0.5 * (wanted - wanted.max(axis=1, keepdims=True)), abs=1e-5)


@pytest.mark.parametrize("head", ["multi", "flat"])
def test_contract(head: Head) -> None:
    check_controller(make(random_net(SPACE, head)), SPACE)
    check_controller(make(random_net(SPACE, head), share=1.0, probe_s=0.05, caution=0.0, trust=0.1), SPACE)


# ---- the filter ---------------------------------------------------------------------------------------------------


def test_the_filter_is_bayesian_regression_when_nothing_is_forgotten() -> None:
    online = make(random_net(SPACE, "flat"), memory=1e15, noise=0.2)
    d = online.model.size
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, d)), rng.normal(size=80)
    theta, covariance = np.zeros((1, d)), np.eye(d)[None]
    for i in range(80):
        online.update(theta, covariance, np.array([0]), x[i : i + 1], y[i : i + 1])
    precision = np.eye(d) + x.T @ x / 0.04
    assert covariance[0] == pytest.approx(np.linalg.inv(precision), abs=1e-7)
    assert theta[0] == pytest.approx(np.linalg.solve(precision, x.T @ y / 0.04), abs=1e-6)


def test_what_was_learned_fades_at_the_stated_rate_and_the_covariance_stays_bounded() -> None:
    online = make(random_net(SPACE, "flat"), memory=50.0)
    d = online.model.size
    theta, covariance = np.full((1, d), 2.0), np.zeros((1, d, d))
    for _ in range(100):
        online.update(theta, covariance, np.array([0]), np.zeros((1, d)), np.array([9.0]))
    assert theta[0] == pytest.approx(np.full(d, 2.0 * np.exp(-2.0)))
    assert covariance[0] == pytest.approx((1.0 - np.exp(-4.0)) * np.eye(d))


def test_the_policys_own_decision_teaches_the_context_only() -> None:
    online = make(random_net(SPACE, "flat"), **QUIET)
    state = online.init(1, np.random.default_rng(0))
    for i in range(30):
        decision, state = online.act(batch(1, i), state)
        state = online.learn(paid(decision, 0.3), state)
    assert np.abs(state.theta[0, :CONTEXTS]).max() > 0.1
    assert np.abs(state.theta[0, CONTEXTS:]).max() == 0.0
    assert state.taught[0] == 30


# ---- the view of the profile --------------------------------------------------------------------------------------


def test_the_view_is_the_models_prediction_at_its_points_and_both_paths_agree() -> None:
    model = DecisionModel(SPACE, make_paced_summary(), CONTEXT)
    view = View.of(model)
    rows = np.repeat(nominal_observation(CONTEXT), GOODPUTS, axis=0)
    rows[:, obs.index("goodput")] = np.linspace(0.0, 1.0, GOODPUTS)
    rows[:, obs.index("goodput_known")], rows[:, obs.index("goodput_age")] = 1.0, 0.0
    # The smallest age that an observation can show is 50 ms: a little of the prior comes in.
    assert view(rows) == pytest.approx(model.expected(rows.astype(np.float32)), abs=0.02)
    many = np.concatenate([batch(200), extreme_observations()])
    assert np.concatenate([view(many[i : i + 1]) for i in range(len(many))]) == pytest.approx(view(many), abs=1e-9)


# ---- learning, exploring, probing ---------------------------------------------------------------------------------


def play(
    online: OnlineController, good: int, frames: int, state: OnlineState | None = None
) -> tuple[float, OnlineState]:
    """In a world where branch ``good`` answers with 0.9 and all else with 0.8: its share of the last third."""
    hits = []
    state = state or online.init(8, np.random.default_rng(0))
    rows = np.repeat(nominal_observation(CONTEXT), 8, axis=0).astype(np.float32)
    for frame in range(frames):
        decision, state = online.act(rows, state)
        right = decision[:, 0] == good
        state = online.learn(paid(decision, np.where(right, 0.9, 0.8), frame), state)
        hits.append(right)
    return float(np.mean(hits[-frames // 3 :])), state


def test_it_finds_what_the_policy_does_not_take_and_comes_back_when_that_ends() -> None:
    online = make(fixed_net(SPACE, "stem/2/0.9"), epsilon=0.02, share=0.1, probe_s=0.0)
    found, state = play(online, 1, 300)
    assert found > 0.85
    back, _ = play(online, 0, 300, state)
    assert back > 0.85
    unmoved, _ = play(make(fixed_net(SPACE, "stem/2/0.9"), **QUIET), 1, 300)
    assert unmoved == 0.0


def test_explorations_are_few_and_nearly_as_good_by_one_of_the_two_predictions() -> None:
    online = make(fixed_net(SPACE, "stem/2/0.9"), epsilon=0.004, share=0.1, probe_s=0.0)
    state = online.init(16, np.random.default_rng(0))
    own = online.model.see(batch(1)).own[0]
    for frame in range(100):
        rows = batch(16, frame)
        seen = online.model.see(rows)
        value = online.model.values(rows, seen, state.theta)
        decision, state = online.act(rows, state)
        place = np.array([np.flatnonzero((SPACE.table == row).all(axis=1))[0] for row in decision])
        near = value[np.arange(16), place] >= value.max(axis=1) - 0.004 - 1e-9
        assert (near | (place == seen.predicted.argmax(axis=1)) | (place == own)).all()
        state = online.learn(paid(decision, 0.8, frame), state)
    assert state.explored.min() >= 5
    assert state.explored.max() <= 0.1 * 100 + 1


def test_a_dropped_frame_counts_against_the_decision_before_it() -> None:
    online = make(random_net(SPACE, "flat"), **QUIET)
    lost = outcome.empty(1)
    states = []
    for drop in (False, True):
        state = online.init(1, np.random.default_rng(0))
        decision, state = online.act(batch(1), state)
        records = paid(decision, 0.9)
        state = online.learn(np.concatenate([records, lost]) if drop else records, state)
        states.append(state)
    assert [int(state.taught[0]) for state in states] == [1, 2]
    assert states[1].theta[0, 0] < states[0].theta[0, 0]
    early = online.learn(lost, online.init(1, np.random.default_rng(0)))
    assert early.taught[0] == 0  # nobody has decided yet


def test_the_reward_needs_no_label_and_late_outcomes_find_their_decision() -> None:
    online = make(fixed_net(SPACE, "stem/2/0.9"), **QUIET)
    records = paid(SPACE.table[:1], 0.8)
    records["compute_j"] = 0.5
    assert online.reward(records)[0] == pytest.approx(0.8 - 0.2 * 0.5)
    state, rows = online.init(1, np.random.default_rng(0)), batch(3)
    decisions = []
    for i in range(3):
        decision, state = online.act(rows[i : i + 1], state)
        decisions.append(decision)
    contexts = [entry.x[0] for entry in state.waiting]
    after = online.learn(paid(decisions[0], 0.8), state)
    expected = online.init(1, np.random.default_rng(0))
    theta, covariance = expected.theta.copy(), expected.covariance.copy()
    online.update(theta, covariance, np.array([0]), contexts[0][None], np.array([0.8]))
    assert after.theta == pytest.approx(theta, abs=1e-6)
    assert len(after.waiting) == 2


def test_what_waits_is_bounded() -> None:
    online = make(random_net(SPACE, "multi"))
    state = online.init(2, np.random.default_rng(0))
    for i in range(RING + 20):
        _, state = online.act(batch(2, i), state)
    assert len(state.waiting) == RING


def test_a_probe_is_sent_when_the_estimate_starves_and_not_more_often() -> None:
    online = make(fixed_net(SPACE, "local/0/0"), share=0.0, probe_s=0.5)
    rows = nominal_observation(CONTEXT).astype(np.float32)
    rows[:, obs.index("goodput_age")], rows[:, obs.index("unacked_count")] = 1.0, 0.0
    smallest = SPACE.table[online.deployment.probe]
    assert SPACE.name(smallest) == "deep/0/1.01"
    state, probed = online.init(1, np.random.default_rng(0)), []
    for _ in range(20):
        decision, state = online.act(rows, state)
        probed.append(bool((decision[0] == smallest).all()))
    assert np.flatnonzero(probed).tolist() == [5, 10, 15]
    rows[:, obs.index("unacked_count")] = 0.5  # four messages are on their way
    for _ in range(20):
        decision, state = online.act(rows, state)
        assert not (decision[0] == smallest).all()
    assert state.probed[0] == 3


# ---- in the simulator ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def stubborn(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy always sends the full features of ``mid``, which is far from the best."""
    folder = tmp_path_factory.mktemp("runs") / "stubborn"
    folder.mkdir()
    save_policy(folder / "policy.npz", "ppo", scenario.space, fixed_net(scenario.space, "mid/3/1.01", by=5.0))
    return folder


def test_it_gains_over_a_policy_that_does_not_fit(scenario: Scenario, stubborn: Path) -> None:
    world, seeds = build_world(scenario, "validation"), episode_seeds(0, 24, "validation")
    earned = []
    for name in (str(stubborn), f"online:share=0.2/caution=0.5:{stubborn}"):
        outcomes = run_episodes(world, make_controller(name, scenario), seeds)
        earned.append(scenario.objective.reward(outcomes).mean(axis=1))
    gain = earned[1] - earned[0]
    assert gain.mean() - 2.0 * gain.std(ddof=1) / np.sqrt(len(gain)) > 0.0


def test_names_and_parameters(scenario: Scenario, stubborn: Path, tmp_path: Path) -> None:
    online = make_controller(f"online:epsilon=0.02/share=0.1:{stubborn}", scenario)
    assert isinstance(online, OnlineController)
    assert (online.name, online.kind, online.learns) == ("online-stubborn", "learned", True)
    assert (online.parameters.epsilon, online.parameters.share) == (0.02, 0.1)
    for name, message in (
        ("online:nowhere", "holds no policy.npz"),
        ("online", "holds no policy.npz"),
        (f"online:shares=1:{stubborn}", "did you mean 'share'"),
        (f"online:share=2:{stubborn}", "outside its range"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_controller(name, scenario)
    with pytest.raises(ConfigError, match="another decision space"):
        build_controller(f"online:{stubborn}", SPACE, make_paced_summary(), CONTEXT)


def test_what_an_output_is_worth_is_read_from_the_run(tmp_path: Path) -> None:
    assert tau_of(tmp_path) == 0.006
    for value, tau in (
        ({"agent": "dqn", "hyperparameters": {}}, 1.0),
        ({"agent": "ppo", "hyperparameters": {"ent_coef": 0.01}}, 0.01),
        ({"agent": "ppo", "hyperparameters": {"ent_coef": 0.0}}, 0.002),
        ({"agent": "ppo"}, 0.006),
    ):
        (tmp_path / "run.json").write_text(json.dumps(value))
        assert tau_of(tmp_path) == tau


# ---- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _known_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARSERS, "adaptsplit.online/1", "adaptsplit.agents.online_file:parse_online")


def taught() -> OnlineController:
    online = make(random_net(SPACE, "multi"), share=0.5, epsilon=0.1, caution=0.0)
    state = online.init(1, np.random.default_rng(0))
    for i in range(40):
        decision, state = online.act(batch(1, i), state)
        state = online.learn(paid(decision, 0.5 + 0.01 * i), state)
    lessons = Lessons(state.theta[0], 0.5 * (state.covariance[0] + state.covariance[0].T), 40)
    return with_lessons(online, lessons)


def test_a_file_brings_back_network_features_and_lessons(tmp_path: Path) -> None:
    online = taught()
    online.save(tmp_path / "policy.npz")
    again = load_policy(tmp_path / "policy.npz", "x")
    assert isinstance(again, OnlineController)
    assert (again.name, again.lessons.taught, again.parameters) == ("x", 40, online.parameters)
    rows = batch(300)
    first, second = (c.act(rows, c.init(300, np.random.default_rng(0)))[0] for c in (online, again))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, PolicyController("p", SPACE, online.model.net).act(rows, None)[0])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("theta", lambda a: a[:-1], "expected"),
        ("theta", lambda a: a * np.nan, "finite"),
        ("covariance", lambda a: -a, "eigenvalues"),
        ("covariance", lambda a: 3.0 * a, "eigenvalues"),
        ("scale", lambda a: 0.0 * a, "shapes"),
        ("psi", lambda a: a[:, :3], "shapes"),
        ("view", lambda a: a[:2], "table of shape"),
        ("view", lambda a: a.astype(np.float64), "float32"),
        ("w0", lambda a: a[:, :3], "layer"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, key: str, change: object, message: str) -> None:
    online = taught()
    online.save(tmp_path / "policy.npz")
    meta, arrays = read_policy((tmp_path / "policy.npz").read_bytes(), "f")
    arrays[key] = change(arrays[key])  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        parse_online(meta, arrays, "f", None)


def test_a_file_with_another_probe_or_a_missing_array_is_refused(tmp_path: Path) -> None:
    taught().save(tmp_path / "policy.npz")
    data = (tmp_path / "policy.npz").read_bytes()
    meta, arrays = read_policy(data, "f")
    with pytest.raises(DataError, match="probe 9999"):
        parse_online(meta | {"probe": 9999}, arrays, "f", None)
    with pytest.raises(DataError, match="unknown key"):
        parse_online(meta | {"hook": "os.system"}, arrays, "f", None)
    with pytest.raises(DataError, match="psi"):
        parse_online(meta, {key: array for key, array in arrays.items() if key != "psi"}, "f", None)


# ---- live logs ----------------------------------------------------------------------------------------------------


def fly(scenario: Scenario, controller: Controller, path: Path, frames: int, observed: bool = True) -> None:
    """Write the live log of one simulated flight."""
    long = Scenario(scenario.file.model_copy(update={"episode_s": frames / scenario.fps}), scenario.base, scenario.data)
    simulator = Simulator(build_world(long, "train"), 1, keep_all=True, threads=1)
    rows = simulator.reset(np.array([7], dtype=np.uint64))
    state, delivery, seen = controller.init(1, np.random.default_rng(0)), Delivery(simulator), {}
    while not simulator.done.all():
        seen[int(simulator.frame[0])] = rows[0].tolist()
        decision, state = controller.act(rows, state)
        rows, _, _ = simulator.step(np.asarray(decision))
        if controller.learns:
            state = delivery.hand_out(controller, state)
    with LiveLog(path, observed) as log:
        for record in simulator.outcomes()[0]:
            log.add(controller.name, np.array([record]), seen.get(int(record["frame"])))


def mixture(scenario: Scenario) -> Controller:
    names = ("deadline", "static:mid/3/1.01", "static:stem/1/0.95", "static:deep/0/0.9")
    return make_controller(",".join(names), scenario, block=20)


def test_a_log_warms_up_the_learner_and_the_estimated_gain_is_real(
    scenario: Scenario, stubborn: Path, tmp_path: Path
) -> None:
    fly(scenario, mixture(scenario), tmp_path / "live.jsonl", 1000)
    learned = learn_from_logs(str(stubborn), scenario, [tmp_path / "live.jsonl"], tmp_path / "run")
    assert learned.gain.frames == learned.controller.lessons.taught or learned.gain.frames > 900
    assert learned.gain.low > 0.0
    world, seeds = build_world(scenario, "validation"), episode_seeds(0, 16, "validation")
    names = (str(stubborn), f"online:share=0/probe_s=0:{tmp_path / 'run'}")
    earned = [
        scenario.objective.reward(run_episodes(world, make_controller(name, scenario), seeds)).mean(axis=1)[:]
        for name in names
    ]
    gain = float((earned[1] - earned[0]).mean())
    assert gain > 0.01
    assert abs(gain - learned.gain.gain) < 0.03
    document = json.loads((tmp_path / "run" / "learn.json").read_text())
    assert document["schema"] == "adaptsplit.online-run/1"
    again = learn_from_logs(str(stubborn), scenario, [tmp_path / "live.jsonl"], tmp_path / "run")
    assert np.array_equal(again.controller.lessons.theta, learned.controller.lessons.theta)


def test_learning_from_a_log_is_learning_while_it_was_flown(scenario: Scenario, stubborn: Path, tmp_path: Path) -> None:
    """The same frames, once delivered as they came, once read from the log: the same context is learned."""
    online = online_of(
        f"share=0/probe_s=0/memory=1e12:{stubborn}", scenario.space, scenario.summary(), context_of(scenario)
    )
    fly(scenario, online, tmp_path / "live.jsonl", 300)
    frames = read_frames([tmp_path / "live.jsonl"], online)
    lessons = learn_frames(online, frames)
    assert lessons.taught == int(len(frames) + frames.drops.sum())
    x = online.model.features(frames.observation, online.model.see(frames.observation), frames.arm)
    predicted = x @ lessons.theta
    assert np.abs(predicted - frames.worth).mean() < 0.8 * np.abs(frames.worth - frames.worth.mean()).mean() + 0.02


def test_a_policy_that_stays_as_it_is_gains_nothing(scenario: Scenario, stubborn: Path, tmp_path: Path) -> None:
    online = online_of(f"caution=1000:{stubborn}", scenario.space, scenario.summary(), context_of(scenario))
    fly(scenario, mixture(scenario), tmp_path / "live.jsonl", 400)
    gain = estimate_gain(online, read_frames([tmp_path / "live.jsonl"], online))
    assert (gain.gain, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert gain.value == gain.frozen
    assert 0.1 < gain.matched < 0.4  # one of the four that took turns


def test_logs_that_cannot_teach_are_refused(scenario: Scenario, stubborn: Path, tmp_path: Path) -> None:
    online = online_of(str(stubborn), scenario.space, scenario.summary(), context_of(scenario))
    log = tmp_path / "live.jsonl"
    fly(scenario, mixture(scenario), log, 100)
    with pytest.raises(DataError, match="at least 200"):
        read_frames([log], online)
    with pytest.raises(DataError, match="no live log named"):
        read_frames([], online)
    fly(scenario, mixture(scenario), tmp_path / "blind.jsonl", 300, observed=False)
    with pytest.raises(DataError, match="--observations"):
        read_frames([tmp_path / "blind.jsonl"], online)
    row = json.loads(log.read_text().splitlines()[3])
    for change, message in (
        ({"observation": [0.5] * 7}, "line 2: not a line of a live log .*7 numbers"),
        ({"observation": [7.0] * obs.SIZE}, "line 2"),
        ({"threshold": 0.123}, "frame 3: a decision that this policy's space has not"),
    ):
        log.write_text(json.dumps(row) + "\n" + json.dumps(row | {"frame": 3} | change) + "\n")
        with pytest.raises(DataError, match=message):
            read_frames([log], online)
    log.write_text("not json\n")
    with pytest.raises(DataError, match="line 1"):
        read_frames([log], online)


def test_the_command(scenario: Scenario, stubborn: Path, tmp_path: Path) -> None:
    import typer

    from adaptsplit.cli_online import learn

    app = typer.Typer()
    app.command()(learn)
    fly(scenario, mixture(scenario), tmp_path / "live.jsonl", 400)
    options = ["--scenario", "flight-lte", "--logs", str(tmp_path / "live.jsonl"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [str(stubborn), *options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["frames"] > 300
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="another folder"):
        learn_from_logs(str(stubborn), scenario, [tmp_path / "live.jsonl"], tmp_path / "mine")


# ---- a restart ----------------------------------------------------------------------------------------------------


def decider(controller: Controller, keep: Path | None) -> Decider:
    return Decider(controller, SPACE, 0, keep)


def teach(one: Decider, frames: int) -> None:
    for i in range(frames):
        chosen, _ = one.decide(batch(1, i)[0])
        one.outcome(paid(np.array([[chosen.branch, chosen.rate, chosen.threshold]]), 0.5, i))


@pytest.mark.parametrize("name", ["online", "guarded", "kl-ucb", "linear-ts", "online,kl-ucb"])
def test_what_was_learned_survives_a_restart(name: str, tmp_path: Path) -> None:
    def build() -> Controller:
        online = make(random_net(SPACE, "multi"), share=0.5, epsilon=0.1)
        if name == "online":
            return online
        if name == "guarded":
            return guard_learned(online, SPACE, CONTEXT, limits=GuardLimits(inline=True, budget_s=60.0))
        if name == "online,kl-ucb":
            from adaptsplit.agents import InterleavedController

            return InterleavedController([online, build_controller("kl-ucb", SPACE, make_paced_summary(), CONTEXT)], 5)
        return build_controller(name, SPACE, make_paced_summary(), CONTEXT)

    first = decider(build(), tmp_path)
    teach(first, 30)
    first.close()
    second, blank = decider(build(), tmp_path), decider(build(), None)
    assert second.counts["state_restored"] == 1
    saved = (tmp_path / STATE_FILE).read_bytes()
    second.keep()
    blank_path = tmp_path / "blank"
    save_learned(blank_path / STATE_FILE, build().name, blank._state)
    with np.load(tmp_path / STATE_FILE) as kept, np.load(blank_path / STATE_FILE) as fresh:
        assert any(not np.array_equal(kept[key], fresh[key]) for key in kept.files)
    assert not list(tmp_path.glob("*.part"))
    assert len(saved) < 1 << 20


def test_a_file_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    one = decider(make(random_net(SPACE, "multi")), tmp_path)
    teach(one, 10)
    one.close()
    before = (tmp_path / STATE_FILE).read_bytes()
    other = decider(build_controller("kl-ucb", SPACE, make_paced_summary(), CONTEXT), tmp_path)
    assert other.counts["state_refused"] == 1
    teach(other, 5)
    other.close()
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_damaged_files_start_it_afresh(tmp_path: Path) -> None:
    online = make(random_net(SPACE, "multi"))
    state = online.init(1, np.random.default_rng(0))
    path = tmp_path / STATE_FILE
    save_learned(path, online.name, state)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    with pytest.raises(FileNotFoundError):
        load_learned(tmp_path / "none", online.name, state)
    with pytest.raises(DataError, match="expected"):
        load_learned(path, "other", state)
    for _ in range(60):
        spoiled = bytearray(data)
        for place in rng.integers(0, len(data), size=3):
            spoiled[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(spoiled[: int(rng.integers(1, len(data) + 1))]))
        try:
            load_learned(path, online.name, state)
        except DataError:
            continue
    wider = replace(state, theta=np.zeros((2, 3)))
    save_learned(path, online.name, wider)
    with pytest.raises(DataError, match=r"state\.theta is float64 \(2, 3\)"):
        load_learned(path, online.name, state)
    save_learned(path, online.name, replace(state, theta=state.theta * np.nan))
    with pytest.raises(DataError, match="no number"):
        load_learned(path, online.name, state)


def test_the_deployment_travels_with_the_controller() -> None:
    online = make(random_net(SPACE, "multi"))
    assert online.deployment == Deployment(CONTEXT.weights, 10.0, online.deployment.probe)
