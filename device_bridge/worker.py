"""The device's own work, on one thread: content signals, head and exit, encoding; each paced to its modelled time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import StageTimes
from adaptsplit.codecs import feature_codecs, image_codecs
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.actions import Encode, Look, Run
from adaptsplit.device_bridge.camera import ShotSource
from adaptsplit.frames.signals import difference, sharpness
from adaptsplit.runtime import DeviceRuntime, HeadResult

log = logging.getLogger("adaptsplit.device")

Work: TypeAlias = Look | Run | Encode


@dataclass(frozen=True, slots=True)
class Looked:
    """The content signals of a frame."""

    frame: int
    sharpness: float
    difference: float


@dataclass(frozen=True, slots=True)
class Ran:
    """The answer of the exit, or of the local model."""

    frame: int
    prediction: NDArray[np.uint8]
    confidence: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """The container to be sent."""

    frame: int
    container: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A stage that raised."""

    frame: int
    error: str


Done: TypeAlias = Looked | Ran | Encoded | Failed


class Pacer:
    """Sleeps each stage up to its modelled time on the named board.

    Times are drawn from the bundle's quantiles with a seeded generator. Stages of one frame follow one another on a
    nominal clock, so that wake-up delays do not add up; a stage that really takes longer than modelled is an overrun.
    Without ``stages`` (``--pace native``) nothing sleeps.
    """

    def __init__(self, stages: StageTimes | None, space: DecisionSpace, decision_s: float, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._stages = stages
        self._exit_branches = space.exit_branches
        self._decision_s = decision_s
        self._rng = np.random.default_rng(seed)
        self._nominal = 0.0

    def begin(self, now: float) -> None:
        """A frame is taken up at ``now`` (monotonic)."""
        self._nominal = now

    def end(self, work: Work) -> None:
        """The stage's real work is done: sleep up to its modelled end."""
        if self._stages is None:
            return
        self._nominal += self._modelled(self._stages, work)
        left = self._nominal - time.monotonic()
        self.counts["stages"] += 1
        if left > 0.0:
            time.sleep(left)
        else:
            self.counts["overruns"] += 1
            self._nominal -= left

    def _modelled(self, stages: StageTimes, work: Work) -> float:
        u = float(self._rng.random())
        if isinstance(work, Look):
            return self._decision_s + stages.signal(u)
        if isinstance(work, Run):
            return stages.head(int(self._exit_branches[work.decision.branch]), u)
        return stages.encode(work.decision.branch, work.decision.rate, u)


class Worker:
    """Runs one stage at a time and posts what came of it, with the time; a context manager."""

    def __init__(
        self,
        runtime: DeviceRuntime,
        space: DecisionSpace,
        camera: ShotSource,
        pacer: Pacer,
        post: Callable[[Done, float], None],
    ) -> None:
        self.pacer = pacer
        self._runtime = runtime
        self._space = space
        self._camera = camera
        self._post = post
        self._jobs: queue.SimpleQueue[tuple[Work, float] | None] = queue.SimpleQueue()
        self._head: HeadResult | None = None
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._jobs.put(None)
        self._thread.join(timeout=5.0)

    def put(self, work: Work, now: float) -> None:
        """Start a stage; ``now`` (monotonic) is when the frame was taken up, if this is its first."""
        self._jobs.put((work, now))

    def warm_up(self) -> None:
        """Run every head, the local model and every codec once, so that no first frame is slow."""
        kinds = {branch.kind for branch in self._space.branches}
        heads = [self._space.branches[i].name for i in sorted({int(i) for i in self._space.exit_branches})]
        split = [branch.name for branch in self._space.branches if branch.kind == "split"]
        self._runtime.warm_up([name for name in heads if name in split], local="local" in kinds)
        image = self._camera.shot(0).frame.image
        for b, branch in enumerate(self._space.branches):
            for r in range(len(branch.codecs)):
                self._run_head(image, Decision(b, r, 0))
                self._encode(image, Decision(b, r, 0))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, now = job
            try:
                done = self._do(work, now)
            except Exception as error:
                log.exception("frame %d: %s failed", work.frame, type(work).__name__)
                done = Failed(work.frame, repr(error))
            self.pacer.end(work)
            self._post(done, time.monotonic())

    def _do(self, work: Work, now: float) -> Done:
        shot = self._camera.shot(work.frame)
        image = shot.frame.image
        if isinstance(work, Look):
            self.pacer.begin(now)
            return Looked(work.frame, sharpness(image), difference(image, shot.previous))
        if isinstance(work, Run):
            return Ran(work.frame, *self._run_head(image, work.decision))
        return Encoded(work.frame, self._encode(image, work.decision))

    def _run_head(self, image: NDArray[np.uint8], decision: Decision) -> tuple[NDArray[np.uint8], float]:
        branch = self._space.branches[decision.branch]
        if branch.kind == "local":
            answer = self._runtime.local(image)
            return answer.prediction, answer.confidence
        self._head = self._runtime.head(branch.exit or branch.name, image)
        return self._head.prediction, self._head.exit_confidence

    def _encode(self, image: NDArray[np.uint8], decision: Decision) -> bytes:
        branch = self._space.branches[decision.branch]
        if branch.kind == "offload":
            return image_codecs.get(branch.codecs[decision.rate]).encode(image)
        assert self._head is not None
        return feature_codecs.get(branch.codecs[decision.rate]).encode(self._head.features)
