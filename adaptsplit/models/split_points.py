"""Finding and naming the cut points of a network, by the names that its author gave.

*Natural bottleneck* (Dynamic Split Computing, arXiv:2205.11269): a cut whose tensor is smaller than the image's and
than that of every earlier cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor, fx, nn

from adaptsplit.models.split_graph import Flow, articulations, flow_of, parameters_of
from adaptsplit.models.split_table import INPUT, CutPoint, CutTable
from adaptsplit.models.split_trace import operation, trace


@dataclass(frozen=True, slots=True)
class Plan:
    """A traced network with its table, and the graph node of each point."""

    flow: Flow
    table: CutTable
    nodes: dict[str, fx.Node]


def cut_points(model: nn.Module, example: Tensor, output: str | None = None) -> CutTable:
    """List every place at which one tensor is enough for all that follows.

    Args:
        model: the network, in inference mode (``model.eval()``); its first argument is an image batch (n, ...) float32.
        example: one such batch; only its shape matters.
        output: which tensor is the answer, when the network gives several (``logits`` is found by itself).

    Raises:
        ConfigError: training mode, a network that cannot be traced, several answers and none named.
    """
    return plan(model, example, output).table


def plan(model: nn.Module, example: Tensor, output: str | None = None) -> Plan:
    """As ``cut_points``, with what ``split`` needs to cut."""
    traced = trace(model, example, output)
    flow = flow_of(traced, example)
    found = [node for node in articulations(flow) if node not in (traced.source, traced.answer)]
    groups = _merged(flow, found)
    named = _names(flow, groups)
    points = _described(flow, named)
    shape = flow.readings[traced.answer].shape or ()
    table = CutTable(
        network=type(model).__name__,
        how=traced.how,
        input_shape=tuple(example.shape[1:]),
        output_shape=shape[1:],
        macs=_macs(flow, flow.order),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=len(flow.data) - len(found) - 2,
        points=tuple(points),
    )
    return Plan(flow, table, {one.name: one.node for one in named})


@dataclass(frozen=True, slots=True)
class _Named:
    """A cut point's names, and the node whose tensor crosses."""

    name: str
    aliases: tuple[str, ...]
    node: fx.Node


_SAME_DATA = {
    *("view", "reshape", "flatten", "transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone", "dropout"),
    *("Dropout", "Flatten", "Identity", "alias", "detach", "feature_dropout", "to", "_to_copy", "movedim"),
}


_ACTIVATIONS = {
    "relu",
    "relu6",
    "hardtanh",
    "hardswish",
    "silu",
    "gelu",
    "elu",
    "leaky_relu",
    "prelu",
    "sigmoid",
    "tanh",
}


def _merged(flow: Flow, found: list[fx.Node]) -> list[list[fx.Node]]:
    """Group a cut point with those after it that hold the same numbers in another form, such as flattened."""
    groups: list[list[fx.Node]] = []
    for node in found:
        if _same_data(flow, node):
            if groups and node.all_input_nodes[0] is groups[-1][-1]:
                groups[-1].append(node)
            continue
        groups.append([node])
    return groups


def _same_data(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        name = type(flow.traced.graph.get_submodule(str(node.target))).__name__
        return name in _SAME_DATA or name.startswith("Dropout")
    if operation(node) in ("pad", "constant_pad_nd"):  # by nothing, as some networks pad for another framework's sake
        return flow.readings[node].shape == flow.readings[node.all_input_nodes[0]].shape
    return operation(node) in _SAME_DATA


def _described(flow: Flow, named: list[_Named]) -> list[CutPoint]:
    whole = _macs(flow, flow.order)
    data = [node for node in flow.order if node in flow.data]
    image = math.prod((flow.readings[flow.traced.source].shape or ())[1:])
    smallest, points = image, []
    for one in named:
        shape = (flow.readings[one.node].shape or ())[1:]
        place = data.index(one.node) + 1
        head = _macs(flow, data[:place])
        natural = math.prod(shape) < smallest
        smallest = min(smallest, math.prod(shape))
        learnt = parameters_of(flow, data[:place]), parameters_of(flow, data[place:])
        points.append(CutPoint(one.name, one.aliases, shape, head, whole - head, *learnt, natural, False))
    return _marked(points, image, {one.name for one in named if _is_activation(flow, one.node)})


def _marked(points: list[CutPoint], image: int, active: set[str]) -> list[CutPoint]:
    """Keep one of each run of points with equal bytes and MACs, and none that only rescales the image."""
    out: list[CutPoint] = []
    for (values, macs), group in groupby(points, lambda one: (one.values, one.head_macs)):
        run = list(group)
        kept = None if macs == 0 and values >= image else _kept(run, active)
        natural = any(one.natural for one in run)
        out += [replace(one, natural=natural and one is kept, minor=one is not kept) for one in run]
    return out


def _kept(run: list[CutPoint], active: set[str]) -> CutPoint:
    """Return the last activation (its zeros cost no bytes), else the point of the outermost module."""
    after = [one for one in run if one.name in active]
    return after[-1] if after else min(reversed(run), key=lambda one: re.split("[:+]", one.name)[0].count("."))


def _is_activation(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(flow.traced.graph.get_submodule(str(node.target))).__module__ == nn.ReLU.__module__
    return operation(node) in _ACTIVATIONS


def _macs(flow: Flow, nodes: Sequence[fx.Node]) -> int:
    return sum(flow.readings[node].macs for node in nodes) // flow.batch


def _names(flow: Flow, groups: list[list[fx.Node]]) -> list[_Named]:
    """Name every group, each name once; its node is the one that ends the module of that name, else the first."""
    data = [node for node in flow.order if node in flow.data]
    after = {node: data[i + 1] for i, node in enumerate(data[:-1])}
    taken: set[str] = set()
    named: list[_Named] = []
    base = INPUT
    for group in groups:
        ends = {path: node for node in reversed(group) for path in reversed(_ended(node, after.get(node)))}
        paths = [path for path in reversed(ends) if path not in taken]
        if paths:
            base = paths[0]
        else:
            paths = [_numbered(_functional_name(group[0], base), taken)]
        taken.update(paths)
        named.append(_Named(paths[0], tuple(paths[1:]), ends.get(paths[0], group[0])))
    return named


def _functional_name(node: fx.Node, base: str) -> str:
    """Name an operation that ends no module: after the module before it, or inside the module that it stands in."""
    inside = next(reversed(_stack(node).values()), "")
    return f"{base}+{operation(node)}" if not inside or base.startswith(inside) else f"{inside}:{operation(node)}"


def _numbered(name: str, taken: set[str]) -> str:
    wanted, count = name, 1
    while wanted in taken:
        count += 1
        wanted = f"{name}_{count}"
    return wanted


def _ended(node: fx.Node, after: fx.Node | None) -> list[str]:
    """Return the paths of the modules whose last operation this node is, the outermost first."""
    own, following = _stack(node), {} if after is None else _stack(after)
    return [path for key, path in own.items() if key not in following]


def _stack(node: fx.Node) -> dict[str, str]:
    """Return call key -> module path of every module around a node, outermost first, without the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return {key: path for key, (path, _) in stack.items() if path and not path.startswith("_empty_nn_module")}
