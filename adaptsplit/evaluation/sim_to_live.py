"""The sim-to-live gap of one live run, by its own log: ``adaptsplit fidelity RUN``.

Three replays on the link that the log shows. In the first the controllers decide anew, with everything that was chance
in the live run as it was there (``replay_paired``): every tolerance is held against it. In the second every decision is
the live one, too: what is left is physics (link, server, sender). In the third the controllers decide and stage times
are drawn, many times, as in any simulation: quality and latency must hold there, too. Its bytes only say how far one
run lies from another: near ties tip in each of them, live as simulated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.errors import DataError, RunError
from adaptsplit.evaluation.fidelity import FLIGHT_FILE, check_flyable, owners
from adaptsplit.evaluation.gap import with_intervals
from adaptsplit.evaluation.live import REPLAY_COLUMNS, LiveComparison, LiveRow, compare_live
from adaptsplit.evaluation.replay import Replay, prepare, replay
from adaptsplit.evaluation.replay_causes import Causes, causes_of
from adaptsplit.evaluation.replay_paired import replay_decisions, replay_paired
from adaptsplit.evaluation.replay_times import frame_times
from adaptsplit.evaluation.statistics import Interval
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import RecordedRun
from adaptsplit.scenario import Scenario, load_scenario

REPEATS = 20
PAIRED = 4  # replays with the live stage times: they differ only where a frame was decided otherwise
ALL = "all controllers"
PAIRED_ONLY = frozenset({"bytes"})
SAID = {"within": "inside", "outside": "outside", "unknown": "unknown"}

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
    """The comparisons (``anew``: the controllers decide; ``repeated``: the live decisions; ``drawn``: they decide, with
    stage times drawn anew), what differed (``causes``), and what was read."""

    anew: LiveComparison
    repeated: LiveComparison
    drawn: LiveComparison
    causes: Causes
    link: str
    measured_rows: dict[str, int]

    @property
    def promised(self) -> tuple[LiveRow, ...]:
        """The numbers of the whole run that have a tolerance, against the first replay.

        A controller's share may be outside: one frame of 40 sent is 2.5 % of its bytes. ``explanations`` has those.
        """
        return tuple(row for row in self.anew.rows if row.controller == ALL and row.column.tolerance is not None)

    @property
    def foretold(self) -> tuple[LiveRow, ...]:
        """Those of them that must hold against the third replay, too."""
        return tuple(_same(self.drawn, row) for row in self.promised if row.column.name not in PAIRED_ONLY)

    @property
    def inside(self) -> bool:
        """Whether each promised number of the whole run is within its tolerance."""
        return all(row.verdict == "within" for row in (*self.promised, *self.foretold))

    def verdicts(self) -> list[str]:
        """Return a line for each promised number of the whole run: gap, 95 % interval, inside or outside."""
        return [f"{_verdict(row)}; {self._drawn(row)}" for row in self.promised]

    def _drawn(self, row: LiveRow) -> str:
        """Such as ``drawn anew +1.2 %: inside``; for bytes what one run differs by from another."""
        drawn = _same(self.drawn, row)
        factor, unit, digits = _scale(row)
        text = f"drawn anew {factor * drawn.gap:+.{digits}f}{unit}"
        if row.column.name in PAIRED_ONLY:
            share = drawn.spread / drawn.simulated if drawn.simulated else float("nan")
            return f"{text}, one run from another \u00b1{100 * share:.1f} %"
        return f"{text}: {SAID[drawn.verdict]}"

    def explanations(self) -> list[str]:
        """Return a line for each number outside, of a single controller too: how much is decisions, how much physics.

        Then what was measured of their causes (also where nothing is outside).
        """
        outside = [row for row in self.anew.rows if row.verdict == "outside"]
        found = [_explained(row, _same(self.repeated, row)) for row in outside]
        for row in self.foretold:
            if row.verdict == "outside":
                found.append(
                    f"{row.column.name}: with stage times drawn anew outside, {row.simulated_text} for {row.live:.3g}"
                )
        return found + self.causes.lines()

    def document(self) -> dict[str, Any]:
        """Return everything as plain numbers, for JSON (null where a number is unknown)."""
        rows = [_row(row, _same(self.repeated, row), _same(self.drawn, row)) for row in self.anew.rows]
        return {
            "inside": self.inside,
            "verdicts": self.verdicts(),
            "frames": dict(self.anew.frames),
            "link": self.link,
            "measured_stage_rows": self.measured_rows,
            "rows": rows,
            "decided_otherwise": list(self.causes.otherwise),
            "explanations": self.explanations(),
            "not_modelled": list(NOT_MODELLED),
        }


def _same(comparison: LiveComparison, row: LiveRow) -> LiveRow:
    return next(r for r in comparison.rows if (r.controller, r.column) == (row.controller, row.column))


def _verdict(row: LiveRow) -> str:
    """Such as ``bytes: +0.4 % (-0.2 to +1.1), tolerance 1 %: inside``."""
    factor, unit, digits = _scale(row)
    limit = f"{factor * (row.column.tolerance or 0.0):g}{unit}"
    gap = f"{factor * row.gap:+.{digits}f}{unit}"
    if row.interval is not None:
        gap += f" ({factor * row.interval.low:+.{digits}f} to {factor * row.interval.high:+.{digits}f})"
    doubt = "" if row.sure or row.interval is None else ", its interval not wholly"
    return f"{row.column.name}: {gap}, tolerance {limit}: {SAID[row.verdict]}{doubt}"


def _scale(row: LiveRow) -> tuple[float, str, int]:
    """Factor, unit and digits of a gap as it is printed."""
    return (100.0, " %", 1) if row.column.relative else (1.0, "", row.column.digits)


def _explained(row: LiveRow, same: LiveRow) -> str:
    unit, digits = row.column.unit, row.column.digits
    decisions, physics = same.simulated - row.simulated, same.difference
    cause = "link or stages differ"
    if same.verdict == "within":
        cause = (
            "with the live decisions it is within; the controller decides otherwise on what it sees in the simulator"
        )
    gap = f"{row.controller}, {row.column.name}: {row.difference:+.{digits}f} {unit}".rstrip()
    return f"{gap} = decisions {decisions:+.{digits}f}, physics {physics:+.{digits}f}; {cause}"


def _row(row: LiveRow, same: LiveRow, drawn: LiveRow) -> dict[str, Any]:
    between = row.interval or Interval(row.gap, float("nan"), float("nan"))
    numbers = {
        "live": row.live,
        "simulated": row.simulated,
        "difference": row.difference,
        "relative": row.relative,
        "gap_low": between.low,
        "gap_high": between.high,
        "with_live_decisions": same.simulated,
        "drawn_anew": drawn.simulated,
        "drawn_anew_spread": drawn.spread,
    }
    known = {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
    inside = None if row.verdict == "unknown" else row.verdict == "within"
    promise = {"tolerance": row.column.tolerance, "tolerance_is_relative": row.column.relative, "inside": inside}
    return {"controller": row.controller, "metric": row.column.name, "unit": row.column.unit, **known, **promise}


def sim_to_live(
    log: Path, bundle: Bundle, scenario: Scenario, split: str = "test", *, repeats: int = REPEATS
) -> SimToLive:
    """Replay a live log; DataError, LinkError or ConfigError for a log, a link or a bundle that do not fit.

    ``repeats`` is of the runs with stage times drawn; of the first replay there are ``PAIRED``, which hardly differ.
    """
    check_flyable(bundle, scenario)
    replayed = prepare(log, scenario, split)
    run, (names, block) = replayed.run, controllers_of(replayed.run, bundle, log)
    played = replay_paired(replayed, bundle, names, block, PAIRED)
    anew, drawn = _compared(replayed, played.outcomes), replay(replayed, bundle, names, block, repeats)
    times = frame_times(run, replayed.own)
    causes = causes_of(run, replayed.own, times, played.outcomes[0], played.observed)
    turns, shown = owners(drawn, block, len(names)), _shown(names, bundle)
    parts = {name: drawn[turns == shown.index(name)] for name in run.by_controller()}
    live = run.by_controller() | {ALL: run.records}
    return SimToLive(
        replace(anew, rows=_sure(anew, replayed, played.outcomes), note=_note(replayed)),
        _compared(replayed, replay_decisions(replayed, PAIRED).outcomes),
        compare_live(parts | {ALL: drawn}, live, columns=REPLAY_COLUMNS),
        causes,
        replayed.link.provenance[0],
        dict(replayed.rows.measured),
    )


def _compared(replayed: Replay, outcomes: Outcomes) -> LiveComparison:
    """Compare (R, F) records with the live ones, each frame with itself: a controller's are those that it had live."""
    run = replayed.run
    ours = {name: outcomes[:, _of(run, name)] for name in (*dict.fromkeys(run.controllers), ALL)}
    live = run.by_controller() | {ALL: run.records}
    return compare_live(ours, live, columns=REPLAY_COLUMNS)


def _sure(found: LiveComparison, replayed: Replay, outcomes: Outcomes) -> tuple[LiveRow, ...]:
    """The rows of a comparison with their intervals."""
    rows: list[LiveRow] = []
    for name in found.controllers:
        chosen, own = _of(replayed.run, name), [row for row in found.rows if row.controller == name]
        rows += with_intervals(own, outcomes[:, chosen], replayed.run.records[chosen])
    return tuple(rows)


def _of(run: RecordedRun, name: str) -> NDArray[np.bool_]:
    """(F,) which frames were a controller's."""
    return np.array([name in (ALL, own) for own in run.controllers])


def _note(replayed: Replay) -> str:
    rows = ", ".join(f"{count} of {name}" for name, count in replayed.rows.measured.items())
    link, own = replayed.link, 1e3 * float(replayed.own.links.dt_s[0])
    return (
        f"{link.duration_s:.0f} s of the link that the log shows, in samples of {own:g} ms (drawn anew: "
        f"{1e3 * link.dt_s:g} ms); measured stage times: {rows}"
    )


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
