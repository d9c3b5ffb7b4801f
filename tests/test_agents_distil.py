"""Distillation: small policies that survive saving and refuse damage, trees as scikit-learn's, a loss that is true."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, PolicyNet, make_controller
from adaptsplit.agents.distil import Candidate, Distiller, Distilling, choose, distil, sizes_up_to
from adaptsplit.agents.distil_costs import Labels, measured_weights, table_rows, teacher_values, visit
from adaptsplit.agents.distil_fit import grow_lookup, grow_tree
from adaptsplit.agents.distil_search import Search
from adaptsplit.agents.policy import parse_policy
from adaptsplit.agents.policy_cells import CellPolicy
from adaptsplit.agents.policy_lookup import LookupController
from adaptsplit.agents.policy_lookup import parse as parse_lookup
from adaptsplit.agents.policy_tree import Tree, TreeController, tree_of
from adaptsplit.agents.policy_tree import parse as parse_tree
from adaptsplit.cli_distil import distil as distil_command
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.envs import build_world, episode_seeds
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller, extreme_observations

GOODPUT, BACKLOG, LAST = obs.index("goodput"), obs.index("backlog"), obs.index("last_branch")
SPACE = DecisionSpace(
    (BranchSpec("stem", "split", ("q2c-zstd", "q4c-zstd")), BranchSpec("local", "local")), (0.0, 0.8, 1.01)
)
SMALL = Distilling(
    leaves=8, rounds=2, states=800, episodes=16, search_episodes=6, selection_episodes=12, stated_episodes=12
)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def small_tree() -> TreeController:
    """goodput <= 1 Mbit/s: (backlog <= 500 ms: local, else always exit), else stem/1/0.8."""
    feature = np.array([GOODPUT, BACKLOG, -1, -1, -1], dtype=np.int16)
    threshold = np.array([0.5, 0.25, 0, 0, 0], dtype=np.float32)
    left, right = np.array([1, 2, -1, -1, -1], dtype=np.int16), np.array([4, 3, -1, -1, -1], dtype=np.int16)
    rows = np.array([-1, -1, row_of("local/0/0"), row_of("stem/0/0"), row_of("stem/1/0.8")])
    return TreeController("small", SPACE, Tree(feature, threshold, left, right), rows)


def row_of(name: str) -> int:
    found = SPACE.parse(name)
    return int(table_rows(SPACE, np.array([[found.branch, found.rate, found.threshold]]))[0])


def small_lookup() -> LookupController:
    edges = [np.array([0.25, 0.5], dtype=np.float32), np.array([0.5], dtype=np.float32)]
    return LookupController("small", SPACE, (GOODPUT, BACKLOG), edges, np.array([0, 1, 2, 3, 4, 5]))


def random_tree(leaves: int, space: DecisionSpace = SPACE, seed: int = 0) -> tuple[TreeController, Any, Labels]:
    rng = np.random.default_rng(seed)
    batch = rng.random((3000, obs.SIZE), dtype=np.float32)
    taught = rng.integers(len(space.table), size=len(batch))
    labels = Labels(batch, taught, np.ones(len(batch)))
    fitted = DecisionTreeClassifier(max_leaf_nodes=leaves, min_samples_leaf=5, random_state=0).fit(batch, taught)
    return grow_tree(labels, space, leaves, "plain"), fitted, labels


def on_the_edge(policy: TreeController) -> NDArray[np.float32]:
    """Observations at each threshold, one step below and one above it."""
    inner = ~policy.tree.leaves
    batch = np.random.default_rng(1).random((3 * inner.sum(), obs.SIZE), dtype=np.float32)
    for i, (f, t) in enumerate(zip(policy.tree.feature[inner], policy.tree.threshold[inner], strict=True)):
        near = (t, np.nextafter(t, np.float32(-1)), np.nextafter(t, np.float32(2)))
        batch[3 * i : 3 * i + 3, f] = near
    return batch


@pytest.mark.parametrize("make", [small_tree, small_lookup])
def test_a_saved_policy_comes_back_the_same(make: Callable[[], CellPolicy], tmp_path: Path) -> None:
    policy = make()
    check_controller(policy, SPACE)
    policy.save(tmp_path / "policy.npz")
    again = parse_policy((tmp_path / "policy.npz").read_bytes(), "here", "again")
    assert (again.name, again.space, type(again)) == ("again", SPACE, type(policy))
    assert isinstance(again, CellPolicy)
    assert policy.to_bytes() == (tmp_path / "policy.npz").read_bytes()
    for key, array in policy.arrays().items():
        assert np.array_equal(array, again.arrays()[key])


def test_the_small_tree_decides_as_written_down() -> None:
    batch = np.zeros((4, obs.SIZE), dtype=np.float32)
    batch[:, GOODPUT], batch[:, BACKLOG] = [0.5, 0.5, 0.51, 0.0], [0.25, 0.26, 0.0, 1.0]
    names = [SPACE.name(row) for row in small_tree().act(batch, None)[0]]
    assert names == ["local/0/0", "stem/0/0", "stem/1/0.8", "stem/0/0"]


def test_the_small_table_decides_as_written_down() -> None:
    batch = np.zeros((4, obs.SIZE), dtype=np.float32)
    batch[:, GOODPUT], batch[:, BACKLOG] = [0.25, 0.26, 0.5, 0.9], [0.5, 0.51, 0.0, 1.0]
    assert table_rows(SPACE, small_lookup().act(batch, None)[0]).tolist() == [0, 3, 2, 5]


def test_trees_decide_as_scikit_learn_predicts() -> None:
    policy, fitted, labels = random_tree(200)
    batch = np.concatenate([labels.observations, on_the_edge(policy), extreme_observations()])
    assert np.array_equal(table_rows(SPACE, policy.act(batch, None)[0]), fitted.predict(batch))


@pytest.mark.parametrize("make", [lambda: random_tree(60)[0], small_lookup])
def test_one_row_decides_as_the_batch(make: Callable[[], CellPolicy]) -> None:
    policy = make()
    batch = np.concatenate([np.random.default_rng(2).random((500, obs.SIZE), dtype=np.float32), extreme_observations()])
    batch[7] = np.nan
    alone = np.concatenate([policy.act(batch[i : i + 1], None)[0] for i in range(len(batch))])
    assert np.array_equal(alone, policy.act(batch, None)[0])


def test_pruning_joins_what_decides_alike() -> None:
    tree = small_tree()
    rows = tree.rows.copy()
    rows[3] = rows[2]
    joined = tree.replaced(rows).pruned()
    assert (joined.size, joined.tree.depth) == (2, 1)
    table = small_lookup().replaced(np.array([1, 1, 1, 1, 4, 4])).pruned()
    assert (table.fields, table.shape, table.rows.tolist()) == ((GOODPUT,), (2,), [1, 4])
    assert small_lookup().replaced(np.full(6, 3)).pruned().rows.tolist() == [3, 3]


@pytest.mark.parametrize("leaves", [2, 17, 150])
def test_pruned_trees_decide_the_same(leaves: int) -> None:
    policy, _, labels = random_tree(leaves)
    rows = policy.rows.copy()
    rows[rows >= 0] %= 3
    changed = policy.replaced(rows)
    assert changed.pruned().size < changed.size or leaves == 2
    assert np.array_equal(changed.pruned().act(labels.observations, None)[0], changed.act(labels.observations, None)[0])


TREE_FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("missing", lambda a: a.pop("left"), "expected"),
    ("extra", lambda a: a.update(more=a["left"]), "expected"),
    ("type", lambda a: a.update(left=a["left"].astype("i8")), "expected int16"),
    ("shape", lambda a: a.update(left=a["left"][None]), "one dimension"),
    ("length", lambda a: a.update(left=a["left"][:-1]), "arrays of one length"),
    ("empty", lambda a: a.update({k: v[:0] for k, v in a.items()}), "1 to"),
    ("field", lambda a: a["feature"].__setitem__(0, obs.SIZE), "compares no field"),
    ("negative field", lambda a: a["feature"].__setitem__(0, -2), "compares no field"),
    ("nan", lambda a: a["threshold"].__setitem__(0, np.nan), "no finite number"),
    ("cycle", lambda a: a["left"].__setitem__(1, 0), "behind its parent"),
    ("itself", lambda a: a["left"].__setitem__(1, 1), "behind its parent"),
    ("outside", lambda a: a["right"].__setitem__(0, 5), "behind its parent"),
    ("shared", lambda a: a["right"].__setitem__(0, 3), "child of none or of two"),
    ("leaf's child", lambda a: a["left"].__setitem__(4, 3), "leaf with children"),
    ("inner decision", lambda a: a["decision"].__setitem__(0, 1), "inner node with a decision"),
    ("no decision", lambda a: a["decision"].__setitem__(2, -1), "without one of"),
    ("unknown decision", lambda a: a["decision"].__setitem__(2, len(SPACE.table)), "without one of"),
]
LOOKUP_FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("missing", lambda a: a.pop("edges"), "expected"),
    ("type", lambda a: a.update(edges=a["edges"].astype("f8")), "expected float32"),
    ("no fields", lambda a: a.update({k: v[:0] for k, v in a.items()}), "expected 1 to 4"),
    ("same field", lambda a: a["fields"].__setitem__(1, GOODPUT), "different ones"),
    ("field", lambda a: a["fields"].__setitem__(1, obs.SIZE), "the observation has"),
    ("counts", lambda a: a["counts"].__setitem__(1, 2), "counts say"),
    ("negative count", lambda a: a.update(counts=np.array([4, -1], dtype="i2")), "counts say"),
    ("more counts", lambda a: a.update(counts=np.array([1, 1, 1], dtype="i2")), "counts say"),
    ("descending", lambda a: a["edges"].__setitem__(1, 0.1), "ascending"),
    ("nan", lambda a: a["edges"].__setitem__(0, np.nan), "ascending"),
    ("too few cells", lambda a: a.update(decision=a["decision"][:5]), "5 decisions for 6 cells"),
    ("unknown decision", lambda a: a["decision"].__setitem__(2, len(SPACE.table)), "without one of"),
]


def damaged(policy: CellPolicy, change: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = {key: array.copy() for key, array in policy.arrays().items()}
    change(arrays)
    return meta_of(policy), arrays


def meta_of(policy: CellPolicy) -> dict[str, Any]:
    return {
        "schema": policy.schema,
        "agent": policy.agent,
        "observation": obs.schema_hash(),
        "space": policy.space.to_dict(),
    }


@pytest.mark.parametrize(("change", "said"), [f[1:] for f in TREE_FAULTS], ids=[f[0] for f in TREE_FAULTS])
def test_damaged_trees_are_refused(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as found:
        parse_tree(*damaged(small_tree(), change), "here.npz", None)
    assert str(found.value).startswith("here.npz: ")
    assert str(found.value).endswith("distil it again")


@pytest.mark.parametrize(("change", "said"), [f[1:] for f in LOOKUP_FAULTS], ids=[f[0] for f in LOOKUP_FAULTS])
def test_damaged_tables_are_refused(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_lookup(*damaged(small_lookup(), change), "here.npz", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "adaptsplit.tree/2"}, "expected 'adaptsplit.tree/1'"),
        ({"observation": "0" * 16}, "made for observation 0000"),
        ({"space": {"branches": []}}, "not a policy of ours"),
        ({"unknown": 1}, "unknown key"),
    ],
)
def test_a_foreign_description_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_tree(meta_of(small_tree()) | change, small_tree().arrays(), "here.npz", None)


def test_a_tree_deeper_than_the_bound_is_refused() -> None:
    inner = np.arange(65)
    feature = np.array([v for _ in inner for v in (0, -1)] + [-1])
    left = np.array([v for i in inner for v in (2 * i + 1, -1)] + [-1])
    right = np.array([v for i in inner for v in (2 * i + 2, -1)] + [-1])
    with pytest.raises(DataError, match="65 comparisons deep; at most 64"):
        TreeController("deep", SPACE, tree_of(feature, feature * 0, left, right), np.where(feature < 0, 0, -1))


def test_any_damaged_file_is_refused_or_still_a_whole_policy() -> None:
    rng, data, refused = np.random.default_rng(0), random_tree(20)[0].to_bytes(), 0
    for _ in range(150):
        wrong = bytearray(data)
        for place in rng.integers(len(wrong), size=3):
            wrong[place] = rng.integers(256)
        try:
            policy = parse_policy(bytes(wrong), "here.npz")
            check_controller(policy, policy.space)
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("make", [lambda: random_tree(80)[0], small_tree, small_lookup])
def test_the_c_function_decides_the_same(make: Callable[[], CellPolicy], tmp_path: Path) -> None:
    policy = make()
    (tmp_path / "p.c").write_text(policy.to_c())
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(tmp_path / "p.so"), str(tmp_path / "p.c")], check=True)
    function = ctypes.CDLL(str(tmp_path / "p.so")).adaptsplit_decide
    batch = np.concatenate([np.random.default_rng(3).random((2000, obs.SIZE)), extreme_observations()])
    if isinstance(policy, TreeController):
        batch = np.concatenate([batch, on_the_edge(policy)])
    batch = np.ascontiguousarray(batch, dtype=np.float32)
    wanted, out = policy.act(batch, None)[0], (ctypes.c_int * 3)()
    for row, decision in zip(batch, wanted, strict=True):
        taken = function(row.ctypes.data_as(ctypes.c_void_p), out)
        assert list(out) == decision.tolist() == SPACE.table[taken].tolist()


def test_the_text_is_in_physical_units() -> None:
    assert small_tree().describe() == (
        "if goodput <= 1 Mbit/s:\n"
        "    if backlog <= 500 ms:\n"
        "        local/0/0\n"
        "    else:\n"
        "        stem/0/0\n"
        "else:\n"
        "    stem/1/0.8\n"
    )
    assert "100 kbit/s < goodput <= 1 Mbit/s, backlog > 1 s: stem/1/0.8" in small_lookup().describe()
    known, flags = obs.index("goodput_known"), np.array([-1, 0, 1])
    tree = tree_of(np.array([known, -1, -1]), np.array([0.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    assert TreeController("flag", SPACE, tree, flags).describe().startswith("if goodput_known = 0:\n")
    tree = tree_of(np.array([LAST, -1, -1]), np.array([0.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    assert TreeController("last", SPACE, tree, flags).describe().startswith("if last_branch = stem:\n")


def network(head: Any, size: int) -> PolicyController:
    weights = np.zeros((obs.SIZE, size), dtype=np.float32)
    return PolicyController(
        "n", SPACE, PolicyNet(((weights, np.log(np.arange(1, size + 1, dtype=np.float32))),), "tanh", head)
    )


def test_a_networks_outputs_are_read_as_what_they_are() -> None:
    batch, count = np.zeros((2, obs.SIZE), dtype=np.float32), len(SPACE.table)
    values, unit = teacher_values(network("flat", count), batch, "dqn")
    assert unit == "q"
    assert np.allclose(values, np.log(np.arange(1, count + 1)))
    values, unit = teacher_values(network("flat", count), batch, "ppo")
    assert unit == "log"
    assert np.allclose(np.exp(values), np.arange(1, count + 1) / np.arange(1, count + 1).sum())
    values, _ = teacher_values(network("multi", sum(SPACE.shape)), batch, "ppo")
    b, r, t = np.array([1, 2]) / 3, np.array([3, 4]) / 7, np.array([5, 6, 7]) / 18
    assert np.allclose(np.exp(values), [b[i] * r[j] * t[k] for i, j, k in SPACE.table])
    with pytest.raises(TypeError, match="no network"):
        teacher_values(small_tree(), batch, "tree")  # type: ignore[arg-type]


class Row(Stateless):
    """The same decision always."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        self.name, found = name, scenario.space.parse(name)
        self._row = np.array([[found.branch, found.rate, found.threshold]])

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        return np.repeat(self._row, len(observation), axis=0), state


def test_measured_weights_are_what_the_worst_candidate_loses(scenario: Scenario) -> None:
    world, space, teacher = build_world(scenario, "train"), scenario.space, Row(scenario, "stem/1/0.95")
    met = visit(world, space, teacher, None, episode_seeds(5, 8, "train"), 200)
    own = table_rows(space, np.array([[0, 1, 5]]))
    assert np.array_equal(measured_weights(world, space, met, own, teacher), np.zeros(len(met)))
    worse = np.concatenate([own, table_rows(space, np.array([[4, 4, 6]]))])  # the largest message, never the exit
    weights = measured_weights(world, space, met, worse, teacher)
    assert weights.min() >= 0.0
    assert weights.mean() > 0.01


def test_weights_decide_between_labels() -> None:
    """In cells of two to one, the one wins whose error is dear."""
    batch = np.random.default_rng(0).random((300, obs.SIZE), dtype=np.float32)
    taught = np.where(np.arange(300) % 3 == 0, 4, 2)
    dear = Labels(batch * 0, taught, np.where(taught == 4, 5.0, 1.0))
    assert grow_tree(dear, SPACE, 2, "plain").rows.tolist() == [2]
    assert grow_tree(dear, SPACE, 2, "weighted").rows.tolist() == [4]
    chances = np.zeros((300, len(SPACE.table)), dtype=np.float32)
    chances[:, 1] = 0.4
    chances[np.arange(300), taught] += 0.3
    assert grow_tree(Labels(batch * 0, taught, np.ones(300), chances), SPACE, 2, "chances").rows.tolist() == [1]


def test_a_table_finds_the_two_fields_that_matter() -> None:
    rng = np.random.default_rng(4)
    batch = rng.random((4000, obs.SIZE), dtype=np.float32)
    taught = 1 + 2 * (batch[:, GOODPUT] > 0.5) + (batch[:, BACKLOG] > 0.5)
    labels = Labels(batch, taught, np.ones(4000))
    odd, even = labels.part(np.arange(4000) % 2 == 1), labels.part(np.arange(4000) % 2 == 0)

    def score(policy: CellPolicy) -> float:
        return float((table_rows(SPACE, policy.act(even.observations, None)[0]) == even.taught).mean())

    table = grow_lookup(odd, even, SPACE, 4, "plain", score)
    assert (set(table.fields), table.shape) == ({GOODPUT, BACKLOG}, (2, 2))
    assert score(table) > 0.97


LOW, HIGH = 4e5, 2e6


class Slow(Stateless):
    """Sends from the deep branch when the goodput is low, and goes back only when it is high: a wide hysteresis."""

    name = "slow"

    def __init__(self, scenario: Scenario) -> None:
        names = ("stem/1/1.01", "deep/0/1.01")
        found = [scenario.space.parse(name) for name in names]
        self._rows = np.array([[d.branch, d.rate, d.threshold] for d in found])

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        goodput, deep = obs.physical(observation, "goodput"), observation[:, LAST] > 0.5
        return self._rows[np.where(deep, goodput < HIGH, goodput < LOW).astype(int)], state


def test_dagger_unlearns_the_inertia_that_cloning_learns(scenario: Scenario) -> None:
    """On the teacher's path the last decision foretells the next; on a student's that follows it, it never changes.

    Cloning into one split therefore repeats its first decision for ever; rounds on its own path show the goodput.
    """
    teacher, agreement = Slow(scenario), []
    for rounds in (1, 3):
        settings = Distilling(leaves=2, rounds=rounds, states=2500, episodes=32, costs="rollouts")
        labels = Distiller(teacher, scenario, settings).gather()
        student = grow_tree(labels, scenario.space, 2, "plain")
        world = build_world(scenario, "train")
        met = visit(world, scenario.space, teacher, student, episode_seeds(77, 32, "train"), 4000)
        own = table_rows(scenario.space, student.act(met.observations, None)[0])
        agreement.append((obs.NAMES[student.tree.feature[0]], float((own == met.taught).mean())))
    assert agreement[0][0] == "last_branch"
    assert agreement[1][0] == "goodput"
    assert agreement[1][1] > 0.95 > 0.8 > agreement[0][1]


def test_the_search_mends_a_spoilt_leaf(scenario: Scenario) -> None:
    world, space = build_world(scenario, "train"), scenario.space
    good, deep, bad = (int(table_rows(space, np.array([d]))[0]) for d in ([0, 1, 5], [3, 1, 5], [4, 4, 6]))
    nodes = (np.array([GOODPUT, -1, -1]), np.array([0.4, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    spoilt = TreeController("t", space, tree_of(*nodes), np.array([-1, bad, good]))
    met = visit(world, space, Row(scenario, "stem/1/0.95"), None, episode_seeds(9, 32, "train"), 3000)
    taught = np.where(spoilt.cells(met.observations) == 1, deep, good)
    search = Search(world, scenario.objective, episodes=24, passes=2)
    mended = search.improve(spoilt, Labels(met.observations, taught, np.ones(len(met))))
    assert mended.rows.tolist() == [-1, deep, good]
    reward = search.rewards(spoilt, np.array([spoilt.rows, mended.rows]), search.seeds(9))
    assert (reward[1] - reward[0]).mean() > 0.01
    assert search.improve(mended, Labels(met.observations, taught * 0 + bad, np.ones(len(met)))) is mended


def candidate(size: int, rewards: list[float]) -> Candidate:
    policy = random_tree(size)[0]
    return Candidate(policy, size, "plain", np.array(rewards))


def test_the_smallest_within_one_standard_error_is_chosen() -> None:
    best = candidate(40, [1.0, 1.0, 1.0, 1.0])
    near = candidate(20, [0.9, 1.0, 1.1, 0.98])  # behind by 0.005 with an error of 0.036
    far = candidate(5, [0.9, 0.9, 0.9, 0.89])
    assert choose((far, near, best)) is near
    assert choose((far, best)) is best


def test_sizes_are_powers_of_two_up_to_the_limit() -> None:
    assert sizes_up_to(2) == (2,)
    assert sizes_up_to(8) == (4, 8)
    assert sizes_up_to(50) == (4, 8, 16, 32, 50)


def test_a_rule_becomes_a_run_folder_with_its_loss(scenario: Scenario, tmp_path: Path) -> None:
    found = distil("deadline", scenario, tmp_path / "run", settings=SMALL)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["schema"], run["agent"], run["teacher"]) == ("adaptsplit.run/1", "tree", "deadline")
    loss = found.loss
    assert loss.reward - loss.teacher_reward == pytest.approx(loss.to_teacher.value, abs=1e-9)
    assert loss.reward - loss.static_reward == pytest.approx(loss.to_static.value, abs=1e-9)
    assert loss.to_teacher.low <= loss.to_teacher.value <= loss.to_teacher.high
    assert loss.file_bytes == (tmp_path / "run" / "policy.npz").stat().st_size
    assert loss.cells == found.policy.size <= 8
    policy = make_controller(str(tmp_path / "run"), scenario)
    batch = np.random.default_rng(0).random((200, obs.SIZE), dtype=np.float32)
    assert np.array_equal(policy.act(batch, None)[0], found.policy.act(batch, None)[0])
    assert (tmp_path / "run" / "policy.txt").read_text() == found.policy.describe()


def test_the_same_seed_distils_the_same_policy(scenario: Scenario) -> None:
    settings = SMALL.model_copy(update={"leaves": 4, "states": 300, "search_episodes": 4})
    teacher = make_controller("threshold", scenario)
    work = [Distiller(teacher, scenario, settings) for _ in range(2)]
    policies = [each.best_of(each.gather(), 4).policy for each in work]
    assert policies[0].to_bytes() == policies[1].to_bytes()


def test_a_trained_run_is_not_overwritten(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"agent": "ppo"}')
    with pytest.raises(ConfigError, match="run of 'ppo', which would be lost"):
        distil("deadline", scenario, tmp_path, settings=SMALL)
    (tmp_path / "run.json").unlink()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ConfigError, match="no distilled run"):
        distil("deadline", scenario, tmp_path, settings=SMALL)


def test_a_learner_with_a_state_can_teach(scenario: Scenario) -> None:
    settings = SMALL.model_copy(update={"states": 200, "episodes": 8})
    labels = Distiller(make_controller("ucb1", scenario), scenario, settings).gather()
    assert 250 < len(labels) < 550
    assert labels.weights.min() > 0.0
    wanted = Distiller(make_controller("ucb1", scenario), scenario, settings.model_copy(update={"costs": "values"}))
    with pytest.raises(ConfigError, match="has no outputs to read"):
        wanted.gather()


def test_the_command_prints_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = SMALL.model_copy(update={"rounds": 1, "states": 300, "search_episodes": 0, "selection_episodes": 6})
    monkeypatch.setattr(
        "adaptsplit.agents.distil.Distilling",
        lambda form, leaves: few.model_copy(update={"form": form, "leaves": leaves}),
    )
    app = typer.Typer()
    app.command()(distil_command)
    options = [
        "deadline",
        "--scenario",
        "flight-lte",
        "--out",
        str(tmp_path / "t"),
        "--form",
        "lookup",
        "--leaves",
        "4",
    ]
    answer = CliRunner().invoke(app, [*options, "--json"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    assert document["form"] == "lookup"
    assert document["loss"]["cells"] <= 4
    shown = CliRunner().invoke(app, [*options[:-3], "tree", "--leaves", "2"])
    assert "student - teacher" in shown.stdout
    assert (tmp_path / "t" / "policy.txt").read_text().splitlines()[0] in shown.stdout
