"""What a live run did that its replay did not, counted and timed: where a gap between the two comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.envs.world import World
from adaptsplit.evaluation.replay_times import FrameTimes
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import RecordedRun, Seen

STALL_S = 0.03  # a stage that takes this much longer than the longest modelled time was held up by the host
SAME = 1e-6  # thresholds and patience are stored as float32
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Causes:
    """What was measured; frames are counted over the run, times in s (NaN where the log has none).

    otherwise: frames on which the replay decided otherwise than the live run, in order; ``bytes_of_them`` what these
    frames sent live less what they sent in the replay. first: what was observed differently on the first of them, "" if
    the log has no observations. stalls: frames with a stage or a take-up held up by 30 ms and more. overtaken: frames
    that the device never looked at. after_ack_s, server_s: medians of a result's coming after its acknowledgement, and
    of the server's work (its residence less the waiting in it), which is what the simulator puts between them.
    """

    frames: int
    otherwise: tuple[int, ...]
    bytes_of_them: int
    first: str
    stalls: int
    overtaken: int
    late_s: float
    after_ack_s: float
    server_s: float

    def lines(self) -> list[str]:
        """Return sentences for a person."""
        found = [self._decided()]
        if self.first:
            found.append(self.first)
        if self.stalls or self.overtaken:
            held = "1 frame" if self.stalls == 1 else f"{self.stalls} frames"
            found.append(f"the host held up {held} by 30 ms and more; {_were(self.overtaken)} overtaken")
        late, after, server = 1e3 * self.late_s, 1e3 * self.after_ack_s, 1e3 * self.server_s
        found.append(
            f"medians: a frame was taken up {late:.1f} ms late; a result came {after:.1f} ms after its "
            f"acknowledgement, where the server worked for {server:.1f} ms (a simulated result comes that much later)"
        )
        return found

    def _decided(self) -> str:
        if not self.otherwise:
            return f"all {self.frames} frames were decided as live"
        return (
            f"{_were(len(self.otherwise), f' of {self.frames} frames')} decided otherwise than live, the first of them "
            f"frame {self.otherwise[0]}; live they sent {self.bytes_of_them:+d} B against the replay"
        )


def causes_of(
    run: RecordedRun, world: World, times: FrameTimes, outcomes: Outcomes, observed: Mapping[int, Seen]
) -> Causes:
    """Hold a live run against its replay: ``outcomes`` (F,) and what was ``observed`` on each frame (D,)."""
    live = run.records
    other = np.flatnonzero(otherwise(outcomes[: len(live)], live))
    sent = live["sent_bytes"].astype(np.int64) - outcomes["sent_bytes"][: len(live)]
    after = [
        float(record["arrived_s"]) + float(record["remote_latency_s"]) - stamps["acked_s"]
        for record, stamps in zip(live, run.times, strict=True)
        if "acked_s" in stamps and np.isfinite(record["remote_latency_s"])
    ]
    return Causes(
        frames=len(live),
        otherwise=tuple(other.tolist()),
        bytes_of_them=int(sent[other].sum()),
        first=_seen(int(other[0]), observed, run) if other.size else "",
        stalls=int(stalled(times, world).sum()),
        overtaken=int((live["branch"] < 0).sum()),
        late_s=_median(times.late),
        after_ack_s=_median(np.array(after)),
        server_s=_median(
            np.array([s["server_s"] - s.get("queue_s", 0.0) for s in run.times if "server_s" in s], dtype=np.float64)
        ),
    )


def otherwise(ours: Outcomes, theirs: Outcomes) -> NDArray[np.bool_]:
    """Return (F,) whether two runs decided differently on a frame (one of them not at all counts)."""
    found = (ours["branch"] != theirs["branch"]) | (ours["rate"] != theirs["rate"])
    for name in ("threshold", "patience"):
        a, b = (np.nan_to_num(records[name].astype(np.float64), nan=-1.0) for records in (ours, theirs))
        found |= np.abs(a - b) > SAME
    return np.asarray(found)


def stalled(times: FrameTimes, world: World) -> NDArray[np.bool_]:
    """Return (F,) whether the host held a frame up: a stage beyond its longest modelled time, or a late take-up."""
    stages = world.stages
    longest = float(np.max(stages.signal)) + world.constants.decision_s
    held = (times.late > STALL_S) | (times.looked - times.late > longest + STALL_S)
    for measured, table in ((times.head, stages.head), (times.encode, stages.encode), (times.tail, stages.tail)):
        beyond = measured - table[..., -1] > STALL_S
        held |= beyond.reshape(len(held), -1).any(axis=1)
    return np.asarray(held)


def _were(count: int, of: str = "") -> str:
    return f"{count}{of} {'was' if count == 1 else 'were'}"


def _seen(frame: int, observed: Mapping[int, Seen], run: RecordedRun) -> str:
    """Name the three fields that differ most on a frame."""
    live = run.observations[frame] if frame < len(run.observations) else None
    if live is None or frame not in observed:
        return ""
    a, b = live.astype(np.float64), observed[frame].astype(np.float64)
    parts = []
    for i in np.argsort(-np.abs(a - b))[:3].tolist():
        name, unit = obs.NAMES[i], obs.FIELDS[i].unit
        x, y = float(obs.physical(a, name)), float(obs.physical(b, name))
        parts.append(f"{name} {x:.4g} for {y:.4g} {unit}".rstrip())
    return f"on frame {frame} the live controller saw {', '.join(parts)}"


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
