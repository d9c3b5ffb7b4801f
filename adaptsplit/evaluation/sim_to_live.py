"""The sim-to-live gap of one live run, by its own log: ``adaptsplit fidelity RUN``.

Two replays on the link that the log shows. In the first the controllers decide anew: that is the promise of the
simulator. In the second every decision is the live one: what is left is physics (link, stages, sender). Where the first
is outside its tolerance and the second is not, the controller stood near a tie and small delays tipped it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.device_bridge.livelog import RecordedRun
from adaptsplit.errors import DataError, RunError
from adaptsplit.evaluation.fidelity import FLIGHT_FILE, check_flyable, owners
from adaptsplit.evaluation.live import REPLAY_COLUMNS, LiveComparison, LiveRow, compare_live
from adaptsplit.evaluation.replay import Replay, prepare, replay, replay_decisions
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario, load_scenario

REPEATS = 20
ALL = "all controllers"

NOT_MODELLED = (
    "TCP's slow start and congestion control: shaper and simulator serve at the link's capacity from the first byte.",
    "Retransmission time-outs: a lost packet costs one round trip in both; on a real path 200 ms to seconds.",
    "The capacity of the way back: acknowledgements and results take half a round trip whatever their size.",
    "Loss, as the log shows it: TCP hides it, so that a retransmission replays as a moment of slow link.",
    "The link while nothing was under way: it is interpolated, and a controller that sends more meets a guess there.",
    "A dead broker or edge: the replay shows an outage of the link in its place.",
    "Hops through the broker and late wake-ups: the log's round trips hold them, the simulator's own links do not.",
)


@dataclass(frozen=True, slots=True)
class SimToLive:
    """Both comparisons (``anew``: the controllers decide; ``repeated``: the live decisions), and what was read."""

    anew: LiveComparison
    repeated: LiveComparison
    link: str
    measured_rows: dict[str, int]

    @property
    def inside(self) -> bool:
        """Whether the whole run holds: each promised number is within its tolerance, or ``undecided``.

        A controller's share may be outside: one frame of 40 sent is 2.5 % of its bytes. ``explanations`` has those.
        """
        whole = [row for row in self.anew.rows if row.controller == ALL and row.verdict == "outside"]
        return all(self.undecided(row) for row in whole)

    def undecided(self, row: LiveRow) -> bool:
        """Whether a number outside is no evidence of a gap.

        That is when the physics is within tolerance (the live decisions repeated), and the rest is at most twice what
        one simulated run differs from another: then near ties decide, and no two runs agree on them.
        """
        return self._same(row).verdict == "within" and abs(row.difference) <= 2.0 * row.spread

    def _same(self, row: LiveRow) -> LiveRow:
        return next(r for r in self.repeated.rows if (r.controller, r.column) == (row.controller, row.column))

    def explanations(self) -> list[str]:
        """Return a line for each number outside: how much of the gap is decisions, how much physics."""
        outside = [row for row in self.anew.rows if row.verdict == "outside"]
        return [_explained(row, self._same(row), self.undecided(row)) for row in outside]

    def document(self) -> dict[str, Any]:
        """Return everything as plain numbers, for JSON (null where a number is unknown)."""
        rows = [{**_row(row, self._same(row)), "undecided": self.undecided(row)} for row in self.anew.rows]
        return {
            "inside": self.inside,
            "frames": dict(self.anew.frames),
            "link": self.link,
            "measured_stage_rows": self.measured_rows,
            "rows": rows,
            "explanations": self.explanations(),
            "not_modelled": list(NOT_MODELLED),
        }


def _explained(row: LiveRow, same: LiveRow, undecided: bool) -> str:
    unit, digits = row.column.unit, row.column.digits
    decisions, physics = same.simulated - row.simulated, same.difference
    if undecided:
        cause = f"near ties tip: one simulated run differs from another by ±{row.spread:.{digits}f}, too"
    elif same.verdict == "within":
        cause = (
            "with the live decisions it is within; the controller decides otherwise on what it sees in the simulator"
        )
    else:
        cause = "link or stages differ"
    gap = f"{row.controller}, {row.column.name}: {row.difference:+.{digits}f} {unit}".rstrip()
    return f"{gap} = decisions {decisions:+.{digits}f}, physics {physics:+.{digits}f}; {cause}"


def _row(row: LiveRow, same: LiveRow) -> dict[str, Any]:
    numbers = {
        "live": row.live,
        "simulated": row.simulated,
        "spread": row.spread,
        "difference": row.difference,
        "relative": row.relative,
        "with_live_decisions": same.simulated,
    }
    known = {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
    inside = None if row.verdict == "unknown" else row.verdict == "within"
    promise = {"tolerance": row.column.tolerance, "tolerance_is_relative": row.column.relative, "inside": inside}
    return {"controller": row.controller, "metric": row.column.name, "unit": row.column.unit, **known, **promise}


def sim_to_live(
    log: Path, bundle: Bundle, scenario: Scenario, split: str = "test", *, repeats: int = REPEATS
) -> SimToLive:
    """Replay a live log; DataError, LinkError or ConfigError for a log, a link or a bundle that do not fit."""
    check_flyable(bundle, scenario)
    replayed = prepare(log, scenario, split)
    names, block = controllers_of(replayed.run, bundle, log)
    live = _with_all(replayed.run.by_controller())
    anew = replay(replayed, bundle, names, block, repeats)
    turns = owners(anew, block, len(names))
    parts = {name: anew[turns == i] for i, name in enumerate(_shown(names, bundle))}
    repeated = replay_decisions(replayed, repeats)
    own = np.array(replayed.run.controllers)
    same = {name: repeated[:, own == name] for name in replayed.run.by_controller()}
    note = _note(replayed)
    return SimToLive(
        compare_live({name: parts[name] for name in same} | {ALL: anew}, live, note=note, columns=REPLAY_COLUMNS),
        compare_live(same | {ALL: repeated}, live, note=note, columns=REPLAY_COLUMNS),
        replayed.link.provenance[0],
        dict(replayed.rows.measured),
    )


def _with_all(live: dict[str, Outcomes]) -> dict[str, Outcomes]:
    return live | {ALL: np.concatenate(list(live.values()))}


def _note(replayed: Replay) -> str:
    rows = ", ".join(f"{count} of {name}" for name, count in replayed.rows.measured.items())
    link = replayed.link
    return f"{link.duration_s:.0f} s of the link that the log shows; measured stage times: {rows}"


def _shown(names: Sequence[str], bundle: Bundle) -> list[str]:
    return [bundle.controller.name if name == "bundle" else name for name in names]


def controllers_of(run: RecordedRun, bundle: Bundle, log: Path) -> tuple[list[str], int]:
    """Return the names that build the run's controllers, and the block; DataError when the bundle is not the run's."""
    own, seen = bundle.controller.name, list(dict.fromkeys(run.controllers))
    names = [str(name) for name in run.description.get("controllers", seen)]
    names = ["bundle" if name == own else name for name in names]
    flown = run.description.get("bundle_controller", own)
    if "bundle" in names and flown != own:
        raise DataError(f"{log}: flown with controller {flown!r}, but {bundle.path} holds {own!r}; name its --bundle")
    missing = set(_shown(names, bundle)) - set(seen)
    if missing:
        raise DataError(f"{log}: no frame of {', '.join(sorted(missing))}; fly at least one block of each controller")
    return names, int(run.description.get("block") or len(run.records))


def find_run(run: Path, bundle: Path | None, scenario: str | None, split: str | None) -> tuple[Path, Path, str, str]:
    """Return log, bundle, scenario and split of RUN: a live log, a folder of ``fly --out``, or the demo's folder.

    What is not named is looked for beside the log (``flight.json``, ``bundle``). RunError says what to name.
    """
    places = [run] if run.is_file() else [run / "live.jsonl", run / "live" / "live.jsonl"]
    log = next((place for place in places if place.is_file()), None)
    if log is None:
        raise RunError(f"{run}: no live log (looked for {', '.join(map(str, places))}); make one with: adaptsplit fly")
    said = _flight(log.parent / FLIGHT_FILE)
    candidates = (
        [bundle] if bundle else [log.parent.parent / "bundle", log.parent / "bundle", Path(said.get("bundle", ""))]
    )
    found = next((place for place in candidates if place and (place / "manifest.json").is_file()), None)
    if found is None:
        raise RunError(f"{log}: no bundle beside it; name the one that was flown: --bundle DIR")
    name = scenario or said.get("scenario") or load_bundle(found).manifest.scenario
    return log, found, name, split or said.get("split", "test")


def _flight(path: Path) -> dict[str, str]:
    """What ``fly`` said of its flight; empty where it said nothing."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not what fly writes ({error}); fly again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, found {type(value).__name__}; fly again")
    return {str(key): item for key, item in value.items() if isinstance(item, str)}


def run_fidelity(
    run: Path,
    bundle: Path | None = None,
    scenario: str | None = None,
    split: str | None = None,
    *,
    data: Path | None = None,
    repeats: int = REPEATS,
) -> SimToLive:
    """``adaptsplit fidelity``: find what belongs to RUN and compare."""
    log, folder, name, chosen = find_run(run, bundle, scenario, split)
    return sim_to_live(log, load_bundle(folder), load_scenario(name, data), chosen, repeats=repeats)
