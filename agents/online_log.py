"""Learning from live logs, off policy: what another controller's decisions brought warms up an online learner.

The records carry observation, decision and outcome, so the filter of ``online`` is run over them as they stand; no
importance weights are needed for a regression on the decision that was made. Labels are not used.

The estimate of the gain is doubly robust (Dudik, Langford, Li: "Doubly Robust Policy Evaluation and Learning", ICML
2011) with cross-fitting: the learner of one half of the log's blocks predicts the other half, and where a policy's
decision is the logged one the logged reward corrects the prediction, weighted by 1 / P(logged | policy's decision),
which is estimated from the log (its controllers are deterministic, so no propensity is on record).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.bandits_arms import Arms, Floats, Ints
from adaptsplit.agents.online import OnlineController
from adaptsplit.agents.online_state import Lessons
from adaptsplit.errors import DataError
from adaptsplit.recorded_run import read_run

MIN_FRAMES = 200  # decided frames with an observation: 20 s at 10 frames/s; less says nothing (assumed)
BATCH = 256  # frames that are decided at once
BLOCK = 50  # frames that are resampled together
RESAMPLES = 1000
LEAST_SHARE = 0.05  # weights are at most 1 / this


@dataclass(frozen=True, slots=True)
class LoggedFrames:
    """N decided frames in their order: ``observation`` (N, D), ``arm`` (N,) place in the table, ``reward`` (N,) the
    label-free reward of the frame and ``drops`` (N,) of how many dropped frames after it it is due, each of which
    earned ``dropped`` (N,).
    """

    observation: NDArray[np.float32]
    arm: Ints
    reward: Floats
    drops: Ints
    dropped: Floats

    def __len__(self) -> int:
        return len(self.arm)

    def take(self, index: NDArray[np.bool_]) -> LoggedFrames:
        """Return the frames of a mask (N,)."""
        return LoggedFrames(
            self.observation[index], self.arm[index], self.reward[index], self.drops[index], self.dropped[index]
        )

    @property
    def worth(self) -> Floats:
        """(N,) mean reward of the frame and of the drops that are due to it: what a decision brings per frame."""
        return (self.reward + self.dropped) / (1.0 + self.drops)


@dataclass(frozen=True, slots=True)
class GainEstimate:
    """Doubly robust estimate of reward per frame: the learner's less the frozen policy's, with its 95 % interval.

    ``value`` and ``frozen`` are the two themselves, ``logged`` the log's mean; ``matched`` the share of frames on which
    the learner decides as the log did: with few the estimate rests on the regression alone.
    """

    gain: float
    low: float
    high: float
    value: float
    frozen: float
    logged: float
    matched: float
    frames: int


def read_frames(paths: Sequence[Path], controller: OnlineController) -> LoggedFrames:
    """Read live logs of a device with observations; DataError names file, line and what is wrong or missing.

    Frames of decisions that the space does not have are an error: the log is another scenario's.
    """
    parts = [_read_one(path, controller) for path in paths]
    if not parts:
        raise DataError("no live log named; give at least one with --logs")
    fields = ("observation", "arm", "reward", "drops", "dropped")
    frames = LoggedFrames(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))
    if len(frames) < MIN_FRAMES:
        raise DataError(
            f"{', '.join(map(str, paths))}: {len(frames)} decided frames with an observation; expected at least "
            f"{MIN_FRAMES}; fly longer, with observations in the log"
        )
    return frames


def _read_one(path: Path, controller: OnlineController) -> LoggedFrames:
    run = read_run(path, observations=True)
    outcomes, seen = run.records, run.observations
    if not any(row is not None for row in seen):
        raise DataError(f"{path}: no observations in it; log them: adaptsplit device --log FILE --observations")
    decided = outcomes["branch"] >= 0
    arm = Arms(controller.space, np.arange(len(controller.space.table))).of(outcomes)
    reward = controller.reward(outcomes)
    if (decided & (arm < 0)).any():
        first = int(outcomes["frame"][np.flatnonzero(decided & (arm < 0))[0]])
        raise DataError(
            f"{path}, frame {first}: a decision that this policy's space has not; take logs of the scenario that it "
            "was trained for"
        )
    owner = np.cumsum(decided) - 1
    lost = ~decided & (owner >= 0)
    count = int(decided.sum())
    drops = np.bincount(owner[lost], minlength=count)
    dropped = np.bincount(owner[lost], weights=reward[lost], minlength=count).astype(np.float64)
    known = np.array([row is not None for row in seen], dtype=np.bool_)[decided] & np.isfinite(reward[decided])
    empty = np.zeros(obs.SIZE, dtype=np.float32)
    rows = [seen[i] if seen[i] is not None else empty for i in np.flatnonzero(decided)]
    frames = np.array(rows, dtype=np.float32).reshape(count, obs.SIZE)
    return LoggedFrames(frames, arm[decided], reward[decided], drops, dropped).take(known)


def learn_frames(controller: OnlineController, frames: LoggedFrames, start: Lessons | None = None) -> Lessons:
    """Return what the filter knows after the frames, in their order; ``start`` is the controller's own by default."""
    begin = start or controller.lessons
    theta, covariance, taught = begin.theta[None].copy(), begin.covariance[None].copy(), begin.taught
    seen = controller.model.see(frames.observation)
    x = controller.model.features(frames.observation, seen, frames.arm)
    margin = seen.margin[np.arange(len(frames)), frames.arm]
    row = np.zeros(1, dtype=np.int64)
    for i in range(len(frames)):
        drops = int(frames.drops[i])
        lost = [float(frames.dropped[i]) / drops] * drops if drops else []
        for reward in (float(frames.reward[i]), *lost):
            controller.update(theta, covariance, row, x[i : i + 1], np.array([reward]) - margin[i])
        taught += 1 + drops
    inner = 0.5 * (covariance[0] + covariance[0].T)
    return Lessons(theta[0], inner, taught)


def with_lessons(controller: OnlineController, lessons: Lessons) -> OnlineController:
    """Return the controller that starts with these lessons."""
    return OnlineController(controller.name, controller.model, controller.deployment, controller.parameters, lessons)


def decisions_of(controller: OnlineController, frames: LoggedFrames) -> tuple[Ints, Ints]:
    """Return (N,) what the learner would decide with its lessons, without exploring, and the frozen policy."""
    greedy = OnlineController(
        controller.name,
        controller.model,
        controller.deployment,
        controller.parameters.model_copy(update={"share": 0.0, "probe_s": 0.0}),
        controller.lessons,
    )
    table, rows = {tuple(row): i for i, row in enumerate(controller.space.table.tolist())}, list[list[int]]()
    for start in range(0, len(frames), BATCH):
        part = frames.observation[start : start + BATCH]
        rows += greedy.act(part, greedy.init(len(part), np.random.default_rng(0)))[0].tolist()
    return np.array([table[tuple(row)] for row in rows]), controller.model.see(frames.observation).own


def estimate_gain(controller: OnlineController, frames: LoggedFrames, seed: int = 0) -> GainEstimate:
    """Estimate what learning from half of these frames gains on the other half, both ways."""
    n = len(frames)
    block = np.arange(n) // BLOCK
    scores = np.zeros((2, n))
    matched = np.zeros(n, dtype=np.bool_)
    for half in (0, 1):
        test = block % 2 == half
        learner = with_lessons(controller, learn_frames(controller, frames.take(~test)))
        held = frames.take(test)
        own, frozen = decisions_of(learner, held)
        scores[0, test], scores[1, test] = _scores(learner, held, own), _scores(learner, held, frozen)
        matched[test] = own == held.arm
    low, high = _interval(scores[0] - scores[1], block, seed)
    value, frozen_value = scores.mean(axis=1)
    return GainEstimate(
        gain=float(value - frozen_value),
        low=low,
        high=high,
        value=float(value),
        frozen=float(frozen_value),
        logged=float(frames.worth.mean()),
        matched=float(matched.mean()),
        frames=n,
    )


def _scores(learner: OnlineController, frames: LoggedFrames, decision: Ints) -> Floats:
    """(N,) doubly robust rewards of ``decision`` (N,)."""
    seen, rows = learner.model.see(frames.observation), np.arange(len(frames))

    def predict(arm: Ints) -> Floats:
        x = learner.model.features(frames.observation, seen, arm)
        return np.asarray(x @ learner.lessons.theta + seen.margin[rows, arm])

    same = decision == frames.arm
    share = np.array([same[decision == d].mean() for d in range(len(learner.space.table)) if (decision == d).any()])
    index = np.unique(decision, return_inverse=True)[1]
    weight = same / np.maximum(share[index], LEAST_SHARE)
    return np.asarray(predict(decision) + weight * (frames.worth - predict(frames.arm)))


def _interval(difference: Floats, block: Ints, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean, blocks of frames drawn with replacement."""
    count = np.bincount(block)
    total = np.bincount(block, weights=difference)
    drawn = np.random.default_rng(seed).integers(len(count), size=(RESAMPLES, len(count)))
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
