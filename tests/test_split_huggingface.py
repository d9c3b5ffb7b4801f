"""Hugging Face vision models with random weights from their configurations: nothing is downloaded.

They need the package ``transformers``, which adaptsplit does not: the tests skip where it is not installed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adaptsplit.models.split import SplitNetwork, split

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours

SMALL: dict[str, tuple[str, dict[str, Any], str]] = {
    "resnet": (
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        "resnet.encoder.stages.0",
    ),
    "vit": (
        "ViT",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        | {"image_size": 64, "patch_size": 16},
        "",
    ),
    "convnext": ("ConvNext", {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}, "convnext.encoder.stages.1"),
    "mobilenet": ("MobileNetV2", {"depth_multiplier": 0.35, "image_size": 64}, "mobilenet_v2.layer.3"),
    "swin": ("Swin", {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, ""),
    "regnet": ("RegNet", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, ""),
}


def make(name: str) -> torch.nn.Module:
    family, settings, _ = SMALL[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings, num_labels=5)
    model: torch.nn.Module = getattr(transformers, f"{family}ForImageClassification")(config)
    return model.eval()


def cut(name: str) -> SplitNetwork:
    return split(make(name), ["all"], torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_gives_the_same_bits(name: str) -> None:
    torch.set_num_threads(1)
    parts = cut(name)
    assert parts.verify().bit_equal
    assert len(parts.table.listed) >= 4
    assert parts.table.output_shape == (5,)
    known = SMALL[name][2]
    if known:
        assert parts.table.point(known).shape


def test_blocks_of_a_transformer_are_cuts() -> None:
    table = cut("vit").table
    tokens = [point for point in table.listed if point.shape == (17, 32)]
    assert len(tokens) >= 4, "after embeddings, and twice per block"
