"""What ``benchmarks/codecs.py`` measures on: activations of a model folder and of ResNet-18, and answers from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.frames import Frame
from adaptsplit.runtime import DeviceRuntime, ModelFolder
from adaptsplit.runtime.device import SessionStore
from adaptsplit.runtime.sessions import run_session, to_input

Maps = NDArray[np.float32]


def model_tensors(folder: Path, images: Sequence[NDArray[np.uint8]]) -> dict[str, Maps]:
    """(n, C, H, W) activations of a model folder, by name: every bottleneck and the trunk's last map."""
    device = DeviceRuntime(ModelFolder.open(folder))
    found = {}
    for branch in device.folder.card.branches:
        maps = np.stack([device.head(branch.name, image).features for image in images])
        found[f"bottleneck {branch.name} {'x'.join(map(str, maps.shape[1:]))}"] = maps
    trunk = trunk_maps(folder, images)
    found[f"trunk {'x'.join(map(str, trunk.shape[1:]))}"] = trunk
    return found


def trunk_maps(folder: Path, images: Sequence[NDArray[np.uint8]]) -> Maps:
    """(n, C, H, W) maps at the cut without a bottleneck."""
    store = SessionStore(ModelFolder.open(folder))
    size = store.folder.card.input
    feeds = [{"image": to_input(image, size.height, size.width)} for image in images]
    return np.stack([run_session(store.get("trunk.onnx"), feed)[0][0] for feed in feeds])


def tail_of(folder: Path) -> Callable[[Maps], NDArray[np.int64]]:
    """Return the function from a trunk's map (C, H, W) to the classes of a frame's cells."""
    store = SessionStore(ModelFolder.open(folder))

    def answer(hidden: Maps) -> NDArray[np.int64]:
        return run_session(store.get("tail.onnx"), {"hidden": hidden[None]})[0][0].argmax(-1)

    return answer


def accuracy(answer: Callable[[Maps], NDArray[np.int64]], maps: Sequence[Maps], frames: Sequence[Frame]) -> float:
    """Share of right cells, of the cells that have a label."""
    pairs = [(answer(hidden), frame.labels) for hidden, frame in zip(maps, frames, strict=True)]
    right = [float((found == label)[label >= 0].mean()) for found, label in pairs]
    return float(np.mean(right))


def resnet_tensors(images: Sequence[NDArray[np.uint8]]) -> dict[str, Maps]:
    """(n, C, H, W) maps of ResNet-18 with He-initialised weights (seed 0); empty without torch."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return {}
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def unit(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def block(x: Any, width: int, stride: int) -> Any:
        inputs = x.shape[1]
        y = unit(width, width, 3, 1)(torch.relu(unit(inputs, width, 3, stride)(x)))
        return torch.relu(y + (x if stride == 1 and inputs == width else unit(inputs, width, 1, stride)(x)))

    def maps(side: int) -> list[Any]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        x = nn.functional.interpolate((pixels - 0.45) / 0.22, side, mode="area")
        x = nn.functional.max_pool2d(torch.relu(unit(3, 64, 7, 2)(x)), 3, 2, 1)
        found = []
        for width, stride in ((64, 1), (128, 2), (256, 2)):
            x = block(block(x, width, stride), width, 1)
            found.append(x)
        return found

    with torch.no_grad():
        small, large = maps(64), maps(224)
    tensors = {"64x16x16": small[0], "128x28x28": large[1], "256x14x14": large[2]}
    return {f"resnet18 {name}": values.numpy() for name, values in tensors.items()}
