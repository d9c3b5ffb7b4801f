"""What an edge server serves: for each model its decision space, its networks, and what a batch of frames takes.

``model_id`` is how a frame says which one it is for. A model is the networks together with the branches that a decision
can name; thresholds, rates and the policy are the device's own business.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import load_bundle
from adaptsplit.codecs import decode_container, feature_codecs
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.device_bridge.batching import BatchTimes, TailQueue
from adaptsplit.device_bridge.edge_session import MAX_QUEUE, MAX_QUEUE_BYTES, Lane, TailAnswer
from adaptsplit.device_bridge.messages import FrameMessage, model_id
from adaptsplit.errors import AdaptsplitError, CodecError, MessageError
from adaptsplit.runtime import Answer, EdgeRuntime, ModelFolder

log = logging.getLogger("adaptsplit.edge")

MAX_BATCH = 8
WORTH = 0.9  # a frame in a full batch must take at most this share of its time alone, else batches only add waiting
TRIALS = 5


class Tail:
    """From frame messages to answers, through the codec and onnxruntime. ``fps``: frames/s of its devices, at most."""

    def __init__(self, space: DecisionSpace, runtime: EdgeRuntime, fps: float = math.inf) -> None:
        self.space = space
        self.fps = fps
        self.model = model_id(runtime.folder.digest, space)
        self._runtime = runtime

    def answer(self, message: FrameMessage) -> TailAnswer:
        """Decode and run; CodecError, MessageError or ModelError for what does not fit."""
        return self._told(self._run(self._branch(message), self._decoded(message)))

    def answers(self, messages: Sequence[FrameMessage]) -> list[TailAnswer | AdaptsplitError]:
        """Answer a batch of one branch; what does not fit gets an error in its place, and the others their answers."""
        if len(messages) == 1 or not self._batches(self._branch(messages[0])):
            return [self._safely(message) for message in messages]
        try:
            decoded = [self._decoded(message) for message in messages]
            return [self._told(each) for each in self._runtime.tails(self._branch(messages[0]).name, decoded)]
        except Exception:  # one of them is at fault: find out which
            return [self._safely(message) for message in messages]

    def lane(self, max_batch: int | None = None) -> Lane:
        """Return the queue of this model; ``max_batch`` None: the largest batch that pays, as measured now."""
        times, best = self._measured()
        queue = TailQueue(MAX_QUEUE, MAX_QUEUE_BYTES, max_batch or best, times)
        return Lane(len(self.space.branches), queue)

    def _measured(self) -> tuple[BatchTimes, int]:
        """Run every branch alone and, where its networks take batches, in a full one; note the times."""
        times, best = BatchTimes(), 1
        for b, branch in enumerate(self.space.branches):
            if branch.answers_alone:
                continue
            sizes = (1, MAX_BATCH) if self._batches(branch) else (1,)
            took = [self._timed(branch, k) for k in sizes]
            for k, seconds in zip(sizes, took, strict=True):
                times.note(b, k, seconds)
            if len(took) == 2 and took[1] < WORTH * MAX_BATCH * took[0]:
                best = MAX_BATCH
        return times, best

    def _timed(self, branch: BranchSpec, k: int) -> float:
        """Return the median time of ``k`` blank frames of a branch, s."""
        card = self._runtime.folder.card
        size = (card.input.height, card.input.width, 3)
        took = []
        for _ in range(TRIALS):
            begun = time.perf_counter()
            if branch.kind == "offload":
                self._runtime.full(np.zeros(size, np.uint8))
            else:
                self._runtime.tails(branch.name, [np.zeros(card.branch(branch.name).bottleneck, np.float32)] * k)
            took.append(time.perf_counter() - begun)
        return float(np.median(took))

    def _batches(self, branch: BranchSpec) -> bool:
        return branch.kind == "split" and self._runtime.takes_batches(branch.name)

    def _branch(self, message: FrameMessage) -> BranchSpec:
        return self.space.branches[message.branch]

    def _decoded(self, message: FrameMessage) -> NDArray[Any]:
        decoded = decode_container(message.container)
        branch, image = self._branch(message), decoded.dtype == np.uint8
        if branch.answers_alone or image != (branch.kind == "offload"):
            raise MessageError(f"branch {branch.name!r} ({branch.kind}) with {'an image' if image else 'features'}")
        return decoded

    def _run(self, branch: BranchSpec, decoded: NDArray[Any]) -> Answer:
        return self._runtime.full(decoded) if branch.kind == "offload" else self._runtime.tail(branch.name, decoded)

    def _safely(self, message: FrameMessage) -> TailAnswer | AdaptsplitError:
        try:
            return self.answer(message)
        except AdaptsplitError as error:
            return error
        except Exception as error:  # whatever a device sent, the server goes on
            return CodecError(f"tail failed: {error!r}")

    def warm_up(self) -> None:
        """Run the networks and every codec once: an entropy coder's first container loads machine code (0.7 s)."""
        self._runtime.warm_up()
        for branch in self.space.branches:
            if branch.kind == "split":
                blank = np.zeros(self._runtime.folder.card.branch(branch.name).bottleneck, np.float32)
                for name in branch.codecs:
                    decode_container(feature_codecs.get(name).encode(blank))

    @staticmethod
    def _told(answer: Answer) -> TailAnswer:
        return TailAnswer(answer.prediction.tobytes(), min(max(answer.confidence, 0.0), 1.0))


def open_tails(bundles: Sequence[Path], threads: int = 1) -> list[Tail]:
    """Return the tails of bundles in their order, each model once, warmed up; BundleError or ModelError."""
    tails: dict[bytes, Tail] = {}
    for path in bundles:
        loaded = load_bundle(path)
        folder = ModelFolder.open(loaded.model_path)
        if (known := tails.get(model_id(folder.digest, loaded.space))) is not None:
            log.info("%s: the same model as an earlier bundle", path)
            known.fps = max(known.fps, loaded.context.fps)
            continue
        runtime = EdgeRuntime(folder, threads)
        tail = Tail(loaded.space, runtime, loaded.context.fps)
        tail.warm_up()
        tails[tail.model] = tail
    return list(tails.values())
