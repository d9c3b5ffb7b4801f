"""A cut network around one frame: its parts for the frame's images, what they send, and the graphs of its files."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adaptsplit.codecs.container import MAX_VALUES
from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import CELLS
from adaptsplit.models.split import SplitNetwork
from adaptsplit.models.split_frames import Eye, FromMap, Pictures, ToMap, View
from adaptsplit.models.split_probe import Probe, ProbeExit, pooled
from adaptsplit.runtime.folder import MAX_FILE_BYTES

Answers = Literal["own", "probe"]
NAME_LENGTH = 24
PENULTIMATE = "penultimate"


class Body:
    """The parts of a cut network around one frame: every tensor is of one frame's images (1 or 16)."""

    def __init__(self, parts: SplitNetwork, view: View, answers: Answers, classes: list[str]) -> None:
        self.parts, self.view, self.answers, self.classes = parts, view, answers, classes
        self.table, self.eye, self.images = parts.table, Eye(view).eval(), view.images
        self.cuts = {cut.name: cut for cut in parts.cuts}
        self.branches = dict(zip(self.cuts, branch_names(list(self.cuts)), strict=True))
        self.last = parts.cuts[-1].name
        self.before_answer = parts.table.listed[-1].name
        self.maps = {cut.name: ToMap(cut.shape, view.cells) for cut in parts.cuts}
        self._check()

    def _check(self) -> None:
        table, classes = self.table, len(self.classes)
        if table.input_shape != self.view.shape:
            raise ConfigError(f"the network was cut for input {table.input_shape}, the view gives {self.view.shape}")
        if self.parts.fixed_batch not in (None, self.images):
            raise ConfigError(
                f"{table.network} could be traced at batch size {self.parts.fixed_batch} only, and a frame is "
                f"{self.images} image(s); cut it with an example of {self.images}"
            )
        if classes < 2:
            raise ConfigError(f"the frames have {classes} classes; exits are fitted on at least 2 labelled ones")
        if self.answers == "own" and table.output_shape != (classes,):
            raise ConfigError(
                f"{table.network} gives {table.output_shape} per image, the frames have {classes} classes; cure: "
                "--answers probe fits the last linear map on your frames, or bring a network with these classes"
            )
        for cut in self.cuts.values():
            if cut.values * self.images > MAX_VALUES:
                raise ConfigError(
                    f"cut {cut.name!r} sends {cut.values * self.images} values per frame; a message holds "
                    f"{MAX_VALUES}: cut later, where the tensor is smaller"
                )
        if 4 * table.parameters > MAX_FILE_BYTES:
            raise ConfigError(
                f"{table.network} has {table.parameters} parameters; a model folder's files hold "
                f"{MAX_FILE_BYTES // 4} at most: bring a smaller variant"
            )

    def section(self, start: str | None, end: str | None) -> nn.Module:
        """Return the part between two cuts for one frame's images."""
        return self.parts.section(start, end, batch=self.images)

    def decoder(self, cut: str) -> nn.Module:
        """Return what turns a received map into the tensor at the last cut."""
        return nn.Sequential(FromMap(self.cuts[cut].shape, self.view.cells), self.section(cut, self.last))

    def tail(self, whole: Probe | None) -> nn.Module:
        """Return the part from the last cut to the logits (images, K)."""
        if whole is None:
            return self.section(self.last, None)
        return nn.Sequential(self.section(self.last, self.before_answer), ProbeExit(whole))

    def read(self, pictures: Pictures) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return by cut the pooled tensors (examples, D) and their largest number; ``shares`` is (examples, K)."""
        stages = self._stages()
        rows: dict[str, list[Tensor]] = {name: [] for name in (*stages, "shares")}
        scales = dict.fromkeys(stages, 0.0)
        for image, labels in zip(pictures.images, pictures.labels, strict=True):
            shares, known = self._shares(labels)
            x = self.eye(as_input(image))
            for name, stage in stages.items():
                x = stage(x)
                rows[name].append(pooled(x)[known])
                scales[name] = max(scales[name], float(x.abs().max()))
            rows["shares"].append(shares[known])
        return {name: torch.cat(values) for name, values in rows.items()}, scales

    def _stages(self) -> dict[str, nn.Module]:
        names: list[str | None] = [None, *self.cuts]
        stages = {str(b): self.section(a, b) for a, b in zip(names, self.cuts, strict=False)}
        if self.answers == "probe":
            stages[PENULTIMATE] = self.section(self.last, self.before_answer)
        return stages

    def _shares(self, labels: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return per image the share of each class (images, K) among its labelled cells, and whether it has any."""
        counts = torch.zeros(self.images, len(self.classes))
        for i, row in enumerate(labels.reshape(self.images, -1)):
            for label in row[row >= 0]:
                counts[i, int(label)] += 1
        total = counts.sum(1, keepdim=True)
        return counts / total.clamp_min(1), total[:, 0] > 0


class Cells(nn.Module):
    """Logits of one frame's images (1 or 16, K) -> logits of its 16 cells (1, 16, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; one answer stands for all cells."""
        return x.expand(CELLS, self.classes).reshape(1, CELLS, self.classes)


class HeadGraph(nn.Module):
    """image -> (features, exit logits)."""

    def __init__(self, body: Body, cut: str, leave: nn.Module) -> None:
        super().__init__()
        self.eye, self.head, self.map = body.eye, body.section(None, cut), body.maps[cut]
        self.leave, self.cells = leave, Cells(len(body.classes))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (1, C, H, W) and calibrated exit logits (1, 16, K)."""
        x = self.head(self.eye(image))
        return self.map(x), self.cells(self.leave(x))


def branch_names(cuts: list[str]) -> list[str]:
    """Return a branch name (lower case, at most 24 characters, unique) for every cut: ``layer1.0`` -> ``layer1_0``."""
    names: list[str] = []
    for cut in cuts:
        plain = re.sub(r"[^a-z0-9]+", "_", cut.lower()).strip("_")
        short = plain if len(plain) <= NAME_LENGTH - 4 else plain[-(NAME_LENGTH - 4) :].lstrip("_")
        name = short if short[:1].isalpha() else f"cut{short}"
        count = sum(other == name or other.startswith(f"{name}_v") for other in names)
        names.append(name if name not in names else f"{name}_v{count + 1}"[:NAME_LENGTH])
    return names


def as_input(image: npt.NDArray[np.uint8]) -> Tensor:
    """Return a frame (256, 256, 3) uint8 as (1, 3, 256, 256) float32 in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1).float()[None] / 255
