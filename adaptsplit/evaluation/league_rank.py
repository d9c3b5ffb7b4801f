"""The league's statistics: normalised scores, ranks, probabilities of improvement, tallies, profiles.

Every scenario has the hierarchical bootstrap of ``statistics`` (recordings, segments, episodes; training runs on a
crossed level). Scenarios whose episodes lie on the same recordings and segments share their draws, as they share the
weather; training runs are drawn anew in each. What is pooled over scenarios pools the draws, each scenario with the
same weight: the scenarios themselves are no sample, they are the list. After Agarwal et al. (NeurIPS 2021): intervals
instead of bare means, probability of improvement, performance profiles (Dolan and More, 2002).
Letters: W resamples, E episodes, S training runs, C controllers, K thresholds.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.league_document import Group
from adaptsplit.evaluation.league_episodes import Episodes
from adaptsplit.evaluation.statistics import LEVEL, Interval, Resamples

Floats = NDArray[np.float64]

BEST_STATIC = "best static, in hindsight"
TRAIN_STATIC = "best static, from train"
INFORMED_0, INFORMED = "oracle-informed-0", "oracle-informed"
TAU = tuple(float(value) for value in np.round(np.arange(-2.0, 3.0001, 0.125), 3))
TIE = 1e-9
"""Mean rewards that are nearer than this are equal: two rules that decide the same."""


@dataclass(frozen=True)
class Contest:
    """One scenario as the statistics see it.

    ``statics``: the decision behind ``BEST_STATIC`` and ``TRAIN_STATIC``; ``groups`` of all others that play, oracles
    included; ``learned`` is the agent chosen on validation; ``pays`` whether the scenario counts among those in which
    adapting pays.
    """

    name: str
    episodes: Episodes
    statics: Mapping[str, str]
    groups: Mapping[str, Group]
    learned: str | None = None
    pays: bool = True
    seed: int = 0
    resample_count: int = field(default=stats.RESAMPLES)

    @property
    def players(self) -> list[str]:
        """Everybody: the two static references, then the others."""
        return [*self.statics, *self.groups]

    def group(self, player: str) -> Group:
        """Return a player's group."""
        return "static" if player in self.statics else self.groups[player]

    def values(self, player: str, metric: str = "reward") -> Floats:
        """Return (E,) values, or (S, E) of S training runs."""
        return self.episodes.of(self.statics.get(player, player), metric)

    def runs(self, player: str) -> int:
        """Return how many training runs a player pools."""
        return self.episodes.runs(self.statics.get(player, player))

    def mean(self, player: str, metric: str = "reward") -> float:
        """Return the mean over episodes and runs."""
        return float(self.values(player, metric).mean())

    @cached_property
    def resamples(self) -> Resamples:
        """The draws: the same for the same recordings and segments, training runs drawn by the scenario's name."""
        levels = [self.episodes.recording, self.episodes.segment]
        labels = zlib.crc32("|".join(f"{a}/{b}" for a, b in zip(*levels, strict=True)).encode())
        drawn = stats.resample(levels, count=self.resample_count, seed=self.seed * 1009 + labels)
        return Resamples(drawn.weights, self.seed * 1009 + zlib.crc32(self.name.encode()))

    def gain(self, player: str, over: str = BEST_STATIC) -> Floats:
        """Return the paired differences of reward, (E,) or (S, E).

        Of two players with the same number of runs, run i is set against run i; else against the mean of the other's.
        """
        mine, theirs = self.values(player), self.values(over)
        if theirs.ndim == 2 and mine.shape != theirs.shape:
            theirs = theirs.mean(axis=0)
        return mine - theirs

    def draws(self, player: str, over: str = BEST_STATIC) -> Floats:
        """Return (W,) resampled mean differences."""
        return stats.draws_of(self.gain(player, over), self.resamples)

    def difference(self, player: str, over: str = BEST_STATIC) -> Interval:
        """Return the mean paired difference with its interval."""
        return stats.interval(self.gain(player, over), self.resamples)

    def has_gap(self, oracle: str) -> bool:
        """Whether an oracle plays and is above the best static decision beyond doubt."""
        return oracle in self.groups and self.difference(oracle).low > 0

    def score(self, player: str, oracle: str = INFORMED_0) -> Interval | None:
        """Return the gap closed; None where the gap is undefined."""
        if not self.has_gap(oracle):
            return None
        rewards = (self.values(player), self.values(BEST_STATIC), self.values(oracle))
        return stats.gap_closed(*rewards, self.resamples)

    def wins(self, player: str, over: str) -> Floats:
        """Return 1 for each episode that ``player`` wins, 1/2 for a tie, (E,) or (S, E)."""
        gain = self.gain(player, over)
        return (gain > TIE) + 0.5 * (np.abs(gain) <= TIE)


def summarise(value: float, draws: Floats) -> Interval:
    """Return a value with the percentile interval of its draws."""
    known = draws[np.isfinite(draws)]
    if not known.size:
        return Interval(value, float("nan"), float("nan"))
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def with_player(contests: Sequence[Contest], player: str) -> list[Contest]:
    """Return the contests that a player takes part in."""
    return [contest for contest in contests if player in contest.players]


def pooled_gap(contests: Sequence[Contest], players: Mapping[str, str], oracle: str = INFORMED_0) -> Interval | None:
    """Return sum of gains / sum of gaps over scenarios; ``players`` names the player of each scenario.

    Scenarios whose own gap is undefined count as well: a sum needs no division by each. None where the pooled gap is
    not above zero beyond doubt.
    """
    used = [each for each in contests if each.name in players and oracle in each.groups]
    if not used:
        return None
    gaps = np.sum([each.draws(oracle) for each in used], axis=0)
    if not summarise(0.0, gaps).low > 0:
        return None
    gains = np.sum([each.draws(players[each.name]) for each in used], axis=0)
    value = sum(each.difference(players[each.name]).value for each in used)
    whole = sum(each.difference(oracle).value for each in used)
    usable = gaps > 0
    return summarise(value / whole, gains[usable] / gaps[usable])


def mean_score(contests: Sequence[Contest], player: str) -> Interval | None:
    """Return the mean normalised score over scenarios with a defined gap; None without any."""
    used = [each for each in with_player(contests, player) if each.has_gap(INFORMED_0)]
    if not used:
        return None
    gains = [each.draws(player) for each in used]
    gaps = [np.where((gap := each.draws(INFORMED_0)) > 0, gap, np.nan) for each in used]
    value = np.mean([each.difference(player).value / each.difference(INFORMED_0).value for each in used])
    draws = np.mean([gain / gap for gain, gap in zip(gains, gaps, strict=True)], axis=0)
    return summarise(float(value), draws)


def mean_wins(contests: Sequence[Contest], pairs: Mapping[str, tuple[str, str]]) -> Interval | None:
    """Return the probability of improvement, meaned over scenarios; ``pairs`` gives (player, rival) of each."""
    used = [each for each in contests if each.name in pairs]
    if not used:
        return None
    wins = [each.wins(*pairs[each.name]) for each in used]
    draws = np.mean([stats.draws_of(own, each.resamples) for own, each in zip(wins, used, strict=True)], axis=0)
    return summarise(float(np.mean([own.mean() for own in wins])), draws)


def rank_columns(values: Floats) -> Floats:
    """Return the ranks of (C, W) values within each column, 1 the largest; equal ones share their mean rank."""
    above = np.array([(values > own + TIE).sum(axis=0) for own in values])
    equal = np.array([(np.abs(values - own) <= TIE).sum(axis=0) for own in values])
    return np.asarray(1.0 + above + 0.5 * (equal - 1), dtype=np.float64)


def mean_ranks(contests: Sequence[Contest]) -> dict[str, Interval]:
    """Return the mean rank of everybody, oracles apart, who played on every scenario."""
    if not contests:
        return {}
    always = [p for p in contests[0].players if all(p in each.players for each in contests)]
    ranked = [player for player in always if contests[0].group(player) != "oracle"]
    points, draws = [], []
    for each in contests:
        means = np.array([[each.difference(player).value] for player in ranked])
        points.append(rank_columns(means)[:, 0])
        draws.append(rank_columns(np.stack([each.draws(player) for player in ranked])))
    value, spread = np.mean(points, axis=0), np.mean(draws, axis=0)
    return {player: summarise(float(value[i]), spread[i]) for i, player in enumerate(ranked)}


def profile(contests: Sequence[Contest], player: str) -> tuple[Floats, Floats, Floats] | None:
    """Return (K,) shares of scenario-episodes with a normalised score >= ``TAU``, and their bounds; None without any.

    Each scenario has the same weight. An episode's score is its gain over the mean gap of the scenario.
    """
    used = [each for each in with_player(contests, player) if each.has_gap(INFORMED_0)]
    if not used:
        return None
    points, draws = [], []
    for each in used:
        score = each.gain(player) / each.difference(INFORMED_0).value
        reached = [(score >= tau - TIE).astype(np.float64) for tau in TAU]
        points.append([own.mean() for own in reached])
        draws.append([stats.draws_of(own, each.resamples) for own in reached])
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(np.mean(draws, axis=0), [tail, 1.0 - tail], axis=1)
    return np.mean(points, axis=0), np.minimum(low, np.mean(points, axis=0)), np.maximum(high, np.mean(points, axis=0))
