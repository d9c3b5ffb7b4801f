"""Tracing a network of the user's into a graph of tensor operations that can be cut.

Four ways are tried, in this order: ``torch.export`` with a free batch size (knows most networks, Hugging Face's too),
``torch.fx`` (symbolic; keeps the modules), ``torch.fx`` with the stages of an ``nn.Sequential`` as closed boxes (for
stages that decide by values), and ``torch.export`` at the batch size of the example alone. The weights are shared with
the network, never copied.
"""

from __future__ import annotations

import inspect
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adaptsplit.errors import ConfigError
from adaptsplit.registry import did_you_mean

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "select", "slice", "unsqueeze", "squeeze"),
    *("expand", "getitem", "unbind", "split", "chunk", "narrow", "detach", "alias", "t", "movedim", "view_as"),
    *("split_with_sizes", "swapaxes", "unfold"),
}


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced network: its graph, the node of the image, the node of the answer, and how it was traced.

    ``batch`` is the only batch size that the graph takes, or None when it takes any.
    """

    graph: fx.GraphModule
    source: fx.Node
    answer: fx.Node
    how: str
    batch: int | None = None


def trace(model: nn.Module, example: Tensor, output: str | None = None) -> Traced:
    """Trace ``model`` on ``example`` (n, ...).

    ``output`` names the tensor that is the answer when the network gives several (``logits`` is taken by itself).

    Raises:
        ConfigError: a network in training mode, one that no way can trace, or an answer that is not one tensor.
    """
    check_ready(model, example)
    index = _answer_index(model, example, output)
    failures = []
    for how, make in _WAYS.items():
        try:
            with _quiet():
                graph, batch = make(model, example)
                traced = _settled(graph, index, how, batch)
                if batch is None:
                    graph(torch.zeros(3, *example.shape[1:]))  # a size of the batch that was traced as a constant fails
            return traced
        except Exception as error:  # each tracer raises errors of its own, without a common base class
            failures.append(f"{how}: {_first_line(error)}")
    raise ConfigError(
        f"{type(model).__name__} cannot be traced ({'; '.join(failures)}). Cure: keep decisions that depend on values "
        "of tensors out of forward(), or write the network as an nn.Sequential of stages"
    )


def answer_of(model: nn.Module, image: Tensor, output: str | None = None) -> Tensor:
    """Run ``model`` and return its answer: the tensor that it gives, or the one called ``output`` or ``logits``."""
    leaves = _leaves(model(image))
    return leaves[_choose(model, [name for name, _ in leaves], output)][1]


def check_ready(model: nn.Module, example: Tensor) -> None:
    """Raise ConfigError unless ``model`` is in inference mode and ``example`` is a batch of float32 numbers."""
    training = next((name or type(model).__name__ for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ConfigError(
            f"{training!r} is in training mode, in which dropout is random and BatchNorm learns from what it is given; "
            "cure: call model.eval() first"
        )
    if example.dtype != torch.float32 or example.ndim < 2:
        found = f"{example.dtype} of shape {tuple(example.shape)}"
        raise ConfigError(f"the example is {found}; expected float32 of shape (n, C, H, W), n images in one batch")


def _exported(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, int | None]:
    free = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    example = example if len(example) > 1 else torch.cat([example, example])  # a batch of one would be taken as fixed
    program = torch.export.export(model, (example,), dynamic_shapes=free)
    return _plain(program), None


def _exported_fixed(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, int | None]:
    return _plain(torch.export.export(model, (example,))), len(example)


def _plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = program.module()
    if not isinstance(module, fx.GraphModule):
        raise ConfigError(f"torch.export gave {type(module).__name__}")
    return module


def _symbolic(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, int | None]:
    return _trace_with(fx.Tracer(), model), None


def _stages(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, int | None]:
    if not isinstance(model, nn.Sequential):
        raise ConfigError(f"{type(model).__name__} is no nn.Sequential")
    return _trace_with(_StageTracer(), model), None


class _StageTracer(fx.Tracer):
    """Takes every module below the root as one closed operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace_with(tracer: fx.Tracer, model: nn.Module) -> fx.GraphModule:
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    fixed = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return fx.GraphModule(model, tracer.trace(model, concrete_args=fixed or None))


_Way = Callable[[nn.Module, Tensor], tuple[fx.GraphModule, int | None]]
_WAYS: dict[str, _Way] = {
    "torch.export": _exported,
    "torch.fx": _symbolic,
    "torch.fx by stages": _stages,
    "torch.export at one batch size": _exported_fixed,
}


def _settled(module: fx.GraphModule, index: int, how: str, batch: int | None) -> Traced:
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":  # torch.export's check of the input's shape
            module.graph.erase_node(node)
    _settle_mutation(module)
    sources = [node for node in module.graph.nodes if node.op == "placeholder" and node.users]
    if len(sources) != 1:
        raise ConfigError(f"takes {len(sources)} tensors; wrap it in a module whose forward() takes one image tensor")
    final = next(node for node in module.graph.nodes if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(final.args[0]) if isinstance(leaf, fx.Node)]
    return Traced(module, sources[0], leaves[index], how, batch)


def _settle_mutation(module: fx.GraphModule) -> None:
    """Make every change in place a value of its own, so that dropping or reordering nothing can lose one."""
    for node in list(module.graph.nodes):
        if not _changes_in_place(module, node):
            continue
        changed = node.args[0]
        if not isinstance(changed, fx.Node) or _seen_through_views(changed, node):
            raise ConfigError(f"{node.name!r} changes a view in place; write it without the in-place operation")
        for user in [one for one in changed.users if one > node]:
            user.replace_input_with(changed, node)
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _functional(node.target)


def _changes_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(target)), "inplace", False))
    if node.op == "call_method":
        return str(target).endswith("_") and not str(target).endswith("__")
    return target in _IN_PLACE or node.kwargs.get("inplace") is True


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    space, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None)
    if found is None or found._schema.is_mutable:
        raise ConfigError(f"{name!r} works in place and has no other form; write the network without it")
    return found  # type: ignore[no-any-return]


def _seen_through_views(changed: fx.Node, by: fx.Node) -> bool:
    """Whether another view of the memory that ``by`` changes is read later."""
    base = changed
    while operation(base) in _VIEWS and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    family, queue = {changed}, [base]
    while queue:
        member = queue.pop()
        family.add(member)
        queue += [user for user in member.users if operation(user) in _VIEWS and user not in family]
    others = family - {changed, by}
    return any(user > by and user not in family for member in others for user in member.users)


def operation(node: fx.Node) -> str:
    """Return the plain name of a node's operation: ``conv2d``, ``add``, ``Linear``, ``flatten``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    if node.op == "call_module":
        return str(target).rpartition(".")[2]
    return str(getattr(target, "__name__", target))


def _answer_index(model: nn.Module, example: Tensor, output: str | None) -> int:
    with torch.no_grad():
        try:
            leaves = _leaves(model(example))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = tuple(example.shape)
            raise ConfigError(
                f"{type(model).__name__} does not take an image batch of shape {shape} ({_first_line(error)}); "
                "give the input that it was made for"
            ) from error
    index = _choose(model, [name for name, _ in leaves], output)
    if leaves[index][1].shape[:1] != example.shape[:1]:
        shape = tuple(leaves[index][1].shape)
        raise ConfigError(f"answer of shape {shape} for {len(example)} images; expected one row per image first")
    return index


def _leaves(answer: Any) -> list[tuple[str, Tensor]]:
    flat, _ = pytree.tree_flatten_with_path(answer)
    return [(pytree.keystr(path).strip("[]'\"."), leaf) for path, leaf in flat if isinstance(leaf, Tensor)]


def _choose(model: nn.Module, names: list[str], output: str | None) -> int:
    if output is None and len(names) == 1:
        return 0
    wanted = output or "logits"
    if wanted in names:
        return names.index(wanted)
    what = f"{type(model).__name__} gives {len(names)} tensors ({', '.join(names) or 'none'})"
    if output is not None:
        raise ConfigError(f"{what}, none of them {output!r}{did_you_mean(output, names)}")
    raise ConfigError(f"{what}; name the one that is the answer by output=NAME (--output NAME)")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back torch's own warnings and logs about tracing; what fails is said in our error."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
