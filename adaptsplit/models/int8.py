"""8-bit graphs beside the float ones: static quantisation of every exported ONNX file, checked and timed.

Weights are signed 8-bit per filter, activations unsigned 8-bit per tensor, ranges from calibration frames
(onnxruntime's ``quantize_static``, after ``quant_pre_process``: without it, or with signed activations, int8 runs
slower than float on x86). ``int8`` in ``model.json`` reports accuracy, agreement and time of both on frames that
calibrated nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from adaptsplit.errors import ConfigError
from adaptsplit.files import write_whole
from adaptsplit.frames.base import FrameSource
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder, Precision
from adaptsplit.runtime.folder import MODEL_FILE, int8_name
from adaptsplit.runtime.sessions import FloatArray, open_session, run_session, to_input

CALIBRATION_FRAMES = 64
CHECK_FRAMES = 64
TIMED_RUNS = 30
WARM_RUNS = 5
Feeds = list[dict[str, FloatArray]]


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """Cell accuracy of one answer in float and int8, and the share of cells on which both agree."""

    float_accuracy: float
    int8_accuracy: float
    agreement: float


@dataclass(frozen=True, slots=True)
class GraphTime:
    """Median milliseconds of one graph at one thread, in float and int8; ``ratio`` < 1 where int8 is faster."""

    float_ms: float
    int8_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What quantisation changed, on ``frames`` frames of ``split`` that it was not calibrated on."""

    split: str
    frames: int
    calibration_frames: int
    answers: dict[str, AnswerCheck]
    times: dict[str, GraphTime]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, FloatArray] | None:
        """Return the next feed, None after the last."""
        return next(self._feeds, None)


def export_int8(
    folder: Path | str,
    source: FrameSource,
    *,
    out: Path | str | None = None,
    calibration_frames: int = CALIBRATION_FRAMES,
    check_frames: int = CHECK_FRAMES,
    default: Precision = "float",
) -> Int8Report:
    """Quantise every graph of a model folder on frames of ``source``; check and time the result.

    The 8-bit files and the report go into the folder itself, or into a copy at ``out`` (the folder then keeps its
    digest). ``default`` is what runtimes take that are not told a precision. Frames are spread evenly over ``source``,
    which should be the calibration split; check frames lie between calibration frames. ConfigError when ``source`` is
    too short or ``out`` exists, ModelError for a folder that cannot be used.
    """
    chosen = _spread(len(source), calibration_frames + check_frames)
    calibration, check = _parted(chosen, calibration_frames)
    opened = ModelFolder.open(folder if out is None else _copied(Path(folder), Path(out)))
    feeds = _feeds(opened, source, calibration)
    hashes = {}
    for name, examples in feeds.items():
        target = opened.path / int8_name(name)
        _quantise(opened.file(name), target, examples)
        hashes[target.name] = hashlib.sha256(target.read_bytes()).hexdigest()
    _rewrite(opened.path, {"files": hashes, "precision": default})
    report = _report(ModelFolder.open(opened.path), source, calibration, check, feeds)
    _rewrite(opened.path, {"int8": asdict(report)})
    return report


def time_graphs(folder: ModelFolder, feeds: dict[str, Feeds]) -> dict[str, GraphTime]:
    """Time every graph on its first example in both precisions, turn by turn, CPU time at one thread."""
    return {name: _timed(folder, name, examples[0]) for name, examples in feeds.items()}


def _copied(folder: Path, out: Path) -> Path:
    if out.exists():
        raise ConfigError(f"{out}: exists already; give another folder or delete it")
    return Path(shutil.copytree(folder, out))


def _spread(available: int, wanted: int) -> NDArray[np.int64]:
    if available < wanted:
        raise ConfigError(f"the source has {available} frames; int8 export takes {wanted}: ask for fewer")
    return np.unique(np.linspace(0, available - 1, wanted).astype(np.int64))


def _parted(chosen: NDArray[np.int64], calibration: int) -> tuple[list[int], list[int]]:
    """Part frames so that calibration frames are spread evenly between check frames."""
    picked = set(np.linspace(0, len(chosen) - 1, calibration).astype(int).tolist())
    first = [int(v) for i, v in enumerate(chosen) if i in picked]
    return first, [int(v) for i, v in enumerate(chosen) if i not in picked]


def _feeds(folder: ModelFolder, source: FrameSource, frames: Sequence[int]) -> dict[str, Feeds]:
    """Return the inputs of every graph on ``frames``, as the float graphs compute them."""
    names = [name for name in folder.card.files if name.endswith(".onnx") and not name.endswith(".int8.onnx")]
    found: dict[str, Feeds] = {name: [] for name in names}
    size = folder.card.input
    sessions = {name: open_session(folder.file(name)) for name in names}
    for index in frames:
        image = {"image": to_input(source.frame(index).image, size.height, size.width)}
        found["trunk.onnx"].append(image)
        found["tail.onnx"].append({"hidden": run_session(sessions["trunk.onnx"], image)[0]})
        for card in folder.card.branches:
            head, decoder, own = f"head-{card.name}.onnx", f"decoder-{card.name}.onnx", f"tail-{card.name}.onnx"
            found[head].append(image)
            found[decoder].append({"features": run_session(sessions[head], image)[0]})
            hidden = {"hidden": run_session(sessions[decoder], found[decoder][-1])[0]}
            found[own if own in found else "tail.onnx"].append(hidden)
    return found


def _quantise(source: Path, target: Path, feeds: Feeds) -> None:
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(target),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


class _quiet:
    """onnxruntime's quantiser talks through the root logger; keep that to errors."""

    def __enter__(self) -> None:
        self._before = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        logging.root.setLevel(self._before)


def _rewrite(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / MODEL_FILE
    card = json.loads(path.read_bytes())
    changed = {**card, **changes, "files": {**card["files"], **changes.get("files", {})}}
    write_whole(path, (json.dumps(changed, indent=1) + "\n").encode())


def _report(
    folder: ModelFolder, source: FrameSource, calibration: list[int], check: list[int], feeds: dict[str, Feeds]
) -> Int8Report:
    both = [_Answers(folder, precision) for precision in ("float", "int8")]
    right: dict[str, list[list[float]]] = {}
    for index in check:
        frame = source.frame(index)
        known = frame.labels >= 0
        answers = zip(*(one.of(frame.image) for one in both), strict=True)
        for (name, exact), (_, rough) in answers:
            row = [exact == frame.labels, rough == frame.labels, exact == rough]
            right.setdefault(name, []).append([float(np.mean(v[known])) for v in row] if known.any() else [])
    means = {name: np.mean([row for row in rows if row], axis=0) for name, rows in right.items()}
    answers_found = {name: AnswerCheck(*(round(float(v), 5) for v in row)) for name, row in means.items()}
    return Int8Report(source.split, len(check), len(calibration), answers_found, time_graphs(folder, feeds))


class _Answers:
    """All answers of a model in one precision."""

    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        self._folder = folder
        self._device, self._edge = (
            DeviceRuntime(folder, precision=precision),
            EdgeRuntime(folder, precision=precision),
        )

    def of(self, image: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield (name, prediction (16,)) of the full model, each exit and each tail on unquantised features."""
        yield "full", self._device.local(image).prediction
        for card in self._folder.card.branches:
            head = self._device.head(card.name, image)
            yield f"exit:{card.name}", head.prediction
            yield f"tail:{card.name}", self._edge.tail(card.name, head.features).prediction


def _timed(folder: ModelFolder, name: str, feed: dict[str, FloatArray]) -> GraphTime:
    sessions = [open_session(folder.graph(name, precision)) for precision in ("float", "int8")]
    samples: list[list[float]] = [[], []]
    for run in range(WARM_RUNS + TIMED_RUNS):
        for index, session in enumerate(sessions):
            start = thread_time()
            run_session(session, feed)
            if run >= WARM_RUNS:
                samples[index].append((thread_time() - start) * 1e3)
    exact, rough = (float(np.median(values)) for values in samples)
    return GraphTime(round(exact, 4), round(rough, 4), round(rough / exact, 3))
