"""A network of one's own, from its definition to a model folder that ``adaptsplit profile`` measures.

From this folder, after ``pip install -e '..[train]'``::

    python own_model.py                                # trains it a little (own_model.safetensors), then cuts it
    adaptsplit split own_model:make --input 3,64,64    # the table of its cut points
    adaptsplit split own_model:make --input 3,64,64 --at auto --cells 4 --frames flight --out own-folder
    adaptsplit profile own-folder --frames flight --limit 300 --out own-profile

The network knows nothing of adaptsplit. It classifies one 64 x 64 picture; ``--cells 4`` shows it each cell of a frame.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CLASSES = 10  # of the embedded world; order as `adaptsplit.frames.open_frames("flight", split="test").classes`
WEIGHTS = Path(__file__).with_suffix(".safetensors")


class Block(nn.Module):
    """A residual block with stride 2."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.short = nn.Conv2d(inputs, width, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class OwnNet(nn.Module):
    """(n, 3, 64, 64) pixels in [0, 1] -> (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1, self.block2, self.block3 = Block(16, 16), Block(16, 32), Block(32, 64)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.block3(self.block2(self.block1(self.stem((x - 0.5) / 0.25))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def make() -> OwnNet:
    """Return the network, with its weights where they were trained: what MODULE:FACTORY names."""
    torch.manual_seed(0)
    net = OwnNet()
    if WEIGHTS.exists():
        net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def train(steps: int = 400, frames: int = 400) -> None:
    """Train on cells of the embedded world: any training code of yours would do."""
    from adaptsplit.frames import open_frames
    from adaptsplit.models.split_body import as_input
    from adaptsplit.models.split_frames import Eye, View, gather

    pictures = gather(open_frames("flight", split="model-train"), frames)
    eye = Eye(View((3, 64, 64), cells=4))
    cells, labels = torch.cat([eye(as_input(i)) for i in pictures.images]), torch.from_numpy(pictures.labels).flatten()
    net = make().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(len(cells), (64,), generator=generator)
        loss = F.cross_entropy(net(cells[chosen]), labels[chosen], ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    save_file(net.state_dict(), WEIGHTS)


def main() -> None:
    """Train if there are no weights yet; then list the cuts, make two, and prove them."""
    from adaptsplit.models.split import split

    torch.set_num_threads(1)
    if not WEIGHTS.exists():
        train()
    parts = split(make(), at=["block1", "block2"], example=torch.zeros(1, 3, 64, 64))
    for point in parts.table.listed:
        print(f"{point.name:<12}{point.shape!s:>14}{point.head_macs:>10} MACs{'  natural' if point.natural else ''}")
    proof = parts.verify()
    print(f"largest difference {proof.largest}, bit-equal: {proof.bit_equal}")


if __name__ == "__main__":
    main()
