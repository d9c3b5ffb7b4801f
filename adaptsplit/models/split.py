"""``split()``: cut a network of the user's without retraining, and prove that the parts equal the whole.

>>> import torch
>>> from torch import nn
>>> from adaptsplit.models.split import split
>>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10)).eval()
>>> parts = split(net, at=["1"], example=torch.zeros(1, 3, 32, 32))
>>> parts.verify().bit_equal
True
>>> parts.tails["1"](parts.heads["1"](torch.zeros(4, 3, 32, 32))).shape
torch.Size([4, 10])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from adaptsplit.errors import ConfigError, ModelError
from adaptsplit.models.split_graph import part
from adaptsplit.models.split_points import Plan, cut_points, plan
from adaptsplit.models.split_table import CutPoint, CutTable
from adaptsplit.models.split_trace import answer_of

__all__ = ["CutPoint", "CutTable", "Proof", "SplitNetwork", "cut_points", "split"]

BATCHES = (1, 2, 5)
INPUTS = 2


@dataclass(frozen=True, slots=True)
class Proof:
    """What ``verify`` compared: each path (head and tail, all parts in a row) on random inputs of several batch sizes.

    ``differences`` gives the largest absolute difference from the whole by path, ``largest`` the largest of all.
    """

    batches: tuple[int, ...]
    inputs: int
    differences: dict[str, float]

    @property
    def largest(self) -> float:
        """Largest absolute difference of any answer."""
        return max(self.differences.values())

    @property
    def bit_equal(self) -> bool:
        """Whether every number of every answer was the same."""
        return self.largest == 0.0


class SplitNetwork:
    """A network cut at one or more points, in order of execution.

    ``heads[name]`` maps an image batch to the tensor at the cut (n, *shape), ``tails[name]`` that tensor to the answer;
    ``cuts`` describes them and ``table`` every other possible cut; ``whole`` is the user's network. All share weights.
    """

    def __init__(self, whole: nn.Module, made: Plan, cuts: tuple[CutPoint, ...], output: str | None) -> None:
        self.whole, self.table, self.cuts = whole, made.table, cuts
        self.fixed_batch = made.flow.traced.batch
        self._plan, self._output = made, output
        traced = made.flow.traced
        self.heads: dict[str, fx.GraphModule] = {c.name: self._part(traced.source, self._node(c.name)) for c in cuts}
        self.tails: dict[str, fx.GraphModule] = {c.name: self._part(self._node(c.name), traced.answer) for c in cuts}

    def between(self, start: str, end: str) -> nn.Module:
        """Return the part from one cut to a later one (the identity for the same; ConfigError for an earlier one)."""
        return self.section(start, end)

    def section(self, start: str | None, end: str | None, batch: int | None = None) -> nn.Module:
        """Return the part from cut ``start`` (None: the image) to cut ``end`` (None: the answer), any cut of the table.

        ``batch`` fixes the batch size, as an exported graph wants it.
        """
        traced = self._plan.flow.traced
        first, last = (traced.source if start is None else self._node(start)), traced.answer
        last = last if end is None else self._node(end)
        if first is last:
            return nn.Identity()
        if last < first:
            raise ConfigError(f"cut {end!r} lies before cut {start!r}; name them in order of execution")
        return self._part(first, last, batch)

    def answer(self, image: Tensor) -> Tensor:
        """Return the whole network's answer (n, ...)."""
        return answer_of(self.whole, image, self._output)

    def verify(
        self, *, seed: int = 0, batches: Sequence[int] = BATCHES, inputs: int = INPUTS, tolerance: float = 0.0
    ) -> Proof:
        """Compare every head + tail, and all parts in a row, with the whole on random inputs of several batch sizes.

        The same operations run on the same numbers, so that bit-equal answers are expected (``tolerance`` 0).

        Raises:
            ModelError: a difference above ``tolerance``, or a network that answers the same input differently.
        """
        sizes = tuple(batches) if self.fixed_batch is None else (self.fixed_batch,)
        generator = torch.Generator().manual_seed(seed)
        differences: dict[str, float] = {}
        with torch.no_grad():
            for index in range(len(sizes) * inputs):
                image = _draw(generator, (sizes[index % len(sizes)], *self.table.input_shape), index)
                expected = self._steady_answer(image)
                for path, found in self._paths(image):
                    worst = max(differences.get(path, 0.0), _difference(expected, found))
                    differences[path] = worst
                    self._check(path, worst, tolerance, len(image))
        return Proof(sizes, inputs, differences)

    def _part(self, start: fx.Node, end: fx.Node, batch: int | None = None) -> fx.GraphModule:
        return part(self._plan.flow, start, end, batch).eval()

    def _node(self, name: str) -> fx.Node:
        return self._plan.nodes[self.table.point(name).name]

    def _steady_answer(self, image: Tensor) -> Tensor:
        expected = self.answer(image)
        if _difference(expected, self.answer(image)) != 0.0:
            raise ModelError(
                f"{self.table.network} answers the same images differently each time, so nothing can be proved; "
                "cure: take randomness and memory out of forward() in inference mode"
            )
        return expected

    def _paths(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        for cut in self.cuts:
            sent = self.heads[cut.name](image)
            yield f"{cut.name} > answer", self.tails[cut.name](sent)
        if len(self.cuts) > 1:
            names = [cut.name for cut in self.cuts]
            x = self.heads[names[0]](image)
            for start, end in pairwise(names):
                x = self.between(start, end)(x)
            yield " > ".join([*names, "answer"]), self.tails[names[-1]](x)

    def _check(self, path: str, worst: float, tolerance: float, batch: int) -> None:
        if not worst <= tolerance:
            raise ModelError(
                f"{self.table.network} cut at {path}: parts and whole differ by {worst:.3g} on a batch of {batch} "
                f"(at most {tolerance:g} is accepted); cure: another cut, or tolerance={2 * worst:.0e} if that is "
                "rounding of your network's own kernels"
            )


def split(model: nn.Module, at: Sequence[str], example: Tensor, output: str | None = None) -> SplitNetwork:
    """Cut ``model`` at the named points, without retraining; ``verify()`` of the result proves that nothing changed.

    Args:
        model: the network in inference mode; weights are shared, not copied.
        at: names (or aliases) of cuts, as ``cut_points`` lists them; ``["auto"]`` takes what ``CutTable.auto`` chooses,
            ``["all"]`` every cut point, minor ones too.
        example: an image batch (n, C, H, W) float32; only its shape matters.
        output: which tensor is the answer, when the network gives several.

    Raises:
        ConfigError: no cut named, training mode, a network that cannot be traced.
        UnknownNameError: a cut that the network does not have.
    """
    made = plan(model, example, output)
    chosen = {made.table.point(name).name for name in _wanted(made.table, at)}
    if not chosen:
        raise ConfigError(f"no cut to make; {made.table.network} has {_some(made.table)}")
    return SplitNetwork(model, made, tuple(one for one in made.table.points if one.name in chosen), output)


def _wanted(table: CutTable, at: Sequence[str]) -> tuple[str, ...]:
    if list(at) == ["all"]:
        return tuple(one.name for one in table.points)
    return table.auto() if list(at) == ["auto"] else tuple(at)


def _some(table: CutTable) -> str:
    names = [one.name for one in table.listed]
    return ", ".join(names) if names else "no place at which one tensor is enough"


def _draw(generator: torch.Generator, shape: tuple[int, ...], index: int) -> Tensor:
    """Draw images in [0, 1], and every other time standard normal ones, as after normalisation."""
    return (torch.rand if index % 2 == 0 else torch.randn)(shape, generator=generator)


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest absolute difference; numbers that are not finite must be the same ones."""
    if expected.shape != found.shape:
        return float("inf")
    apart = (expected - found).abs()
    same = (expected == found) | (expected.isnan() & found.isnan())
    return float(torch.where(same, torch.zeros_like(apart), apart.nan_to_num(nan=float("inf"))).max())
