"""Who beats whom beyond doubt: bootstrap p-values with Holm's correction, tallies, duels, the headline, standings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation import league_rank as rank
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.league_rank import BEST_STATIC, INFORMED, INFORMED_0, Contest
from adaptsplit.evaluation.results import Estimate
from adaptsplit.evaluation.statistics import Interval

Floats = NDArray[np.float64]

ALPHA = 0.05
RivalKind = Literal["static", "published"]
RIVALS: tuple[RivalKind, ...] = ("static", "published")
BEST_PUBLISHED = "best published, in hindsight"


def p_value(draws: Floats) -> float:
    """Return the two-sided p of "no difference" from (W,) resampled differences (Davison and Hinkley 1997, 4.4)."""
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    return min(1.0, 2.0 * (min(below, above) + 1) / (len(draws) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979): the i-th smallest of m times m - i, never descending."""
    order = np.argsort(p, kind="stable")
    adjusted = [0.0] * len(p)
    running = 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = running
    return adjusted


def verdict(difference: float, p: float) -> doc.Verdict:
    """Return whether a difference is told apart from zero, and in which direction."""
    if p >= ALPHA:
        return "same"
    return "better" if difference > 0 else "worse"


def best_published(contest: Contest) -> str | None:
    """Return the published controller that is best in hindsight."""
    return best_in_group(contest, "published")


def best_in_group(contest: Contest, group: doc.Group) -> str | None:
    """Return the controller of one group with the best mean reward here; None without any."""
    found = [player for player in contest.groups if contest.group(player) == group]
    return max(found, key=contest.mean, default=None)


def verdicts(contests: Sequence[Contest], pairs: Mapping[str, tuple[str, str]]) -> dict[str, doc.Verdict]:
    """Return the verdict of each scenario named in ``pairs`` (player, rival), corrected over those scenarios."""
    used = [each for each in contests if each.name in pairs]
    p = holm([p_value(each.draws(*pairs[each.name])) for each in used])
    return {
        each.name: verdict(each.difference(*pairs[each.name]).value, own) for each, own in zip(used, p, strict=True)
    }


def tally(contests: Sequence[Contest], player: str, reference: str) -> doc.Tally:
    """Count the verdicts of one player against a reference (``BEST_STATIC`` or ``BEST_PUBLISHED``)."""
    pairs = {}
    for each in rank.with_player(contests, player):
        rival = best_published(each) if reference == BEST_PUBLISHED else reference
        if rival is not None:
            pairs[each.name] = (player, rival)
    found = list(verdicts(contests, pairs).values())
    counts = {name: found.count(name) for name in ("better", "same", "worse")}
    return doc.Tally(reference=reference, better=counts["better"], same=counts["same"], worse=counts["worse"])


def duels(contests: Sequence[Contest], kind: RivalKind) -> tuple[doc.Duel, ...]:
    """Set the learned agent of each scenario against the best static decision, or the best published controller."""
    pairs = {}
    for each in contests:
        rival = BEST_STATIC if kind == "static" else best_published(each)
        if each.learned is not None and rival is not None:
            pairs[each.name] = (each.learned, rival)
    used = [each for each in contests if each.name in pairs]
    p = [p_value(each.draws(*pairs[each.name])) for each in used]
    return tuple(_duel(each, kind, pairs[each.name], *own) for each, *own in zip(used, p, holm(p), strict=True))


def _duel(contest: Contest, kind: RivalKind, pair: tuple[str, str], p: float, p_holm: float) -> doc.Duel:
    difference = contest.difference(*pair)
    wins = rank.mean_wins([contest], {contest.name: pair})
    return doc.Duel(
        scenario=contest.name,
        learned=pair[0],
        rival_kind=kind,
        rival=contest.statics.get(pair[1], pair[1]),
        difference=estimate(difference),
        improvement=estimate(wins or Interval(0.5, 0.5, 0.5)),
        p=p,
        p_holm=p_holm,
        verdict=verdict(difference.value, p_holm),
    )


def headline(contests: Sequence[Contest], found: Sequence[doc.Duel]) -> doc.Headline | None:
    """Return the learned agents' record over the scenarios in which adapting pays; None without learned agents."""
    paying = [each for each in contests if each.pays and each.learned is not None]
    if not paying:
        return None
    names = {each.name for each in paying}
    players = {each.name: each.learned or "" for each in paying}
    counts = {}
    for kind in ("static", "published"):
        own = [duel for duel in found if duel.rival_kind == kind and duel.scenario in names]
        counts[f"at_least_{kind}"] = sum((duel.difference.value or 0.0) >= 0 for duel in own)
        counts[f"better_{kind}"] = sum(duel.verdict == "better" for duel in own)
    return doc.Headline(
        scenarios=len(paying),
        **counts,
        gap_0=_maybe(rank.pooled_gap(paying, players, INFORMED_0)),
        gap_inf=_maybe(rank.pooled_gap(paying, players, INFORMED)),
    )


def standings(contests: Sequence[Contest]) -> tuple[doc.Standing, ...]:
    """Return everybody's standing over ``contests``, best pooled gap first, oracles last."""
    ranks = rank.mean_ranks(contests)
    players = list(dict.fromkeys(player for each in contests for player in each.players))
    rows = [_standing(contests, player, ranks.get(player)) for player in players]
    return tuple(sorted(rows, key=lambda row: (row.group == "oracle", *_order(row))))


def _order(row: doc.Standing) -> tuple[float, float]:
    found = row.gap_0
    gap = found.value if found is not None and found.value is not None else -np.inf
    return -gap, -(row.improvement.value or 0.0)


def _standing(contests: Sequence[Contest], player: str, found: Interval | None) -> doc.Standing:
    played = rank.with_player(contests, player)
    players = {each.name: player for each in played}
    group = played[0].group(player)
    against = {each.name: (player, BEST_STATIC) for each in played}
    chosen = {each.name: (each.learned, player) for each in played if each.learned not in (None, player)}
    improvement = rank.mean_wins(played, against) or Interval(0.5, 0.5, 0.5)
    references = (BEST_STATIC, BEST_PUBLISHED) if group != "oracle" else (BEST_STATIC,)
    return doc.Standing(
        controller=player,
        group=group,
        runs=min(each.runs(player) for each in played),
        scenarios=len(played),
        score=_maybe(rank.mean_score(contests, player)),
        gap_0=_maybe(rank.pooled_gap(played, players, INFORMED_0)),
        gap_inf=_maybe(rank.pooled_gap(played, players, INFORMED)),
        rank=_maybe(found),
        improvement=estimate(improvement),
        beaten_by_learned=_maybe(rank.mean_wins(played, chosen)) if chosen else None,
        tallies=tuple(tally(contests, player, reference) for reference in references),
    )


def _maybe(value: Interval | None) -> Estimate | None:
    return None if value is None else estimate(value)


def profiles(contests: Sequence[Contest], players: Sequence[str]) -> doc.Profiles:
    """Return the performance profiles of ``players`` over scenarios with a defined gap."""
    curves = []
    for player in players:
        found = rank.profile(contests, player)
        if found is not None:
            group = rank.with_player(contests, player)[0].group(player)
            share, low, high = (tuple(float(v) for v in values) for values in found)
            curves.append(doc.Profile(controller=player, group=group, share=share, low=low, high=high))
    return doc.Profiles(tau=rank.TAU, curves=tuple(curves))
