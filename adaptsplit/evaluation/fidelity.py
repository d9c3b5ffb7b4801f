"""Simulated against live: the same controllers on the same frames, the same trace and the same device model.

``fly`` runs a bundle's controllers in interleaved blocks over a shaped link; ``simulate`` plays the very same stretch
in the simulator, many times, with stage times and losses drawn anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.agents.static import InterleavedController
from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, LiveRun, run_live
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs.simulator import Stretch
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation.live import LiveComparison, compare_live
from adaptsplit.outcome import Outcomes
from adaptsplit.profiles.published import no_network
from adaptsplit.scenario import Scenario

REPEATS = 20
FLIGHT_FILE = "flight.json"  # beside the live log: what was flown, for ``adaptsplit fidelity``


def fly(
    bundle: Bundle,
    scenario: Scenario,
    split: str,
    stretch: Stretch,
    controllers: Sequence[str],
    *,
    block: int,
    out: Path | None = None,
) -> LiveRun:
    """Fly ``scenario.frames_per_episode`` frames of the stretch with three real processes behind a shaped link."""
    first, _ = scenario.profile(split).segments[stretch.flight]
    index = int(scenario.profile(split).index[first + stretch.first_frame])
    frames = LiveFrames(scenario.frames, split, 0, scenario.data, index, scenario.frames_per_episode)
    battery = Telemetry(scenario.battery_j, stretch.battery, scenario.base_w)
    options = LiveOptions(offset_s=stretch.offset_s, block=block, observations=True)
    trace = scenario.links(split)[stretch.link]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        said = {"scenario": scenario.name, "split": split, "bundle": str(bundle.path.resolve())}
        said |= {"link": trace.name, "offset_s": repr(stretch.offset_s)}
        (out / FLIGHT_FILE).write_text(json.dumps(said, indent=1), encoding="utf-8")
    return run_live(bundle, frames, trace, controllers, options, telemetry=battery, out=out)


def simulate(
    world: World, bundle: Bundle, stretch: Stretch, controllers: Sequence[str], *, block: int, repeats: int = REPEATS
) -> dict[str, Outcomes]:
    """Play the stretch in the simulator; return each controller's own records of all repeats."""
    chosen = bundle.build(controllers, block)
    parts = chosen.parts if isinstance(chosen, InterleavedController) else (chosen,)
    outcomes = run_episodes(world, chosen, episode_seeds(0, repeats, "test"), stretch=stretch)
    turns = owners(outcomes, block, len(parts))
    return {part.name: outcomes[turns == i] for i, part in enumerate(parts)}


def compare_flight(
    bundle: Bundle,
    scenario: Scenario,
    split: str,
    stretch: Stretch,
    controllers: Sequence[str],
    *,
    block: int,
    out: Path | None = None,
) -> LiveComparison:
    """Simulate and fly the stretch with the same controllers in the same blocks; return both side by side.

    ConfigError for a scenario without a network, or a bundle that was made for other decisions.
    """
    check_flyable(bundle, scenario)
    world = build_world(scenario, split, label_free=False)
    simulated = simulate(world, bundle, stretch, controllers, block=block)
    flown = fly(bundle, scenario, split, stretch, controllers, block=block, out=out).outcomes
    named = {bundle.controller.name if name == "bundle" else name: records for name, records in flown.items()}
    return compare_live(simulated, named, note=where(scenario, split, stretch))


def check_flyable(bundle: Bundle, scenario: Scenario) -> None:
    """Raise ConfigError unless the bundle can be flown on the scenario."""
    if scenario.published:
        raise no_network(scenario.file.profile)
    if bundle.space != scenario.space:
        raise ConfigError(
            f"{bundle.path}: made for scenario {bundle.manifest.scenario!r}, whose branches, codecs or exit rules are "
            f"not those of {scenario.name!r}; make one with: adaptsplit export RUN|AGENT --scenario {scenario.name}"
        )


def typical_stretch(scenario: Scenario, split: str) -> Stretch:
    """Return the start of the trace whose share of time without capacity is the median of all, and the first flight."""
    idle = [float(np.mean(trace.capacity_bps == 0)) for trace in scenario.links(split)]
    return Stretch(link=int(np.argsort(idle)[len(idle) // 2]), offset_s=0.0, flight=0, first_frame=0)


def where(scenario: Scenario, split: str, stretch: Stretch) -> str:
    """Say which trace and stretch it is, and what of the scenario a live run does not have."""
    trace, file = scenario.links(split)[stretch.link], scenario.file
    parts = {"the server's other work": file.server is not None, "the board's other work": file.device.load is not None}
    parts |= {"its heat and clock": file.device.thermal or file.device.dvfs}
    missing = [name for name, simulated in parts.items() if simulated]
    text = f"{scenario.episode_s:.0f} s of trace {trace.name} from {stretch.offset_s:.0f} s on"
    return f"{text}; simulated only: {', '.join(missing)}" if missing else text


def owners(outcomes: Outcomes, block: int, parts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (E, F) whose frame each is: of the controller that decided on it, a dropped one of the decision before."""
    return np.asarray(block_of(outcomes, block) % parts)


def block_of(outcomes: Outcomes, block: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (..., F) the number of the block that each frame belongs to."""
    decided = np.cumsum(outcomes["branch"] >= 0, axis=-1) - 1
    return np.asarray(np.maximum(decided, 0) // block)
