"""Search and sweep: what is planned, what survives a crash, what is gone on with, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptsplit.agents.hyperparameters import AGENTS, load_parameters
from adaptsplit.agents.sweep import SweepResult, TrialResult, agent_folders, local, run_sweep
from adaptsplit.agents.sweep_local import Event, TrialProcesses
from adaptsplit.agents.sweep_plan import Sweep, SweepFile, identity, parse_seeds, plan, read_sweep
from adaptsplit.agents.sweep_ray import connect, consistent, run_ray, write_files
from adaptsplit.agents.sweep_table import interquartile_mean, rows
from adaptsplit.agents.sweep_trial import TrialSpec, clear, state_of
from adaptsplit.agents.tune import TuneOptions, Tuner, score, tune
from adaptsplit.agents.tune_report import best_trial, document, shipped_value, write_report
from adaptsplit.agents.tune_space import load_space
from adaptsplit.cli_scale import _plan
from adaptsplit.config import parse
from adaptsplit.errors import ConfigError, DataError, MissingExtraError, RunError, UnknownNameError
from adaptsplit.scenario import Scenario, load_scenario

pytestmark = pytest.mark.timeout(600)

TINY = {"envs": 16, "batch_size": 256, "net_arch": [16], "actions": "flat"}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def sweep_of(out: Path, agents: dict[str, Any], seeds: Any = (0,), steps: int = 2000) -> Sweep:
    file = {"scenarios": ["flight-lte"], "agents": agents, "seeds": seeds, "steps": steps}
    return plan(parse(SweepFile, file, "sweep"), out, validations=4, validation_episodes=2)


# --- what is planned ---------------------------------------------------------------------------------------------


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-4") == (0, 1, 2, 3, 4)
    assert parse_seeds("3, 7-8") == (3, 7, 8)
    for wrong in ("", "4-1", "a", "1,,2", "-1", "0-5000", "1e3"):
        with pytest.raises(ConfigError, match="expected numbers and ranges"):
            parse_seeds(wrong)


def test_the_grid_is_laid_out_in_folders(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"ppo": {}, "wide": {"agent": "ppo", "set": {"net_arch": [128]}}}, "0-1")
    assert [trial.name for trial in sweep.trials] == [f"flight-lte/{a}/{s}" for a in ("ppo", "wide") for s in (0, 1)]
    wide = sweep.trials[2]
    assert wide.folder == tmp_path / "flight-lte" / "wide" / "0"
    assert (wide.spec.agent, wide.spec.parameters["net_arch"], wide.spec.parameters["steps"]) == ("ppo", [128], 2000)
    assert len({trial.identity for trial in sweep.trials}) == 4
    assert not list(tmp_path.iterdir())


def test_parameters_come_from_a_file_beside_the_sweep(tmp_path: Path) -> None:
    section = load_parameters("ppo").model_dump(mode="json") | {"gamma": 0.123}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"ppo": section}))
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(load_scenario("flight-lte").file.model_dump(mode="json") | {"name": "mine"})
    )
    (tmp_path / "sweep.yaml").write_text(
        "scenarios: [mine.yaml]\nagents: {tuned: {agent: ppo, params: best.yaml}}\nseeds: [3]\n"
    )
    (trial,) = _plan(tmp_path / "sweep.yaml", None, None, None, None, tmp_path / "out", None).trials
    assert (trial.name, trial.spec.parameters["gamma"]) == ("mine/tuned/3", 0.123)
    assert trial.spec.scenario["name"] == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agentz": {}}, "did you mean 'agents'"),
        ({"agents": {"pppo": {}}}, "did you mean 'ppo'"),
        ({"agents": {"ppo": {"set": {"gama": 0.9}}}}, "did you mean 'gamma'"),
        ({"agents": {"ppo": {"set": {"gamma": "__import__('os')"}}}}, "gamma"),
        ({"agents": {"../up": {"agent": "ppo"}}}, "names a folder"),
        ({"agents": {"x": {"agent": "ppo", "params": "absent.yaml"}}}, "cannot be read"),
        ({"scenarios": ["flight-lt"]}, "did you mean 'flight-lte'"),
        ({"scenarios": ["flight-lte", "flight-lte"]}, "named twice"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [-1]}, "none negative"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_wrong_sweep_file_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = {"scenarios": ["flight-lte"], "agents": {"ppo": {}}, "seeds": "0"} | changes
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(file))
    with pytest.raises(ConfigError, match=words):
        plan(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "out", base=tmp_path)


def test_a_sweep_is_named_by_file_or_by_lists(tmp_path: Path) -> None:
    for file, scenarios, agents in ((None, None, None), (None, "flight-lte", None), (tmp_path, "flight-lte", "ppo")):
        with pytest.raises(ConfigError, match="FILE, or both"):
            _plan(file, scenarios, agents, None, None, tmp_path, None)
    found = _plan(None, "flight-lte", "ppo,dqn", "0-1", 100, tmp_path, None)
    assert [trial.name for trial in found.trials] == [f"flight-lte/{a}/{s}" for a in ("ppo", "dqn") for s in (0, 1)]


# --- processes ---------------------------------------------------------------------------------------------------


def script(code: str) -> list[str]:
    """A child that has its spec in ``spec`` and tells by ``say(kind=..., ...)``."""
    head = "import json, sys, time, os\nspec = json.loads(sys.stdin.readline())\n"
    return [sys.executable, "-S", "-c", head + "def say(**m): print(json.dumps(m), flush=True)\n" + code]


def spec_named(name: str, folder: Path, **parameters: Any) -> TrialSpec:
    given = {"steps": 10} | parameters
    return TrialSpec(
        name=name, scenario={"name": "s"}, base=".", data=None, agent="ppo", parameters=given, seeds=(0,),
        folder=str(folder), validations=2, validation_episodes=1,
    )  # fmt: skip


def events_of(command: Sequence[str], folder: Path, timeout_s: float | None = None) -> list[Event]:
    found = []
    with TrialProcesses(timeout_s, command) as processes:
        processes.start(spec_named("t", folder), folder / "t.log")
        while len(processes):
            event = processes.wait()
            found += [event] if event is not None else []
    return found


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("sys.exit(3)", "exit code 3"),
        ("say(kind='failed', error='out of luck'); sys.exit(1)", "out of luck"),
        ("print('no json'); print('[1]'); say(kind='odd'); sys.exit(0)", "no result"),
        ("time.sleep(60)", "took longer than 0.5 s"),
    ],
)
def test_every_end_of_a_process_is_one_event(code: str, words: str, tmp_path: Path) -> None:
    (event,) = events_of(script(code), tmp_path, 0.5 if "sleep" in code else None)
    assert event.kind == "failed"
    assert words in event.value["error"]


def test_points_come_before_the_end_and_prints_go_to_the_log(tmp_path: Path) -> None:
    code = "say(kind='point', seed=0, steps=5, reward=.5); print('hello', file=sys.stderr); say(kind='done')"
    point, done = events_of(script(code), tmp_path)
    assert (point.kind, point.value, done.kind) == ("point", {"seed": 0, "steps": 5, "reward": 0.5}, "done")
    assert "hello" in (tmp_path / "t.log").read_text()


def test_a_crash_does_not_touch_the_other_trials(tmp_path: Path) -> None:
    code = "os.kill(os.getpid(), 11) if spec['name'] == 'b' else say(kind='done')"
    with TrialProcesses(None, script(code)) as processes:
        for name in "abc":
            processes.start(spec_named(name, tmp_path), tmp_path / f"{name}.log")
        found = {}
        while len(processes):
            event = processes.wait()
            if event is not None:
                found[event.trial] = event.kind
    assert found == {"a": "done", "b": "failed", "c": "done"}


def test_leaving_ends_every_process(tmp_path: Path) -> None:
    with TrialProcesses(None, script("say(kind='point', seed=0, steps=1, reward=0); time.sleep(60)")) as processes:
        processes.start(spec_named("t", tmp_path), tmp_path / "t.log")
        assert processes.wait(20) is not None
        process = processes._running["t"].process
    assert process.returncode == -signal.SIGTERM


# --- real trials -------------------------------------------------------------------------------------------------


def killed_midway(sweep: Sweep) -> None:
    """Start the first trial and kill it outright after its second validation."""
    trial = sweep.trials[0]
    with TrialProcesses() as processes:
        processes.start(trial.spec, trial.log)
        points = 0
        while points < 2:
            event = processes.wait(240)
            assert event is not None
            assert event.kind == "point", event
            points += 1
        os.kill(processes._running[trial.name].process.pid, signal.SIGKILL)
        while len(processes):
            event = processes.wait(240)
        assert event is not None
        assert "SIGKILL" in event.value["error"]


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in ("run.json", "run.json.draft-17", "policy.next.npz.draft-17", "checkpoint.next.pt", "mine.draft-17"):
        (tmp_path / name).write_bytes(b"x")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.draft-17"]
    clear(tmp_path / "none")


def test_a_sweep_goes_on_after_a_kill_and_past_a_failure(tmp_path: Path) -> None:
    impossible = {"agent": "dqn", "set": {"envs": 16, "buffer_size": 10**15}}
    sweep = sweep_of(tmp_path, {"ppo": {"set": TINY}, "impossible": impossible})
    killed_midway(sweep)
    trial = sweep.trials[0]
    assert state_of(trial.spec, 0) == "half"
    before = json.loads((trial.folder / "run.json").read_text())["validation"]
    seen: list[str] = []
    result = run_sweep(sweep, local(workers=2), watch=lambda trial, event: seen.append(f"{trial.agent} {event.kind}"))
    done, failed = result.trials
    assert (done.status, failed.status) == ("done", "failed")
    assert "MemoryError" in str(failed.error) or "allocate" in str(failed.error)
    assert "Traceback" in Path(failed.log).read_text()
    run = json.loads((trial.folder / "run.json").read_text())
    assert run["steps"] >= 2000
    assert run["validation"][: len(before)] == before
    assert done.reward == max(point["reward"] for point in run["validation"])
    assert seen.count("ppo point") == len(run["validation"]) - len(before)
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert agent_folders(sweep, result, "flight-lte") == ([str(tmp_path / "flight-lte" / "ppo")], ["impossible"])
    check_again(sweep, tmp_path)


def check_again(sweep: Sweep, out: Path) -> None:
    """What is done is not trained again; other hyperparameters in the same place are refused."""
    asked: list[str] = []

    def executor(trials: Sequence[Any]) -> Any:
        asked.extend(trial.name for trial in trials)
        return (Event(trial.name, "failed", {"error": "not run"}) for trial in trials)

    again = run_sweep(sweep, executor)
    assert [trial.status for trial in again.trials] == ["reused", "failed"]
    assert asked == ["flight-lte/impossible/0"]
    other = sweep_of(out, {"ppo": {"set": TINY | {"gamma": 0.5}}})
    with pytest.raises(ConfigError, match=r"gamma 0\.8, not 0\.5; name another --out"):
        run_sweep(other, executor)
    assert run_sweep(other, executor, anew=True).trials[0].error == "not run"


def test_a_trial_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"ppo": {"set": TINY}}, steps=10_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptsplit.agents.sweep_trial"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(sweep.trials[0].spec.model_dump_json().encode() + b"\n")
    process.stdin.close()
    with process.stdout as lines:  # type: ignore[union-attr]
        told = [json.loads(line)["kind"] for line in lines]
    assert process.wait(240) != 0
    assert "done" not in told


def test_a_trial_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"ppo": {"set": TINY}})
    (result,) = run_sweep(sweep, local(workers=1, timeout_s=0.2)).trials
    assert (result.status, result.error) == ("failed", "took longer than 0.2 s and was ended")


def test_damaged_records_are_named(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"ppo": {}})
    (tmp_path / "sweep.json").write_text('{"schema": "other"}')
    with pytest.raises(DataError, match="not a sweep of ours"):
        run_sweep(sweep, local(1))
    (tmp_path / "sweep.json").unlink()
    sweep.trials[0].folder.mkdir(parents=True)
    (sweep.trials[0].folder / "run.json").write_text("{")
    with pytest.raises(DataError, match="not a run of ours"):
        run_sweep(sweep, local(1))


def test_identity_is_of_what_counts_not_of_where(tmp_path: Path) -> None:
    one, other = (sweep_of(tmp_path / name, {"ppo": {}}).trials[0] for name in "ab")
    assert one.identity == other.identity
    changed = one.spec.model_copy(update={"scenario": one.spec.scenario | {"fps": 11.0}})
    assert identity(changed) != one.identity


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_of_known_values() -> None:
    assert interquartile_mean([7.0]) == 7.0
    assert interquartile_mean([1.0, 2.0, 6.0]) == pytest.approx(1 / 6 + 2 * 2 / 3 + 6 / 6)
    assert interquartile_mean([100.0, 1.0, 2.0, -100.0]) == pytest.approx(1.5)
    assert score([1.0, 9.0, 1.0, 2.0, 6.0], "last") == pytest.approx(2.5)
    assert score([1.0, 9.0, 1.0, 2.0, 6.0], "best") == 9.0


def test_rows_summarise_finished_seeds_only() -> None:
    def one(agent: str, seed: int, status: Any, reward: float | None) -> TrialResult:
        return TrialResult("s", agent, seed, status, "f", "l", "i", reward, 10, None if reward is None else 2.0 + seed)

    trials = (
        one("a", 0, "done", 1.0),
        one("a", 1, "reused", 3.0),
        one("a", 2, "failed", 99.0),
        one("b", 0, "failed", None),
    )
    a, b = rows(SweepResult(Path(), trials))
    assert (a.done, a.wanted, a.mean, a.iqm, a.low, a.high, a.seconds) == (2, 3, 2.0, 2.0, 1.0, 3.0, 2.5)
    assert a.spread == pytest.approx(2**0.5)
    assert (b.done, b.wanted, b.mean, b.spread) == (0, 1, None, None)


def test_a_half_trained_policy_is_not_pooled(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"ppo": {}, "dqn": {}}, "0-1")

    def one(agent: str, seed: int, status: Any) -> TrialResult:
        return TrialResult("flight-lte", agent, seed, status, str(tmp_path / agent / str(seed)), "l", "i")

    result = SweepResult(tmp_path, tuple(one(a, s, "failed" if s else "done") for a in ("ppo", "dqn") for s in (0, 1)))
    folders = [str(tmp_path / "flight-lte" / agent) for agent in ("ppo", "dqn")]
    assert agent_folders(sweep, result, "flight-lte") == (folders, [])
    (tmp_path / "dqn" / "1").mkdir(parents=True)
    (tmp_path / "dqn" / "1" / "policy.npz").write_bytes(b"")
    assert agent_folders(sweep, result, "flight-lte") == (folders[:1], ["dqn"])


# --- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_every_agent_has_a_space_around_its_shipped_values(agent: str) -> None:
    base = load_parameters(agent)
    space = load_space(agent, base)  # every end of every range is accepted by the record
    assert len(space.dimensions) >= 5
    assert space.encode(base.model_dump(mode="json")) is not None, "trial 0 is the shipped values"


class Fixed:
    """Draws from given values."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert self.values[name] in choices
        return self.values[name]


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_what_is_encoded_is_drawn_again(agent: str) -> None:
    base = load_parameters(agent)
    space = load_space(agent, base)
    values = base.model_dump(mode="json")
    encoded = space.encode(values)
    assert encoded is not None
    assert space.draw(Fixed(encoded)) == {key: values[key] for key in space.dimensions}
    assert space.encode(values | {"gamma": 0.9999}) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gama: {float: [0, 1]}", "did you mean 'gamma'"),
        ("steps: {int: [1, 5]}", "may not change it"),
        ("gamma: {normal: [0, 1]}", "expected one of log"),
        ("gamma: 0.9", "expected one of log"),
        ("gamma: {float: [0.9, 0.5]}", "low < high"),
        ("gamma: {float: ['1-1', 1]}", "low < high"),
        ("gamma: {float: [0.5, 1.5]}", "gamma"),
        ("ent_coef: {log: [0, 1]}", "above 0"),
        ("n_epochs: {int: [1, 2.5]}", "whole numbers"),
        ("net_arch: {choice: []}", "at least one"),
        ("net_arch: {choice: [[64], [64]]}", "each once"),
        ("activation: {choice: [tanh, sin]}", "activation"),
        ("learning_rate: {linear: [{log: [0.001, 0.01]}]}", "two ranges"),
        ("learning_rate: {linear: [1, 2]}", "twice"),
    ],
)
def test_a_wrong_space_is_refused(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(f"ppo:\n  {line}\n")
    with pytest.raises(ConfigError, match=words):
        load_space("ppo", load_parameters("ppo"), tmp_path / "space.yaml")


def test_a_space_of_another_agent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("dqn:\n  gamma: {float: [0, 0.9]}\n")
    with pytest.raises(UnknownNameError, match="no search space of agent 'ppo'"):
        load_space("ppo", load_parameters("ppo"), tmp_path / "space.yaml")


SPACE = "ppo:\n  gamma: {float: [0.3, 0.98]}\n  n_epochs: {int: [1, 6]}\n"
CURVES = """
gamma = spec['parameters']['gamma']
worth = 1 - (gamma - 0.6) ** 2
for seed in spec['seeds']:
    for i in range(4):
        say(kind='point', seed=seed, steps=i, reward=worth * (i + 1) / 4 + 0.001 * seed)
        time.sleep(0.01)
"""


def tuner_of(scenario: Scenario, out: Path, **options: Any) -> Tuner:
    space = out.parent / "space.yaml"
    space.write_text(SPACE)
    given = {"trials": 12, "seeds": 2, "validations": 4, "validation_episodes": 2, "startup": 3, "space": space}
    return Tuner(scenario, "ppo", out, TuneOptions(**(given | options)))


def test_a_search_finds_prunes_and_writes(scenario: Scenario, tmp_path: Path) -> None:
    tuner = tuner_of(scenario, tmp_path / "t")
    told: list[str] = []
    tuner.run(lambda what, trial, value: told.append(what), script(CURVES + "say(kind='done')"))
    assert told.count("start") == 12 == told.count("done") + told.count("pruned")
    assert told.count("pruned") >= 1
    write_report(tuner)
    value = json.loads((tuner.out / "tuning.json").read_text())
    assert value["best"]["value"] == pytest.approx(1 - (value["best"]["parameters"]["gamma"] - 0.6) ** 2 + 0.0005)
    assert value["shipped_value"] == pytest.approx(1 - 0.2**2 + 0.0005)
    assert value["best"]["value"] > value["shipped_value"]
    assert value["importances"]["gamma"] > 0.8
    assert load_parameters("ppo", tuner.out / "best.yaml").gamma == value["best"]["parameters"]["gamma"]
    assert (tuner.out / "tuning.png").stat().st_size > 5000
    pruned = [trial for trial in value["trials"] if trial["state"] == "pruned"]
    assert all(trial["value"] is None and 0 < len(trial["points"]) < 8 for trial in pruned)


def test_a_failed_trial_is_recorded_and_the_rest_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    tuner = tuner_of(scenario, tmp_path / "t", trials=4, pruner="none", jobs=2)
    tuner.run(None, script(CURVES + "os.kill(os.getpid(), 9) if spec['name'] == '1' else say(kind='done')"))
    trials = document(tuner)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "fail", "complete", "complete"]
    assert "SIGKILL" in trials[1]["error"]
    assert trials[1]["log"].endswith("0001.log")


def test_a_search_that_was_cut_off_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    first = tuner_of(scenario, tmp_path / "t", trials=5, pruner="none")

    def stop(what: str, trial: int, value: float | None) -> None:
        if (what, trial) == ("point", 2):
            raise KeyboardInterrupt

    good = script(CURVES + "say(kind='done')")
    with pytest.raises(KeyboardInterrupt):
        first.run(stop, good)
    again = tuner_of(scenario, tmp_path / "t", trials=5, pruner="none")
    assert len(again.finished()) == 2
    again.run(None, good)
    trials = document(again)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "complete", "interrupted", *["complete"] * 3]
    assert trials[3]["params"] == trials[2]["params"]
    assert len({json.dumps(trial["params"]) for trial in trials}) == 5
    ran = len(again.study.trials)
    tuner_of(scenario, tmp_path / "t", trials=5, pruner="none").run(None, good)
    assert len(again.study.get_trials()) == ran
    with pytest.raises(ConfigError, match="another seeds; give the same"):
        tuner_of(scenario, tmp_path / "t", trials=5, seeds=3)


def test_a_search_needs_its_own_folder_and_one_good_trial(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match=r"letter\.txt"):
        tuner_of(scenario, tmp_path / "mine")
    with pytest.raises(ConfigError, match="at least 1"):
        tuner_of(scenario, tmp_path / "t", trials=0)
    with pytest.raises(UnknownNameError, match="cannot be trained"):
        Tuner(scenario, "pppo", tmp_path / "t", TuneOptions())


def test_a_small_search_trains_for_real(scenario: Scenario, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("a2c:\n  gamma: {float: [0.3, 0.98]}\n")
    options = TuneOptions(trials=1, steps=1024, seeds=1, space=space, validations=2, validation_episodes=2)
    tuner = tune(scenario, "a2c", tmp_path / "t", options)
    best = best_trial(tuner)
    run = json.loads((tmp_path / "t" / "trials" / f"{best.number:04}" / "0" / "run.json").read_text())
    assert best.value == run["best"]["reward"]
    assert load_parameters("a2c", tmp_path / "t" / "best.yaml").gamma == run["hyperparameters"]["gamma"]
    assert shipped_value(tuner) == best.value


# --- Ray ---------------------------------------------------------------------------------------------------------


def test_only_a_runs_own_files_come_back(tmp_path: Path) -> None:
    data = b"weights"
    run = json.dumps({"files": {"checkpoint.pt": hashlib.sha256(data).hexdigest()}}).encode()
    assert consistent({"run.json": run, "checkpoint.pt": data})
    assert not consistent({"run.json": run, "checkpoint.pt": b"older"})
    assert not consistent({"run.json": run})
    assert not consistent({})
    write_files(tmp_path / "run", {"run.json": run, "checkpoint.pt": data})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "run.json"]
    for name in ("../evil", "/etc/evil", "other.txt"):
        with pytest.raises(RunError, match="no file of a run"):
            write_files(tmp_path / "run", {name: b""})


def test_without_ray_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"adaptsplit\[ray\]"):
        connect("auto")


@pytest.mark.filterwarnings("default")
def test_a_cluster_trains_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed; it has an environment of its own (docs/scale.md)")
    ray = connect("local")
    try:
        sweep = sweep_of(tmp_path, {"ppo": {"set": TINY}}, steps=40_000)
        trial = sweep.trials[0]
        events = run_ray(ray, sweep.trials, workers=1, timeout_s=None)
        while not (trial.folder / "checkpoint.pt").is_file():
            assert next(events).kind == "point"
        events.close()  # as when the driver stops
        assert state_of(trial.spec, 0) == "half"
        result = run_sweep(sweep, lambda trials: run_ray(ray, trials, None, None))
        assert result.trials[0].status == "done"
        assert state_of(trial.spec, 0) == "done"
        failed = next(run_ray(ray, sweep.trials, workers=1, timeout_s=0.5))
        assert "took longer" in failed.value["error"] or failed.kind == "done"
    finally:
        ray.shutdown()
