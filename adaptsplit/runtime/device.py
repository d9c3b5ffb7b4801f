"""What runs on the device: heads with their exits, and the full model for the local branch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime

from adaptsplit.runtime.folder import ModelFolder
from adaptsplit.runtime.sessions import Answer, FloatArray, HeadResult, open_session, run_session, to_answer, to_input

Image = npt.NDArray[np.uint8]


class SessionStore:
    """Sessions of one model folder, each opened when first used. ``threads`` is per session."""

    def __init__(self, folder: ModelFolder, threads: int = 1) -> None:
        self.folder = folder
        self._threads = threads
        self._open: dict[str, onnxruntime.InferenceSession] = {}

    def get(self, name: str) -> onnxruntime.InferenceSession:
        """Return the session of file ``name``."""
        if name not in self._open:
            self._open[name] = open_session(self.folder.file(name), self._threads)
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

    def __init__(self, folder: ModelFolder, threads: int = 1) -> None:
        self.folder = folder
        self._sessions = SessionStore(folder, threads)
        self._full = FullModel(self._sessions)

    def head(self, branch: str, image: Image) -> HeadResult:
        """Run head and exit of ``branch`` on a frame (H, W, 3) uint8 RGB."""
        card = self.folder.card.branch(branch)
        size = self.folder.card.input
        feed = {"image": to_input(image, size.height, size.width)}
        features, logits = run_session(self._sessions.get(f"head-{card.name}.onnx"), feed)
        answer = to_answer(logits[0])
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

    def __init__(self, folder: ModelFolder, threads: int = 1) -> None:
        self.folder = folder
        self._sessions = SessionStore(folder, threads)
        self._full = FullModel(self._sessions)

    def tail(self, branch: str, features: FloatArray) -> Answer:
        """Answer from the received features (C, H, W) float32 of ``branch``."""
        card = self.folder.card.branch(branch)
        feed = {"features": np.ascontiguousarray(features, np.float32)[None]}
        hidden = run_session(self._sessions.get(f"decoder-{card.name}.onnx"), feed)[0]
        logits = run_session(self._sessions.get("tail.onnx"), {"hidden": hidden})[0]
        return to_answer(logits[0], card.tail_temperature)

    def full(self, image: Image) -> Answer:
        """Answer a received image (H, W, 3) uint8 RGB by the full model."""
        return self._full.answer(image)

    def warm_up(self) -> None:
        """Open every session and run each once."""
        size = self.folder.card.input
        for card in self.folder.card.branches:
            self.tail(card.name, np.zeros(card.bottleneck, np.float32))
        self.full(np.zeros((size.height, size.width, 3), np.uint8))
