"""Warnings of a diagnosis, each with the number that triggered it, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import ALWAYS_EXIT, SKIP, DecisionSpace
from adaptsplit.envs import Simulator, World
from adaptsplit.estimators import OVERHEAD_BYTES
from adaptsplit.evaluation.diagnose_document import Caution, Pays, Standing, Sufficiency
from adaptsplit.evaluation.results import Estimate
from adaptsplit.links.spec import AnyLink, GenerateLink, SpliceLink
from adaptsplit.profiles import Profile

MARGIN = 0.002
"""Reward per frame below which a gain is nothing: a fifth of a point of accuracy (a convention, not a measurement)."""
ALWAYS, NEVER = 0.99, 0.01
MOMENT_S = 0.25
Floats = NDArray[np.float64]


def verdict(standings: Mapping[str, Standing]) -> tuple[Pays, str]:
    """Tell whether adapting pays, from the differences to the best static decision in hindsight.

    Yes: informed(0), which knows no future, is above zero with its whole interval, and so is some controller (a rule or
    the fitted one). Informed(0) alone proves nothing: it knows every exit's confidence on the frame at hand, which no
    controller does. No: the intervals of informed(inf) and of every controller end below ``MARGIN``. Else unclear.
    """
    now, informed = (standings[name].difference for name in ("oracle-informed-0", "oracle-informed"))
    best = best_controller(standings)
    reached = f"{best.name} {signed(best.difference)}"
    if _above(now, 0.0) and _above(best.difference, 0.0):
        return "yes", f"yes ({signed(now)} for informed(0); {reached})"
    highest = max(item.high for item in (informed, best.difference) if item.high is not None)
    if highest < MARGIN:
        return "no", f"no (at most {highest:+.4f}: informed(inf) {signed(informed)}; fit for a control group)"
    return "unclear", f"unclear ({signed(now)} for informed(0); {reached})"


def best_controller(standings: Mapping[str, Standing]) -> Standing:
    """Return the best of the rules and the fitted controller."""
    return max(
        (row for row in standings.values() if row.role in ("rule", "fitted")),
        key=lambda row: row.difference.value or 0.0,
    )


def _above(value: Estimate, mark: float) -> bool:
    return value.low is not None and value.low > mark


def signed(value: Estimate) -> str:
    """Return ``+0.012 [0.008, 0.016]``."""
    if value.value is None or value.low is None or value.high is None:
        return "unknown"
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def margin_cautions(standings: Mapping[str, Standing]) -> list[Caution]:
    """Adapting cannot pay, pays nobody who could be built, or the oracles are no mark to measure it by."""
    informed, now = standings["oracle-informed"].difference, standings["oracle-informed-0"].difference
    found = []
    if informed.high is not None and informed.high < MARGIN:
        text = f"adapting cannot pay: informed(inf) gains at most {informed.high:+.4f}, below the margin of {MARGIN:g}"
        found.append(Caution(kind="margin", text=text))
    best = best_controller(standings)
    if not _above(now, 0.0):
        text = f"informed(0) is not above the best static decision: {signed(now)}"
        found.append(Caution(kind="margin", text=text))
    elif not _above(best.difference, 0.0):
        text = (
            f"no controller tried is above the best static decision (best: {best.name} {signed(best.difference)}); "
            "informed(0) also knows the confidences of the frame at hand"
        )
        found.append(Caution(kind="reach", text=text))
    if informed.high is not None and informed.high < 0:
        text = (
            f"informed(inf) is below the best static decision ({signed(informed)}): it expects qualities by a "
            "regression on train frames that does not hold here, so it is no upper mark"
        )
        found.append(Caution(kind="oracle", text=text))
    fitted = standings["fitted"].difference
    if fitted.high is not None and fitted.high < 0:
        text = (
            f"the fitted controller is below the best static decision ({signed(fitted)}), so the worth of observation "
            "groups says little"
        )
        found.append(Caution(kind="fitted", text=text))
    return found


def threshold_cautions(profile: Profile, space: DecisionSpace) -> list[Caution]:
    """Thresholds that can never fire, or always do, on the profile's frames: one warning per exit."""
    found = []
    levels = sorted({value for value in space.thresholds if ALWAYS_EXIT < value <= 1.0})
    for b, branch in enumerate(space.branches):
        if branch.kind != "split" or not levels:
            continue
        share = [float((profile.exit_confidence[:, b] >= level).mean()) for level in levels]
        for word, wanted in (("never fires", 0.0), ("always fires", 1.0)):
            which = [f"{level:g}" for level, value in zip(levels, share, strict=True) if value == wanted]
            if which:
                text = (
                    f"exit of {branch.name}: threshold {', '.join(which)} {word} (share {wanted:g} of {len(profile)})"
                )
                found.append(Caution(kind="threshold", text=text))
    return found


def dominated_cautions(world: World, space: DecisionSpace, used: NDArray[np.int64]) -> list[Caution]:
    """Branches and codecs that no oracle ever used and that another one beats in everything.

    ``used`` (n, 3) are the decisions that any oracle took.
    """
    pairs, points = _points(world, space)
    sent = used[np.array(space.thresholds)[used[:, 2]] > ALWAYS_EXIT]
    taken_pairs, taken_branches = {(b, r) for b, r, _ in sent.tolist()}, set(used[:, 0].tolist())
    beaten = [(pair, _beaten_by(i, points, pairs)) for i, pair in enumerate(pairs)]
    found = []
    for b, branch in enumerate(space.branches):
        mine = [(r, by) for (owner, r), by in beaten if owner == b]
        if not mine or branch.kind == SKIP:
            continue
        others = [[k for k in by if pairs[k][0] != b] for _, by in mine]
        if b not in taken_branches and all(others):
            better = space.branches[pairs[others[0][0]][0]].name
            text = f"branch {branch.name}: no oracle uses it, and {better} is no worse in quality, bytes and time"
            found.append(Caution(kind="dominated", text=text))
            continue
        useless = [branch.codecs[r] for r, by in mine if branch.codecs and by and (b, r) not in taken_pairs]
        if useless:
            text = f"branch {branch.name}: codec {', '.join(useless)} is used by no oracle (0 frames) and dominated"
            found.append(Caution(kind="dominated", text=text))
    return found


def _points(world: World, space: DecisionSpace) -> tuple[list[tuple[int, int]], Floats]:
    """Return pairs (branch, rate) and their negative qualities, bytes and times: less is better everywhere."""
    o, s = world.outcomes, world.stages
    pairs, points = [], []
    for b, branch in enumerate(space.branches):
        if branch.kind == SKIP:
            continue
        head_of = int(world.exit_branch[b])
        head, exits = float(np.median(s.head[head_of])), float(o.exit_quality[:-1, head_of].mean())
        for r in range(int(world.rates[b])):
            alone = branch.kind == "local"
            tail = exits if alone else float(o.tail_quality[:-1, b, r].mean())
            payload = 0.0 if alone else float(o.payload[:-1, b, r].mean())
            encode, server = (0.0 if alone else float(np.median(table[b, r])) for table in (s.encode, s.tail))
            pairs.append((b, r))
            points.append([-tail, -exits, payload, head, head + encode, server])
    return pairs, np.array(points)


def _beaten_by(i: int, points: Floats, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the pairs that are no worse in everything (of equal ones the first beats the others)."""
    no_worse, better = (points <= points[i]).all(axis=1), (points < points[i]).any(axis=1)
    return [k for k in range(len(pairs)) if k != i and no_worse[k] and (better[k] or k < i)]


def sufficiency(world: World, space: DecisionSpace) -> Sufficiency | None:
    """Return how often an idle link delivers the easiest and the hardest mean message in time; None when none is sent.

    A pair's share is taken over moments every 0.25 s of all traces, each weighed as episodes draw it.
    """
    shares = {}
    for b, branch in enumerate(space.branches):
        for r, codec in enumerate(branch.codecs):
            shares[f"{branch.name}/{codec}"] = _share_in_time(world, b, r)
    if not shares:
        return None
    easiest, hardest = max(shares, key=lambda name: shares[name]), min(shares, key=lambda name: shares[name])
    return Sufficiency(easiest=easiest, easiest_share=shares[easiest], hardest=hardest, hardest_share=shares[hardest])


def _share_in_time(world: World, b: int, r: int) -> float:
    stages, links = world.stages, world.links
    head = float(np.median(stages.head[int(world.exit_branch[b])]))
    busy = world.constants.decision_s + float(np.median(stages.signal)) + head + float(np.median(stages.encode[b, r]))
    left = world.constants.deadline_s - busy - float(np.median(stages.tail[b, r]))
    need = 8.0 * (float(world.outcomes.payload[:-1, b, r].mean()) + OVERHEAD_BYTES)
    drawn = np.diff(links.share, prepend=0.0)
    return float(sum(p * _delivered(world, i, left, need) for i, p in enumerate(drawn)))


def _delivered(world: World, link: int, left: float, need: float) -> float:
    """Share of the moments of one trace at which ``need`` bits pass within ``left`` seconds less the round trip."""
    links = world.links
    first, count, dt = int(links.first[link]), int(links.samples[link]), float(links.dt_s[link])
    bits, rtt = links.table[first : first + count + 1, 0], links.table[first : first + count, 2]
    length = count * dt
    at = np.arange(0.0, length, min(MOMENT_S, length))
    until = at + np.maximum(left - rtt[np.minimum((at / dt).astype(np.int64), count - 1)], 0.0)
    grid = np.arange(count + 1) * dt

    def total(time: Floats) -> Floats:
        loops = np.floor(time / length)
        return np.asarray(loops * bits[-1] + np.interp(time - loops * length, grid, bits))

    return float((total(until) - total(at) >= need).mean())


def link_cautions(found: Sufficiency | None) -> list[Caution]:
    """A link that is always or never sufficient."""
    if found is None:
        return []
    if found.hardest_share >= ALWAYS:
        text = f"the link always suffices: even {found.hardest} arrives in time at {found.hardest_share:.1%} of moments"
        return [Caution(kind="link", text=text)]
    if found.easiest_share <= NEVER:
        text = f"the link never suffices: even {found.easiest} arrives in time at {found.easiest_share:.1%} of moments"
        return [Caution(kind="link", text=text)]
    return []


def battery_cautions(world: World, seeds: NDArray[np.uint64], row: NDArray[np.int64]) -> list[Caution]:
    """A battery that ends (nearly) every episode of the best static decision ``row`` (3,)."""
    simulator = Simulator(world, len(seeds))
    simulator.reset(seeds)
    decisions = np.tile(row, (len(seeds), 1))
    while not simulator.done.all():
        simulator.step(decisions)
    share = float(simulator.terminated.mean())
    if share < ALWAYS:
        return []
    text = f"the battery ends {share:.0%} of the episodes: every frame after that is a miss, whatever is decided"
    return [Caution(kind="battery", text=text)]


def source_cautions(published: bool, profile: Profile, specs: Iterable[AnyLink]) -> list[Caution]:
    """Outcomes or links that are modelled, not measured."""
    found = []
    if published:
        text = f"modelled outcomes: the {len(profile)} frames are sampled from a published table ({profile.model.name})"
        found.append(Caution(kind="published", text=text))
    listed = list(specs)
    if all(generated(spec) for spec in listed):
        found.append(Caution(kind="links", text=f"modelled links: all {len(listed)} entries are generated"))
    return found


def generated(spec: Any) -> bool:
    """Tell whether a link entry makes its traces without any recording."""
    if isinstance(spec, SpliceLink):
        return all(generated(part) for part in spec.parts)
    return isinstance(spec, GenerateLink) and "fitted_from" not in spec.parameters and spec.rtt_from is None
