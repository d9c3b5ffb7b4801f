"""A live log read again: records by controller, what was seen, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adaptsplit import observation as obs
from adaptsplit import recorded_run
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.errors import DataError
from adaptsplit.outcome import Outcomes, empty
from adaptsplit.recorded_run import read_live_log, read_run


def frame(number: int) -> Outcomes:
    record = empty(1)
    record["frame"], record["arrived_s"], record["known_s"] = number, 0.1 * number, 0.1 * number + 0.05
    return record


def flown(path: Path) -> Path:
    """Three frames of two controllers, in the order in which they ended, one of them unseen."""
    with LiveLog(path, observations=True) as log:
        log.begin({"block": 2})
        for number, name, seen in ((1, "b", 0.25), (0, "a", 0.5), (2, "a", None)):
            log.add(name, frame(number), None if seen is None else [seen] * obs.SIZE, {"sent_s": 0.1 * number})
    return path


def test_a_run_is_read_in_the_order_of_its_frames(tmp_path: Path) -> None:
    run = read_run(flown(tmp_path / "live.jsonl"), observations=True)
    assert run.description["block"] == 2
    assert run.records["frame"].tolist() == [0, 1, 2]
    assert run.controllers == ("a", "b", "a")
    assert [row["sent_s"] for row in run.times] == [0.0, 0.1, 0.2]
    assert [None if row is None else float(row[0]) for row in run.observations] == [0.5, 0.25, None]
    assert {name: own["frame"].tolist() for name, own in run.by_controller().items()} == {"a": [0, 2], "b": [1]}


def test_what_was_seen_is_read_only_when_it_is_wanted(tmp_path: Path) -> None:
    """A log of another version, whose observations are longer, is still a run."""
    log = flown(tmp_path / "live.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row | {"observation": [0.5] * 99}) + "\n" for row in rows))
    assert read_run(log).observations == (None, None, None)
    with pytest.raises(DataError, match=f"line 2: not a line .*99 numbers; this version has {obs.SIZE}"):
        read_run(log, observations=True)


def test_the_log_in_memory_is_the_log_on_disk(tmp_path: Path) -> None:
    with LiveLog(tmp_path / "live.jsonl") as log:
        for number, name in ((2, "a"), (0, "b"), (1, "a")):
            log.add(name, frame(number), None)
    read = read_live_log(tmp_path / "live.jsonl")
    assert list(read) == list(log.outcomes()) == ["b", "a"]
    assert all(np.array_equal(read[name]["frame"], own["frame"]) for name, own in log.outcomes().items())
    with LiveLog(None) as nothing:
        assert nothing.outcomes() == {}


def test_what_is_no_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = flown(tmp_path / "live.jsonl")
    with log.open("a") as file:
        file.write('{"frame": 9}\n')
    with pytest.raises(DataError, match=r"live\.jsonl, line 5: not a line of a live log .*; take another log"):
        read_run(log)
    with pytest.raises(DataError, match="make one with: adaptsplit device --log FILE"):
        read_run(tmp_path / "none.jsonl")
    monkeypatch.setattr(recorded_run, "MAX_LOG_BYTES", 100)
    with pytest.raises(DataError, match="a log has at most 100; split it"):
        read_run(log)
