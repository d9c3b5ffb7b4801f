"""What runs on the device: heads with their exits, and the full model for the local branch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

from adaptsplit.runtime.folder import ModelFolder, Precision
from adaptsplit.runtime.sessions import (
    Answer,
    FloatArray,
    HeadResult,
    open_session,
    run_session,
    takes_batches,
    to_answer,
    to_input,
)

Image = npt.NDArray[np.uint8]


class SessionStore:
    """Sessions of one model folder, each opened when first used. ``threads`` is per session.

    ``precision`` chooses between the float and the 8-bit graphs; None is the model's own choice.
    """

    def __init__(self, folder: ModelFolder, threads: int = 1, precision: Precision | None = None) -> None:
        self.folder = folder
        self._threads, self._precision = threads, precision
        self._open: dict[str, onnxruntime.InferenceSession] = {}

    def get(self, name: str) -> onnxruntime.InferenceSession:
        """Return the session of file ``name``."""
        if name not in self._open:
            self._open[name] = open_session(self.folder.graph(name, self._precision), self._threads)
        return self._open[name]


class FullModel:
    """Trunk and tail together, with the full model's temperature; used on the device and on the edge."""

    def __init__(self, sessions: SessionStore) -> None:
        self._sessions = sessions
        self._card = sessions.folder.card

    def answer(self, image: Image) -> Answer:
        """Answer a frame (H, W, 3) uint8 RGB by the full model."""
        size = self._card.input
        feed = {"image": to_input(image, size.height, size.width)}
        hidden = run_session(self._sessions.get("trunk.onnx"), feed)[0]
        logits = run_session(self._sessions.get("tail.onnx"), {"hidden": hidden})[0]
        return to_answer(logits[0], self._card.full.temperature)


class DeviceRuntime:
    """Runs heads, exits and the local branch. Not safe to share between threads that run the same branch.

    >>> device = DeviceRuntime(ModelFolder.open("model"))         # doctest: +SKIP
    >>> device.head("stem", image).exit_confidence                # doctest: +SKIP
    """

    def __init__(self, folder: ModelFolder, threads: int = 1, precision: Precision | None = None) -> None:
        self.folder = folder
        self._sessions = SessionStore(folder, threads, precision)
        self._full = FullModel(self._sessions)

    def head(self, branch: str, image: Image) -> HeadResult:
        """Run head and exit of ``branch`` on a frame (H, W, 3) uint8 RGB."""
        card = self.folder.card.branch(branch)
        size = self.folder.card.input
        feed = {"image": to_input(image, size.height, size.width)}
        features, logits = run_session(self._sessions.get(f"head-{card.name}.onnx"), feed)
        answer = to_answer(logits[0], score=None if card.exit_score is None else card.exit_score.score())
        return HeadResult(features[0], answer.probabilities, answer.confidence, answer.prediction)

    def local(self, image: Image) -> Answer:
        """Answer a frame by the full model on the device."""
        return self._full.answer(image)

    def warm_up(self, branches: list[str] | None = None, *, local: bool = True) -> None:
        """Open the sessions of ``branches`` (default: all) and of the full model, and run each once."""
        size = self.folder.card.input
        blank = np.zeros((size.height, size.width, 3), np.uint8)
        for name in [card.name for card in self.folder.card.branches] if branches is None else branches:
            self.head(name, blank)
        if local:
            self.local(blank)


class EdgeRuntime:
    """Runs decoders, tail and the full model on the server."""

    def __init__(self, folder: ModelFolder, threads: int = 1, precision: Precision | None = None) -> None:
        self.folder = folder
        self._sessions = SessionStore(folder, threads, precision)
        self._full = FullModel(self._sessions)

    def tail(self, branch: str, features: FloatArray) -> Answer:
        """Answer from the received features (C, H, W) float32 of ``branch``."""
        return self._tails(branch, np.ascontiguousarray(features, np.float32)[None])[0]

    def tails(self, branch: str, features: Sequence[FloatArray]) -> list[Answer]:
        """Answer several frames of one branch: in one call where the networks take batches, else one by one."""
        if not self.takes_batches(branch):
            return [self.tail(branch, each) for each in features]
        return self._tails(branch, np.stack(features).astype(np.float32, copy=False))

    def takes_batches(self, branch: str) -> bool:
        """Whether decoder and tail have a free batch axis."""
        names = (f"decoder-{self.folder.card.branch(branch).name}.onnx", self._tail_file(branch))
        return all(takes_batches(self._sessions.get(name)) for name in names)

    def _tail_file(self, branch: str) -> str:
        """Name the tail that answers for ``branch``: its own, where it has one, else the shared one."""
        own = f"tail-{branch}.onnx"
        return own if own in self.folder.card.files else "tail.onnx"

    def _tails(self, branch: str, features: FloatArray) -> list[Answer]:
        """Answer (n, C, H, W) features of ``branch``."""
        card = self.folder.card.branch(branch)
        hidden = run_session(self._sessions.get(f"decoder-{card.name}.onnx"), {"features": features})[0]
        logits = run_session(self._sessions.get(self._tail_file(branch)), {"hidden": hidden})[0]
        return [to_answer(each, card.tail_temperature) for each in logits]

    def full(self, image: Image) -> Answer:
        """Answer a received image (H, W, 3) uint8 RGB by the full model."""
        return self._full.answer(image)

    def warm_up(self) -> None:
        """Open every session and run each once."""
        size = self.folder.card.input
        for card in self.folder.card.branches:
            self.tail(card.name, np.zeros(card.bottleneck, np.float32))
        self.full(np.zeros((size.height, size.width, 3), np.uint8))
