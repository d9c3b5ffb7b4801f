"""Measures frames one by one: what each process of ``measure`` does."""

from __future__ import annotations

from pathlib import Path
from time import get_clock_info, perf_counter, thread_time
from typing import Literal, TypeAlias

import numpy as np

from adaptsplit.codecs import FeatureCodec, ImageCodec, feature_codecs, image_codecs
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.frames import Frame, FrameSource, difference, image_hash, sharpness
from adaptsplit.profiles.arrays import SPECS, AnyArray
from adaptsplit.runtime import Answer, DeviceRuntime, EdgeRuntime, HeadResult, ModelFolder

CHUNK = 32
CLOCK: Literal["thread", "wall"] = "thread" if get_clock_info("thread_time").resolution < 1e-6 else "wall"
"""Every stage runs on one thread, so its CPU time is its latency on an idle host, whatever else runs on this one."""
clock = thread_time if CLOCK == "thread" else perf_counter
Chunk: TypeAlias = dict[str, AnyArray]
"""Per-frame arrays of ``SPECS``; stage times as one sample per frame; ``full_s`` (n,) time of the full model."""


class FrameWorker:
    """Holds the sessions of one process (one thread each), warm, and measures chunks of frames."""

    def __init__(self, model: Path, source: FrameSource, space: DecisionSpace) -> None:
        folder = ModelFolder.open(model)
        self._device, self._edge = DeviceRuntime(folder), EdgeRuntime(folder)
        self._source, self._space = source, space
        self._order = sorted(range(len(space.branches)), key=lambda b: space.branches[b].kind != "split")
        self._features: dict[str, FeatureCodec] = {}
        self._images: dict[str, ImageCodec] = {}
        for branch in space.branches:
            for name in branch.codecs:
                if branch.kind == "split":
                    self._features[name] = feature_codecs.get(name)
                else:
                    self._images[name] = image_codecs.get(name)
        self._warm_up()

    def measure(self, frames: list[int]) -> Chunk:
        """Measure frames (ascending indices) and return their arrays."""
        chunk = self._empty(len(frames))
        before: Frame | None = None
        for row, index in enumerate(frames):
            frame = self._source.frame(index)
            if before is None or before.index != index - 1:
                before = self._source.frame(index - 1) if index else None
            previous = before if before is not None and before.segment == frame.segment else None
            self._measure_frame(chunk, row, frame, previous)
            before = frame
        return chunk

    def _warm_up(self) -> None:
        """Run everything twice on the first frame, so that lazy allocations are not measured."""
        self._device.warm_up()
        self._edge.warm_up()
        frame, chunk = self._source.frame(0), self._empty(1)
        for _ in range(2):
            self._measure_frame(chunk, 0, frame, frame)

    def _empty(self, count: int) -> Chunk:
        branches, rates, _ = self._space.shape
        sizes = {"N": count, "B": branches, "R": rates}
        chunk: Chunk = {"full_s": np.zeros(count)}
        for spec in SPECS:
            dims = [dim for dim in spec.dims if dim != "Q"]
            shape = tuple(sizes.get(dim) or int(dim) for dim in dims)
            chunk[spec.name] = np.zeros((count, *shape) if "Q" in spec.dims else shape, dtype=spec.dtype)
        return chunk

    def _measure_frame(self, chunk: Chunk, row: int, frame: Frame, previous: Frame | None) -> None:
        self._measure_signals(chunk, row, frame, previous)
        heads: dict[str, tuple[HeadResult, float]] = {}
        for b in self._order:
            branch = self._space.branches[b]
            if branch.kind == "local":
                self._measure_local(chunk, row, b, frame)
                continue
            name = branch.exit or branch.name
            if name not in heads:
                start = clock()
                result = self._device.head(name, frame.image)
                heads[name] = (result, clock() - start)
            head, chunk["head_s"][row, b] = heads[name]
            chunk["exit_prediction"][row, b] = head.prediction
            chunk["exit_confidence"][row, b] = head.exit_confidence
            self._measure_rates(chunk, row, b, frame, head)
        if not any(branch.kind == "local" for branch in self._space.branches):
            start = clock()
            self._device.local(frame.image)
            chunk["full_s"][row] = clock() - start

    def _measure_signals(self, chunk: Chunk, row: int, frame: Frame, previous: Frame | None) -> None:
        start = clock()
        sharp = sharpness(frame.image)
        change = difference(frame.image, None if previous is None else previous.image)
        chunk["signal_s"][row] = clock() - start
        chunk["sharpness"][row], chunk["difference"][row] = sharp, change
        chunk["index"][row], chunk["segment"][row] = frame.index, frame.segment
        chunk["labels"][row] = frame.labels
        chunk["image_hash"][row] = np.frombuffer(image_hash(frame.image), dtype=np.uint8)

    def _measure_local(self, chunk: Chunk, row: int, b: int, frame: Frame) -> None:
        """The full model on the device: its answer counts as exit and as tail; nothing is sent."""
        start = clock()
        answer = self._device.local(frame.image)
        chunk["full_s"][row] = chunk["head_s"][row, b] = clock() - start
        chunk["exit_prediction"][row, b] = chunk["tail_prediction"][row, b, :] = answer.prediction
        chunk["exit_confidence"][row, b] = chunk["tail_confidence"][row, b, :] = answer.confidence

    def _measure_rates(self, chunk: Chunk, row: int, b: int, frame: Frame, head: HeadResult) -> None:
        branch = self._space.branches[b]
        for r, codec in enumerate(branch.codecs):
            start = clock()
            data = self._encode(branch, codec, frame, head)
            sent = clock()
            answer = self._answer(branch, codec, data)
            end = clock()
            # A branch with fewer rates repeats its last one.
            span = slice(r, None) if r == len(branch.codecs) - 1 else slice(r, r + 1)
            chunk["encode_s"][row, b, span] = sent - start
            chunk["tail_s"][row, b, span] = end - sent
            chunk["payload_bytes"][row, b, span] = len(data)
            chunk["tail_prediction"][row, b, span] = answer.prediction
            chunk["tail_confidence"][row, b, span] = answer.confidence

    def _encode(self, branch: BranchSpec, codec: str, frame: Frame, head: HeadResult) -> bytes:
        if branch.kind == "split":
            return self._features[codec].encode(head.features)
        return self._images[codec].encode(frame.image)

    def _answer(self, branch: BranchSpec, codec: str, data: bytes) -> Answer:
        if branch.kind == "split":
            return self._edge.tail(branch.name, self._features[codec].decode(data))
        return self._edge.full(self._images[codec].decode(data))
