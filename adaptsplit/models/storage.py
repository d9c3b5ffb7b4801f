"""Writing and reading model folders from torch: ONNX graphs, float16 weights, ``model.json``."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptsplit.errors import ModelError
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.layers import fold_all
from adaptsplit.models.recipe import CELLS, IMAGE_SIZE, ModelConfig
from adaptsplit.runtime.folder import MODEL_FILE, ModelFolder, check_file
from adaptsplit.runtime.sessions import open_session, run_session

WEIGHTS_FILE = "weights.safetensors"
OPSET = 17
TOLERANCE = 1e-3
RATE_FACTORS = (0.5, 1.0, 2.0)
"""Rates that a learned entropy model is exported at: steps twice as wide, as trained, and half as wide (ours)."""
WHOLE_SUFFIXES = ("temperature", "ensemble")
"""Numbers that calibration sets after the weights were rounded to float16: kept whole."""


class HeadGraph(nn.Module):
    """What runs on the device for one branch: image -> (features, exit_logits)."""

    def __init__(self, model: SplitModel, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (1, C, H, W) and calibrated exit logits (1, 16, K)."""
        return self.model.head(self.name, image)


class TrunkGraph(nn.Module):
    """The trunk alone: image -> hidden."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Return the trunk's last map."""
        return self.model.hidden(image)


def for_inference(model: SplitModel) -> SplitModel:
    """Return a copy with folded batch norms and weights that float16 holds exactly (computation stays float32)."""
    copy = SplitModel(model.config, model.classes)
    copy.load_state_dict(model.state_dict())
    copy.eval().requires_grad_(False)
    fold_all(copy)
    copy.folded = True
    for parameter in copy.parameters():
        parameter.requires_grad_(False).copy_(parameter.half().float())
    return copy


def export(
    model: SplitModel, folder: Path, *, name: str, training: dict[str, Any], calibration: dict[str, Any]
) -> None:
    """Write ``model`` (from :func:`for_inference`, calibrated) as a model folder and check it against torch.

    ModelError when onnxruntime's logits differ from torch's by more than 1e-3.
    """
    if not model.folded:
        raise ModelError("export takes a model from for_inference(); call that first")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for file, (graph, inputs, outputs) in _graphs(model).items():
        write_onnx(graph, inputs, outputs, folder / file)
        _check(graph, inputs, folder / file)
        files.append(file)
    files += _write_priors(model, folder)
    save_file(_half_state(model), folder / WEIGHTS_FILE)
    card = _card(model, name, training, calibration)
    card["files"] = {file: sha256_of(folder / file) for file in files}
    card["training_files"] = {WEIGHTS_FILE: sha256_of(folder / WEIGHTS_FILE)}
    (folder / MODEL_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> SplitModel:
    """Return the torch model of a model folder, in inference form, temperatures included.

    ModelError when the folder was shipped without ``weights.safetensors`` (only torch needs it).
    """
    opened = ModelFolder.open(folder)
    card, path = opened.card, opened.path / WEIGHTS_FILE
    if not path.exists():
        raise ModelError(f"{path}: not here; this folder only runs. Cure: make it again with `adaptsplit fit`")
    check_file(path, card.training_files.get(WEIGHTS_FILE, ""))
    config = ModelConfig.model_validate(card.training.get("architecture"))
    model = SplitModel(config, card.classes, folded=True)
    try:
        model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except RuntimeError as error:
        raise ModelError(f"{path}: does not fit the architecture in {MODEL_FILE} ({error})") from error
    return model.eval().requires_grad_(False)


def _graphs(model: SplitModel) -> dict[str, tuple[nn.Module, dict[str, Tensor], list[str]]]:
    image = {"image": torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))}
    graphs: dict[str, tuple[nn.Module, dict[str, Tensor], list[str]]] = {
        "trunk.onnx": (TrunkGraph(model), image, ["hidden"]),
        "tail.onnx": (model.tail, {"hidden": model.hidden(image["image"])}, ["logits"]),
    }
    for name in model.branches:
        graphs[f"head-{name}.onnx"] = (HeadGraph(model, name), image, ["features", "exit_logits"])
        features = model.head(name, image["image"])[0]
        branch = model.branch(name)
        graphs[f"decoder-{name}.onnx"] = (branch.decoder, {"features": features}, ["hidden"])
        if branch.tail is not None:
            graphs[f"tail-{name}.onnx"] = (branch.tail, {"hidden": branch.decoder(features)}, ["logits"])
    return graphs


def _write_priors(model: SplitModel, folder: Path) -> list[str]:
    """Write the table files of every learned entropy model, one per rate; returns the names."""
    files = []
    for name in model.branches:
        prior = model.branch(name).prior
        for factor in RATE_FACTORS if prior is not None else ():
            assert prior is not None
            files.append(f"prior-{name}-{factor:g}.npz")
            prior.table(factor).save(folder / files[-1])
    return files


def write_onnx(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    with warnings.catch_warnings():
        # The TorchScript exporter announces its retirement; the other one needs onnxscript and is far slower.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.save(_halve(onnx.load(str(path))), str(path))


def _halve(model: Any) -> Any:
    """Store every float32 initialiser that float16 holds exactly as float16, followed by a Cast to float32."""
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or not np.array_equal(value.astype(np.float16).astype(np.float32), value):
            continue
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), f"{tensor.name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    for node in graph.node:
        node.doc_string = ""
    onnx.checker.check_model(model)
    return model


def _check(graph: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    with torch.no_grad():
        expected = graph(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = open_session(path)
    found = run_session(session, {name: value.numpy() for name, value in inputs.items()})
    for torch_value, onnx_value in zip(expected, found, strict=True):
        error = float(np.abs(torch_value.numpy() - onnx_value).max())
        if error > TOLERANCE:
            raise ModelError(
                f"{path}: onnxruntime and torch differ by {error:.2g} (at most {TOLERANCE} is accepted); "
                "check the versions of torch and onnxruntime against constraints.txt"
            )


def _half_state(model: SplitModel) -> dict[str, Tensor]:
    state = model.state_dict()
    return {k: (v if k.endswith(WHOLE_SUFFIXES) else v.half()).contiguous() for k, v in state.items()}


def _card(model: SplitModel, name: str, training: dict[str, Any], calibration: dict[str, Any]) -> dict[str, Any]:
    macs = {part.name: part.macs for part in model.describe()}
    cuts = list(model.cuts)
    trunk = [macs["stem"], *(macs[f"trunk.{stage}"] for stage in model.trunk)]
    branches = []
    for branch_name in model.branches:
        branch = model.branch(branch_name)
        depth = cuts.index(model.deepest_cut(branch_name))
        before = [macs[f"{name}.exit"] + _link_macs(model) for name in model.exits_upto(branch_name)[:-1]]
        branches.append(
            {
                "name": branch_name,
                "depth": depth,
                "cut": cuts[depth],
                "bottleneck": list(branch.config.bottleneck),
                "macs_head": sum(trunk[: depth + 1]) + macs[f"{branch_name}.encoder"],
                "macs_exit": macs[f"{branch_name}.exit"] + sum(before),
                "macs_decoder": macs[f"{branch_name}.decoder"],
                "temperature": float(branch.exit.temperature),
                "tail_temperature": float(branch.tail_temperature),
            }
        )
        if "scores" in calibration:
            branches[-1]["exit_score"] = calibration["scores"][branch_name]
    full = {"macs_features": sum(trunk), "macs_tail": macs["tail"], "temperature": float(model.full_temperature)}
    return {
        "schema": "adaptsplit.model/1",
        "name": name,
        "classes": list(model.classes),
        "input": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "cells": [CELLS, CELLS],
        "branches": branches,
        "full": full,
        "params": sum(p.numel() for p in model.parameters()),
        "training": {**training, "architecture": model.config.model_dump(mode="json")},
        "calibration": calibration,
    }


def _link_macs(model: SplitModel) -> int:
    """MACs of what links one exit of a cascade to the next."""
    return CELLS * CELLS * len(model.classes) ** 2


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
