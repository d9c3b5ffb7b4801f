"""From a cut network to a model folder that ``adaptsplit profile`` and the device run, with exits fitted on frames.

Each cut becomes one branch: the network's own head, no bottleneck (what crosses the cut is sent, compressed by the
codec of the chosen rate), a linear probe as early exit, and as decoder what lies between this cut and the last one.
The network itself is not trained.

    trunk.onnx         image -> the tensor at the last cut
    tail.onnx          that tensor -> logits of the 16 cells
    head-NAME.onnx     image -> features, exit logits
    decoder-NAME.onnx  features -> the tensor at the last cut
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adaptsplit.errors import ConfigError, ModelError
from adaptsplit.files import write_whole
from adaptsplit.frames.base import GRID, SIZE, open_frames
from adaptsplit.models.calibration import fit_answer
from adaptsplit.models.layers import quantise
from adaptsplit.models.split import SplitNetwork
from adaptsplit.models.split_body import PENULTIMATE, Answers, Body, Cells, HeadGraph, as_input
from adaptsplit.models.split_frames import Pictures, View, gather
from adaptsplit.models.split_probe import Probe, ProbeExit, fit_probe
from adaptsplit.models.storage import sha256_of, write_onnx
from adaptsplit.runtime.folder import MODEL_FILE, ModelFolder
from adaptsplit.runtime.sessions import open_session, run_session

ONNX_TOLERANCE = 1e-3
"""Largest difference between onnxruntime and torch, as a share of the largest number (float32, other kernels)."""
CALIBRATION_BITS = 4


@dataclass(frozen=True, slots=True)
class FolderResult:
    """A finished model folder. By answer (``full``, ``exit:NAME``, ``tail:NAME``): share of right cells on the
    calibration split and expected calibration error before and after its temperature; tails see 4-bit features.

    ``mixed`` is the share of frames whose cells have several labels; ``onnx_difference`` the largest relative one.
    """

    folder: Path
    branches: dict[str, str]
    accuracy: dict[str, float]
    ece_before: dict[str, float]
    ece_after: dict[str, float]
    mixed: float
    onnx_difference: float


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """Where the labelled frames come from, as ``open_frames`` takes it, and how many fit and calibrate the exits."""

    source: str
    fit: int = 200
    calibrate: int = 100
    seed: int = 0
    data: Path | None = None

    def pictures(self, split: str, count: int) -> tuple[list[str], Pictures]:
        """Return class names and labelled frames of one split."""
        opened = open_frames(self.source, split=split, seed=self.seed, data=self.data)
        return list(opened.classes), gather(opened, count)


@torch.no_grad()
def make_folder(
    parts: SplitNetwork, frames: FrameSettings, out: str | Path, view: View, *, answers: Answers = "own", name: str = ""
) -> FolderResult:
    """Fit exits for every cut of ``parts`` on labelled frames, calibrate all answers, and write the model folder.

    Exits are fitted on the ``model-train`` split and all temperatures on ``calibration``. ``answers`` says who gives
    the full answer: ``own``, the network's own outputs, which must be the frames' classes in their order; or ``probe``,
    a linear probe on the last tensor before the network's classifier.

    Raises:
        ConfigError: outputs that are not the frames' classes, a cut too large to send, a folder that is taken.
        ModelError: onnxruntime and torch disagree.
    """
    folder = Path(out)
    if (folder / MODEL_FILE).exists():
        raise ConfigError(f"{folder}: holds a finished model already; give another --out or delete it")
    classes, training = frames.pictures("model-train", frames.fit)
    body = Body(parts, view, answers, classes)
    seen, scales = body.read(training)
    exits = {cut: fit_probe(seen[cut], seen["shares"], scales[cut]) for cut in body.cuts}
    whole = None
    if answers == "probe":
        whole = fit_probe(seen[PENULTIMATE], seen["shares"], scales[PENULTIMATE])
    report = _calibrated(body, exits, whole, frames.pictures("calibration", frames.calibrate)[1])
    folder.mkdir(parents=True, exist_ok=True)
    worst = _write_graphs(body, exits, whole, report, folder)
    result = _result(body, report, folder, training.mixed, worst)
    _write_card(body, exits, report, result, frames, name or parts.table.network)
    ModelFolder.open(folder)
    return result


def _calibrated(
    body: Body, exits: dict[str, Probe], whole: Probe | None, pictures: Pictures
) -> dict[str, dict[str, Any]]:
    """Return by answer what ``fit_answer`` found on the calibration frames."""
    cells = Cells(len(body.classes))
    stages = {name: body.section(None, name) for name in body.cuts}
    decoders = {name: body.decoder(name) for name in body.cuts}
    tail, rows = body.tail(whole), dict[str, list[Tensor]]()
    for image in pictures.images:
        x = body.eye(as_input(image))
        for name, stage in stages.items():
            sent = stage(x)
            rows.setdefault(f"exit:{body.branches[name]}", []).append(cells(ProbeExit(exits[name])(sent)))
            features = quantise(body.maps[name](sent), CALIBRATION_BITS, per_channel=True)
            rows.setdefault(f"tail:{body.branches[name]}", []).append(cells(tail(decoders[name](features))))
        rows.setdefault("full", []).append(cells(tail(body.section(None, body.last)(x))))
    labels = pictures.labels.reshape(-1)
    known = labels >= 0
    logits = {name: torch.cat(values).flatten(0, 1).double().numpy()[known] for name, values in rows.items()}
    return {name: asdict(fit_answer(value, labels[known])) for name, value in logits.items()}


def _write_graphs(
    body: Body, exits: dict[str, Probe], whole: Probe | None, report: dict[str, dict[str, Any]], folder: Path
) -> float:
    """Write every ONNX file and return the largest relative difference from torch."""
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    trunk = nn.Sequential(body.eye, body.section(None, body.last))
    tail = nn.Sequential(body.tail(whole), Cells(len(body.classes)))
    worst = [_write(trunk, {"image": image}, ["hidden"], folder / "trunk.onnx")]
    worst.append(_write(tail, {"hidden": trunk(image)}, ["logits"], folder / "tail.onnx"))
    for cut, branch in body.branches.items():
        leave = ProbeExit(exits[cut], report[f"exit:{branch}"]["temperature"])
        head = HeadGraph(body, cut, leave).eval()
        decoder = body.decoder(cut)
        features = head(image)[0]
        worst.append(_write(head, {"image": image}, ["features", "exit_logits"], folder / f"head-{branch}.onnx"))
        worst.append(_write(decoder, {"features": features}, ["hidden"], folder / f"decoder-{branch}.onnx"))
    return max(worst)


def _write(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> float:
    """Write one graph, run it in onnxruntime, and return the relative difference from torch."""
    try:
        with warnings.catch_warnings():
            # Sizes become constants, as they should: a frame's images have one size.
            warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
            # A weight beyond float16 is simply stored as float32.
            warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
            write_onnx(graph, inputs, outputs, path)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"{path.name}: cannot be written as ONNX ({reason}); cut so that it is avoided") from error
    with torch.no_grad():
        expected = graph(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = run_session(open_session(path), {name: value.numpy() for name, value in inputs.items()})
    difference = max(_relative(a.numpy(), b) for a, b in zip(expected, found, strict=True))
    if not difference <= ONNX_TOLERANCE:
        raise ModelError(
            f"{path}: onnxruntime and torch differ by {difference:.2g} of the largest number (at most "
            f"{ONNX_TOLERANCE} is accepted); check the versions of torch and onnxruntime against constraints.txt"
        )
    return difference


def _relative(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    return float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))


def _result(body: Body, report: dict[str, dict[str, Any]], folder: Path, mixed: float, worst: float) -> FolderResult:
    return FolderResult(
        folder=folder,
        branches={branch: cut for cut, branch in body.branches.items()},
        accuracy={name: round(values["accuracy"], 4) for name, values in report.items()},
        ece_before={name: values["ece_before"] for name, values in report.items()},
        ece_after={name: values["ece_after"] for name, values in report.items()},
        mixed=mixed,
        onnx_difference=worst,
    )


def _write_card(
    body: Body,
    exits: dict[str, Probe],
    report: dict[str, dict[str, Any]],
    result: FolderResult,
    frames: FrameSettings,
    name: str,
) -> None:
    folder, table, count = result.folder, body.table, body.images
    last = body.cuts[body.last]
    branches = [_branch_card(body, cut, exits[cut], report) for cut in body.cuts]
    full = {"macs_features": count * last.head_macs, "macs_tail": count * last.tail_macs}
    training: dict[str, Any] = {
        "network": table.network,
        "traced_by": table.how,
        "view": asdict(body.view),
        "answers": body.answers,
    }
    training |= {"frames": frames.source, "frames_seed": frames.seed, "fit_frames": frames.fit}
    training |= {"accuracy": result.accuracy, "onnx_difference": result.onnx_difference}
    card = {
        "schema": "adaptsplit.model/1",
        "name": name,
        "classes": body.classes,
        "input": {"height": SIZE, "width": SIZE},
        "cells": [GRID, GRID],
        "branches": branches,
        "full": full | {"temperature": report["full"]["temperature"]},
        "params": table.parameters,
        "training": training,
        "calibration": {"split": "calibration", "bits": CALIBRATION_BITS, "answers": report},
        "files": {path.name: sha256_of(path) for path in sorted(folder.glob("*.onnx"))},
    }
    write_whole(folder / MODEL_FILE, (json.dumps(card, indent=1) + "\n").encode())


def _branch_card(body: Body, cut: str, leave: Probe, report: dict[str, dict[str, Any]]) -> dict[str, Any]:
    point, branch, last = body.cuts[cut], body.branches[cut], body.cuts[body.last]
    return {
        "name": branch,
        "depth": list(body.cuts).index(cut),
        "cut": cut,
        "bottleneck": list(body.maps[cut].size),
        "macs_head": body.images * point.head_macs,
        "macs_exit": body.images * leave.macs,
        "macs_decoder": body.images * (last.head_macs - point.head_macs),
        "temperature": report[f"exit:{branch}"]["temperature"],
        "tail_temperature": report[f"tail:{branch}"]["temperature"],
    }
