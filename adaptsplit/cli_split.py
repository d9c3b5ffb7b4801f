"""The command that cuts a network of the user's: ``adaptsplit split``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from adaptsplit.cli_base import Data, Json, Seed, emit
from adaptsplit.errors import ConfigError
from adaptsplit.registry import did_you_mean
from adaptsplit.scenario import data_directory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptsplit.models.split import CutTable, Proof, SplitNetwork
    from adaptsplit.models.split_folder import FolderResult
    from adaptsplit.models.split_table import CutTime

Number = TypeVar("Number", int, float)


class AnswersBy(StrEnum):
    """Who gives the full answer."""

    own = "own"
    probe = "probe"


def split(
    network: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="A function that returns the network.")],
    input_: Annotated[str, typer.Option("--input", help="Its input, C,H,W: 3,64,64.")],
    at: Annotated[str | None, typer.Option("--at", help="Cuts to make: NAME,NAME,..., or auto, or all.")] = None,
    frames: Annotated[str | None, typer.Option("--frames", help="Labelled frames that fit the exits.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Model folder to write (with --frames).")] = None,
    output: Annotated[str | None, typer.Option("--output", help="The answer, where the network gives several.")] = None,
    cells: Annotated[int, typer.Option("--cells", help="1: one answer per frame; 4: one for each of 4x4 cells.")] = 1,
    answers: Annotated[
        AnswersBy,
        typer.Option("--answers", help="Full answer: the network's own, or a probe in place of its last map."),
    ] = AnswersBy.own,
    mean: Annotated[
        str, typer.Option("--mean", help="Subtracted from pixels in [0, 1]; one number, or per channel.")
    ] = "0",
    std: Annotated[str, typer.Option("--std", help="Pixels are divided by it after that.")] = "1",
    fit_frames: Annotated[int, typer.Option("--fit-frames", min=2, help="Frames that fit the exits.")] = 200,
    calibration_frames: Annotated[
        int, typer.Option("--calibration-frames", min=2, help="Frames for temperatures.")
    ] = 100,
    every: Annotated[bool, typer.Option("--all", help="List minor cuts, too: as many bytes and MACs.")] = False,
    device_macs: Annotated[float | None, typer.Option("--device-macs", min=1, help="Device, MACs per second.")] = None,
    server_macs: Annotated[float, typer.Option("--server-macs", min=1, help="Server, MACs per second.")] = 50e9,
    uplink: Annotated[float, typer.Option("--uplink", min=1, help="Uplink, bits per second.")] = 5e6,
    bits: Annotated[float, typer.Option("--bits", min=0.01, help="Bits per sent value, after a codec.")] = 4.0,
    seed: Seed = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Cut a network of your own: list its cut points, prove a cut, fit exits, write a model folder.

    MODULE:FACTORY is imported from the working directory or the installation: THIS RUNS THAT CODE. FACTORY is a
    torch.nn.Module or a function without arguments that returns one, with its weights loaded.

    \b
    Without --at: the table of cut points (with --device-macs: times predicted from rates).
    With --at: cuts there, and proves on random inputs that the parts give what the whole gives.
    With --frames and --out, too: fits an exit per cut on labelled frames (a linear probe; the network stays as it
    is), calibrates every answer and writes MODEL, which `adaptsplit profile MODEL` measures.
    """
    if at is None and (frames or out):
        raise ConfigError("--frames and --out need cuts; add --at NAME,... or --at auto")
    if (frames is None) != (out is None):
        raise ConfigError("--frames and --out go together: labelled frames fit the exits of the folder")
    shape = _numbers(input_, int, "--input", count=3)
    model, example = load_network(network), _example(shape)
    if at is None:
        rates = None if device_macs is None else (device_macs, server_macs, uplink, bits)
        _list_cuts(model, example, output, every, rates, as_json)
        return
    parts, document = _cut(model, network, at, example, output, seed, as_json)
    if frames is not None and out is not None:
        from adaptsplit.models.split_folder import FrameSettings, make_folder
        from adaptsplit.models.split_frames import View

        normal = _numbers(mean, float, "--mean"), _numbers(std, float, "--std")
        view = View((shape[0], shape[1], shape[2]), cells, *normal)
        settings = FrameSettings(frames, fit_frames, calibration_frames, seed, data_directory(data))
        result = make_folder(parts, settings, out, view, answers=answers.value, name=network.replace(":", "."))
        document |= _folder(result)
        if not as_json:
            _print_folder(result, frames, cells)
    if as_json:
        emit(document)


def _cut(
    model: nn.Module, network: str, at: str, example: Tensor, output: str | None, seed: int, as_json: bool
) -> tuple[SplitNetwork, dict[str, Any]]:
    from adaptsplit.models.split import split as split_model

    parts = split_model(model, [name.strip() for name in at.split(",") if name.strip()], example, output)
    proof = parts.verify(seed=seed)
    if not as_json:
        typer.echo(_proof_text(proof))
    return parts, {"network": network, "cuts": [cut.name for cut in parts.cuts], "proof": _proof(proof)}


def load_network(where: str) -> nn.Module:
    """Import ``MODULE:FACTORY`` (this runs the user's code) and return the network in inference mode.

    ConfigError when the module is not found, or what it gives is no ``torch.nn.Module``.
    """
    from torch import nn

    module, _, attribute = where.partition(":")
    if not attribute:
        raise ConfigError(f"network {where!r}: expected MODULE:FACTORY, such as my_nets:make_net")
    made = getattr(_imported(module), attribute, None)
    if made is None:
        known = [name for name in vars(sys.modules[module]) if not name.startswith("_")]
        raise ConfigError(f"network {where!r}: {module} has no {attribute!r}{did_you_mean(attribute, known)}")
    if isinstance(made, type) or not isinstance(made, nn.Module):
        made = _called(made, where) if callable(made) else made
    if not isinstance(made, nn.Module):
        raise ConfigError(f"network {where!r} gives {type(made).__name__}; expected a torch.nn.Module")
    return made.eval().requires_grad_(False)


def _called(factory: Callable[..., Any], where: str) -> Any:
    needed = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"network {where!r} needs arguments ({', '.join(needed)}); write a function without any that returns the "
            "network with its weights loaded"
        )
    return factory()


def _imported(module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"network {module}: imports {error.name!r}, which is not installed; install it"
            ) from error
        raise ConfigError(f"network: no module {module!r} in {here} or installed; give its import path") from error


def _example(shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def _numbers(text: str, kind: type[Number], option: str, count: int | None = None) -> tuple[Number, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: expected {kind.__name__} numbers with commas between") from error
    if count is not None and (len(numbers) != count or min(numbers) < 1):
        raise ConfigError(f"{option} {text!r}: expected {count} numbers of at least 1, such as 3,64,64")
    return numbers


_Rates = tuple[float, float, float, float]


def _list_cuts(
    model: nn.Module, example: Tensor, output: str | None, every: bool, rates: _Rates | None, as_json: bool
) -> None:
    from adaptsplit.models.split import cut_points
    from adaptsplit.models.split_table import best

    table = cut_points(model, example, output)
    times = () if rates is None else _times(table, rates)
    if as_json:
        timed = {"times": [_time(one) for one in times]}
        chosen = {"latency": best(times).name, "throughput": best(times, "throughput").name} if times else {}
        emit(table.to_dict() | {"auto": list(table.auto())} | ((timed | {"best": chosen}) if times else {}))
        return
    console = Console()
    console.print(_cut_table(table, times, every))
    if times:
        latency, stream = best(times), best(times, "throughput")
        console.print(f"least latency: {latency.name} ({1e3 * latency.total_s:.1f} ms)", highlight=False)
        console.print(f"highest frame rate: {stream.name} ({1 / stream.slowest_s:.1f} per second)", highlight=False)
    console.print(f"{table.hidden} operations inside blocks are no cuts: several tensors cross there", highlight=False)
    console.print(f"--at auto: {','.join(table.auto())}", markup=False, highlight=False)


def _times(table: CutTable, rates: _Rates) -> tuple[CutTime, ...]:
    device, server, uplink, bits = rates
    return table.times(device_macs_per_s=device, server_macs_per_s=server, uplink_bps=uplink, bits=bits)


def _time(one: CutTime) -> dict[str, Any]:
    return {"name": one.name, "device_s": one.device_s, "link_s": one.link_s, "server_s": one.server_s}


def _cut_table(table: CutTable, times: tuple[CutTime, ...], every: bool) -> Table:
    grid = Table(title=f"{table.network}: {table.macs / 1e6:.2f} M MACs, {table.parameters} parameters ({table.how})")
    grid.add_column("cut", overflow="fold")
    for name in ("shape", "KiB", "head MACs", "%", "head params", "natural", *(["ms"] if times else [])):
        grid.add_column(name, justify="right")
    total = {one.name: f"{1e3 * one.total_s:.1f}" for one in times}
    for one in table.points if every else table.listed:
        shape = "x".join(str(side) for side in one.shape)
        share = f"{100 * one.head_macs / max(1, table.macs):.1f}"
        row = [one.name, shape, f"{one.float_bytes / 1024:.1f}", str(one.head_macs), share, str(one.head_parameters)]
        grid.add_row(*row, "yes" if one.natural else "", *([total.get(one.name, "")] if times else []))
    return grid


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "bit_equal": proof.bit_equal,
        "largest_difference": proof.largest,
        "batches": list(proof.batches),
        "inputs": proof.inputs,
        "paths": proof.differences,
    }


def _proof_text(proof: Proof) -> str:
    said = "bit-equal to the whole" if proof.bit_equal else f"within {proof.largest:.3g} of the whole"
    sizes = ", ".join(str(size) for size in proof.batches)
    return f"{len(proof.differences)} path(s), {proof.inputs} random inputs each of batch {sizes}: {said}"


def _folder(result: FolderResult) -> dict[str, Any]:
    return {
        "model": str(result.folder),
        "branches": result.branches,
        "accuracy": result.accuracy,
        "ece_before": result.ece_before,
        "ece_after": result.ece_after,
        "mixed": result.mixed,
        "onnx_difference": result.onnx_difference,
    }


def _print_folder(result: FolderResult, frames: str, cells: int) -> None:
    typer.echo(f"model: {result.folder}\n{'answer':<32}{'accuracy':>9}{'ECE before':>12}{'after':>8}")
    for name, value in result.accuracy.items():
        typer.echo(f"{name:<32}{value:>9.3f}{result.ece_before[name]:>12.3f}{result.ece_after[name]:>8.3f}")
    if result.mixed > 0 and cells == 1:
        typer.echo(
            f"{100 * result.mixed:.0f} % of the frames show several classes; --cells 4 gives one answer per cell"
        )
    typer.echo(f"next: adaptsplit profile {result.folder} --frames {frames} --out PROFILE")
