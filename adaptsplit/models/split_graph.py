"""Where a traced network can be cut by one tensor, and the parts that such a cut gives.

A cut point is a node through which every path from the image to the answer goes: its output alone is enough for all
that follows. Inside a residual or dense block two or more tensors would have to be sent; such places are not offered
(the block's ends are at least as good: one tensor instead of several).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from adaptsplit.errors import ConfigError
from adaptsplit.models.split_trace import Traced

_Argument = fx.node.Argument
_PROBES = (2, 3)  # batch sizes; what grows with them is the batch size, what does not is a constant


@dataclass(frozen=True, slots=True)
class Reading:
    """What a node gave on one batch: ``value`` of numbers (sizes), ``shape`` of one tensor, and the MACs that it cost.

    A node that gives several tensors at once, such as a chunk, has neither.
    """

    macs: int
    shape: tuple[int, ...] | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Flow:
    """The live nodes of a traced network in order, which of them carry the image, and what each gave.

    ``order`` holds every node that the answer needs, ``data`` those whose tensors depend on the image's values.
    ``readings`` are of a batch of ``batch`` images, ``second`` of another size (the same where only one can be run).
    """

    traced: Traced
    order: tuple[fx.Node, ...]
    data: frozenset[fx.Node]
    readings: dict[fx.Node, Reading]
    second: dict[fx.Node, Reading]
    batch: int
    second_batch: int


def flow_of(traced: Traced, example: Tensor) -> Flow:
    """Run the graph on two batch sizes of ``example``'s image shape and find what flows where."""
    sizes = (traced.batch, traced.batch) if traced.batch is not None else _PROBES
    batches = [torch.rand(size, *example.shape[1:], generator=_generator()) for size in sizes]
    first, second = _read(traced, batches[0]), _read(traced, batches[1])
    order = _needed(traced, first)
    data = {traced.source}
    for node in order:
        if not _is_number(first[node]) and any(before in data for before in node.all_input_nodes):
            data.add(node)
    return Flow(traced, order, frozenset(data), first, second, len(batches[0]), len(batches[1]))


def articulations(flow: Flow) -> list[fx.Node]:
    """Return the cut points in order: single float tensors, batch first, that alone cross to what follows them."""
    data = [node for node in flow.order if node in flow.data]
    last = {
        node: max((flow.order.index(user) for user in node.users if user in flow.data), default=-1) for node in data
    }
    found = []
    open_nodes: set[fx.Node] = set()
    for node in data:
        place = flow.order.index(node)
        open_nodes = {one for one in open_nodes if last[one] > place} | {node}
        if open_nodes == {node} and _sendable(flow, node):
            found.append(node)
    return found


def part(flow: Flow, start: fx.Node, end: fx.Node, batch: int | None = None) -> fx.GraphModule:
    """Return the module that maps the tensor of ``start`` to that of ``end``; weights are shared with the network.

    ``batch`` fixes the batch size, which takes the arithmetic on sizes out of an exported graph.
    """
    return _Part(flow, start, end, batch).build()


class _Part:
    """Copies the nodes between two cut points into a graph of their own."""

    def __init__(self, flow: Flow, start: fx.Node, end: fx.Node, batch: int | None) -> None:
        self._flow, self._start, self._end, self._batch = flow, start, end, batch
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, Any] = {}

    def build(self) -> fx.GraphModule:
        entry = self._graph.placeholder("x")
        # A module that works in place must not change the caller's tensor.
        guarded = self._graph.call_method("clone", (entry,)) if self._flow.traced.how.startswith("torch.fx") else entry
        self._entry = self._copies[self._start] = guarded
        for node in self._closure():
            if node not in self._copies:
                self._copies[node] = self._copy(node)
        self._graph.output(self._copies[self._end])
        return fx.GraphModule(self._flow.traced.graph, self._graph, class_name="Part")

    def _closure(self) -> list[fx.Node]:
        needed, queue = set(), [self._end]
        while queue:
            node = queue.pop()
            if node in needed or node is self._start:
                continue
            needed.add(node)
            if not _is_number(self._flow.readings[node]):
                queue += node.all_input_nodes
        return [node for node in self._flow.order if node in needed]

    def _copy(self, node: fx.Node) -> Any:
        if _is_number(self._flow.readings[node]):
            return self._number(node, self._flow.readings[node].value, self._flow.second[node].value)
        return self._graph.node_copy(node, lambda one: self._copies[one])

    def _number(self, node: fx.Node, first: Any, second: Any) -> _Argument:
        """Write a size as a constant, or as a multiple of the batch size."""
        if isinstance(first, tuple | list):
            return tuple(self._number(node, a, b) for a, b in zip(first, second, strict=True))
        if first == second:
            return cast("_Argument", first)
        times, rest = divmod(first, self._flow.batch)
        if rest or times * self._flow.second_batch != second:
            raise ConfigError(
                f"{node.name!r} is {first} for {self._flow.batch} images and {second} for "
                f"{self._flow.second_batch}: neither constant nor a multiple of the batch size"
            )
        if self._batch is not None:
            return int(times * self._batch)
        size = self._graph.call_method("size", (self._entry, 0))
        return size if times == 1 else self._graph.call_function(_times, (size, times))


def _times(size: int, factor: int) -> int:
    return size * factor


class _Reader(fx.Interpreter):
    """Runs a graph and notes shape, number and MACs of every node."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Reading] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        value = super().run_node(n)
        macs = (self._counter.get_total_flops() - before) // 2
        if isinstance(value, Tensor):
            self.found[n] = Reading(macs, tuple(value.shape))
        else:
            self.found[n] = Reading(macs, None, None if _holds_tensor(value) else value)
        return value


def _read(traced: Traced, batch: Tensor) -> dict[fx.Node, Reading]:
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    reader = _Reader(traced.graph, counter)
    with torch.no_grad(), counter:
        reader.run(batch)
    return reader.found


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two matrix products, Q K' and (Q K') V; the registry of torch 2.13 lacks the processor's own kernel."""
    b, heads, rows, width = query
    return 2 * b * heads * rows * key[2] * (width + value[3])


_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops
}


def parameters_of(flow: Flow, nodes: Iterable[fx.Node]) -> int:
    """Return how many numbers the nodes learnt, each parameter counted once."""
    seen: dict[int, int] = {}
    queue, visited = list(nodes), set()
    while queue:
        node = queue.pop()
        if node in visited:
            continue
        visited.add(node)
        for parameter in _own(flow.traced.graph, node):
            seen[id(parameter)] = parameter.numel()
        queue += [before for before in node.all_input_nodes if before not in flow.data]
    return sum(seen.values())


def _own(module: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(module.get_submodule(str(node.target)).parameters())
    if node.op != "get_attr":
        return []
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    return [found] if isinstance(found, nn.Parameter) else []


def _needed(traced: Traced, readings: dict[fx.Node, Reading]) -> tuple[fx.Node, ...]:
    needed, queue = set(), [traced.answer]
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += node.all_input_nodes
    return tuple(node for node in traced.graph.graph.nodes if node in needed or node is traced.source)


def _sendable(flow: Flow, node: fx.Node) -> bool:
    shape, second = flow.readings[node].shape, flow.second[node].shape
    if shape is None or second is None or len(shape) < 2:
        return False
    return (shape[0], second[0]) == (flow.batch, flow.second_batch) and shape[1:] == second[1:]


def _is_number(reading: Reading) -> bool:
    return reading.value is not None


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(one) for one in value)
    return isinstance(value, Tensor)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
