"""The range of the training in an exported bundle: measured, open where the world is better; what a device shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from policy_cases import write_run
from typer.testing import CliRunner

from adaptsplit import estimators as est
from adaptsplit import observation as obs
from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.cli import app
from adaptsplit.device_bridge.sensors import NominalTelemetry, as_trained, missing
from adaptsplit.device_bridge.telemetry import Reading
from adaptsplit.guard import GuardLimits, events_of
from adaptsplit.guard_range import (
    BETTER_HIGH,
    BETTER_LOW,
    EVERYWHERE,
    RATES,
    TrainedRange,
    open_where_better,
    range_for_export,
)
from adaptsplit.scenario import load_scenario


def export(run: Path, out: Path, *options: str) -> None:
    """Call ``adaptsplit export``."""
    done = CliRunner().invoke(app, ["export", str(run), "--scenario", "flight-lte", "--out", str(out), *options])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What ``adaptsplit export`` makes of a (random) learned policy for flight-lte."""
    folder = tmp_path_factory.mktemp("range")
    run = write_run(folder / "run", 3)
    export(run, folder / "bundle")
    return load_bundle(folder / "bundle")


def middle(trained: TrainedRange) -> NDArray[np.float32]:
    """Return one observation (1, D) in the middle of the range."""
    return np.asarray(0.5 * (np.array([trained.low]) + np.array([trained.high])), dtype=np.float32)


def reasons(bundle: Bundle, observation: NDArray[np.float32]) -> list[str]:
    """Return why the guard of the bundle takes over on an observation."""
    guard = bundle.build(["bundle"], 50, guard=True, limits=GuardLimits(inline=True))
    _, state = guard.act(observation, guard.init(1, np.random.default_rng(0)))
    return [event.reason for event in events_of(state)]


def test_an_exported_policy_carries_the_range_of_its_training(exported: Bundle) -> None:
    trained = exported.manifest.trained
    assert trained is not None
    assert trained.count >= 2 * 32 * 300
    assert trained.low[obs.index("battery_known")] == trained.high[obs.index("battery_known")] == 1.0
    assert trained.high[obs.index("temperature_known")] == 0.0


def test_its_guard_trips_far_outside_and_not_inside(exported: Bundle) -> None:
    trained = exported.manifest.trained
    assert trained is not None
    inside = middle(trained)
    assert reasons(exported, inside) == []
    for name, value in (("rtt", 1.0), ("temperature_known", 1.0), ("battery_known", 0.0), ("sharpness", 1.0)):
        outside = inside.copy()
        outside[0, obs.index(name)] = value
        assert reasons(exported, outside) == ["out-of-range"], name


def test_a_better_link_than_any_in_training_is_no_fault(exported: Bundle) -> None:
    trained = exported.manifest.trained
    assert trained is not None
    better = middle(trained)
    better[0, [obs.index(name) for name in BETTER_LOW]] = 0.0
    better[0, [obs.index(name) for name in BETTER_HIGH]] = 1.0
    assert reasons(exported, better) == []


def test_only_the_good_side_is_opened() -> None:
    box = TrainedRange(low=(0.1,) * obs.SIZE, high=(0.2,) * obs.SIZE, count=1)
    opened = open_where_better(box)
    for name, low, high in zip(obs.NAMES, opened.low, opened.high, strict=True):
        assert low == (0.0 if name in BETTER_LOW else 0.1), name
        assert high == (1.0 if name in BETTER_HIGH else 0.3 if name in RATES else 0.2), name


def test_a_server_busy_for_less_than_half_the_deadline_is_no_fault() -> None:
    """On the log scale of 1 ms to 1 s, 125 ms of a 250 ms deadline lie at log(125) / log(1000)."""
    opened = open_where_better(TrainedRange(low=(0.0,) * obs.SIZE, high=(0.1,) * obs.SIZE, count=1), deadline_s=0.25)
    for name in ("server_time", "server_queue"):
        assert opened.high[obs.index(name)] == pytest.approx(np.log(125.0) / np.log(1000.0))
    assert opened.high[obs.index("rtt")] == 0.1


def test_three_misses_in_a_row_are_no_fault_and_six_are() -> None:
    """The mean forgets a tenth with each frame: 1 - 0.9**n after n misses; the guard's margin is 0.1."""
    opened = open_where_better(TrainedRange(low=(0.0,) * obs.SIZE, high=(0.0,) * obs.SIZE, count=1))
    x = np.zeros((1, obs.SIZE))
    tracker = np.zeros(est.TRACKER_SIZE)
    beyond = []
    for _ in range(6):
        est.on_settled(tracker, 1.0, 0.0)
        x[0, obs.index("miss_rate")] = tracker[est.MISS_RATE]
        beyond.append(bool((opened.exceedance(x) > GuardLimits().margin).any()))
    assert beyond == [False, False, False, False, True, True]


def test_rules_have_no_training_and_the_range_can_be_left_out(tmp_path: Path) -> None:
    assert range_for_export("deadline", load_scenario("flight-lte")) is None
    run = write_run(tmp_path / "run", 4)
    out = tmp_path / "bundle"
    export(run, out, "--no-range")
    assert json.loads((out / "manifest.json").read_text())["trained"] is None


# ---- which sensors a policy is shown ----


def knowing(**known: tuple[float, float]) -> TrainedRange:
    """Return a range in which each named sensor was known as given (low, high of its ``_known``), others never."""
    low, high = [0.2] * obs.SIZE, [0.8] * obs.SIZE
    for name in ("battery", "load", "temperature", "signal"):
        i = obs.index(f"{name}_known")
        low[i], high[i] = known.get(name, (0.0, 0.0))
    return TrainedRange(low=tuple(low), high=tuple(high), count=9)


FULL = Reading(0.9, 0.3, 55.0, -70.0)


def test_a_sensor_that_the_training_never_had_is_not_shown() -> None:
    shown = as_trained(FULL, knowing(battery=(1.0, 1.0), signal=(0.0, 1.0)))
    assert (shown.battery, shown.signal) == (0.9, -70.0)
    assert math.isnan(shown.load)
    assert math.isnan(shown.temperature)
    assert as_trained(FULL, None) == as_trained(FULL, EVERYWHERE) == FULL


def test_what_the_training_always_had_and_the_device_has_not_is_missing() -> None:
    trained = knowing(battery=(1.0, 1.0), load=(1.0, 1.0), signal=(0.0, 1.0))
    assert missing(Reading(load=0.5), trained) == ["battery"]
    assert missing(Reading(), trained) == ["battery", "load"]
    assert missing(Reading(), None) == missing(FULL, trained) == []


def test_a_modelled_board_shows_constants_inside_of_the_range() -> None:
    trained = knowing(battery=(1.0, 1.0), temperature=(1.0, 1.0), signal=(0.0, 1.0))
    reading = NominalTelemetry(trained).read(7.0)
    assert reading.battery == pytest.approx(0.8)
    assert reading.temperature == pytest.approx(50.0)  # the middle of 0.2..0.8 of 0..100 degrees Celsius
    assert math.isnan(reading.load)
    assert math.isnan(reading.signal)
    assert missing(reading, trained) == []
