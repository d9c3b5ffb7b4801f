"""Measure a profile: the exported model in onnxruntime and the real codecs over a frame source."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from adaptsplit.codecs import feature_codecs, image_codecs
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.errors import CodecError, ConfigError
from adaptsplit.frames import FrameSource, open_frames
from adaptsplit.profiles.arrays import LEVELS, SPECS, AnyArray
from adaptsplit.profiles.card import Host, Measured, ModelRef
from adaptsplit.profiles.profile import Profile
from adaptsplit.profiles.worker import CHUNK, CLOCK, Chunk, FrameWorker
from adaptsplit.runtime import ModelFolder

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

_PACKAGES = ("adaptsplit", "numpy", "onnxruntime", "pillow", "zstandard")


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """How to open a frame source again, in another process too: the arguments of ``open_frames``."""

    source: str
    split: str
    seed: int = 0
    data: Path | None = None

    def open(self) -> FrameSource:
        """Open the source."""
        return open_frames(self.source, split=self.split, seed=self.seed, data=self.data)


def measure(
    model: Path | str,
    source: FrameSpec,
    branches: Sequence[BranchSpec],
    *,
    frames: Sequence[int] | None = None,
    date: str = "",
    workers: int = 1,
    progress: Progress | None = None,
) -> Profile:
    """Measure every branch and rate on ``frames`` (indices into the source; default: all, in order).

    Per frame: both content signals, each head once, each codec and tail once per rate, the full model once. Each stage
    is timed as CPU time of the one thread that runs it, so that other work on the host does not count. ``workers`` > 1
    measures chunks of frames in that many spawned processes (guard a script's entry point); answers and bytes do not
    depend on it.

    Raises:
        ConfigError: branches that the model or the codecs do not have, frames outside the source.
        ModelError: a model folder that cannot be used.
    """
    folder, space = ModelFolder.open(model), DecisionSpace(tuple(branches))
    check_branches(folder, space)
    opened = source.open()
    if list(opened.classes) != list(folder.card.classes):
        raise ConfigError(
            f"frames {source.source!r} have classes {opened.classes}, model {folder.card.name!r} answers "
            f"{list(folder.card.classes)}; use the model that was trained on these frames"
        )
    wanted = _checked_frames(frames, len(opened))
    parts = _run(folder.path, source, space, wanted, workers, progress)
    host = _host(folder, parts, workers)
    measured = Measured(
        frames=source.source, seed=source.seed, count=len(wanted), date=date, host=host, versions=_versions()
    )
    reference = ModelRef(name=folder.card.name, digest=folder.digest, macs_full=folder.card.macs_full)
    return Profile(source.split, space.branches, folder.card.classes, reference, measured, **_arrays(parts))


def check_branches(folder: ModelFolder, space: DecisionSpace) -> None:
    """Raise ConfigError unless the model has every split branch and every codec can code what its branch sends."""
    known = [card.name for card in folder.card.branches]
    for branch in space.branches:
        if branch.kind == "split" and branch.name not in known:
            raise ConfigError(f"model {folder.card.name!r} has no branch {branch.name!r}; it has {', '.join(known)}")
        registry = feature_codecs if branch.kind == "split" else image_codecs
        for codec in branch.codecs:
            if codec not in registry:
                raise ConfigError(f"branch {branch.name!r}: {codec!r} is no {registry.family}; see {registry.names()}")
            if branch.kind == "split":
                _try_codec(codec, branch.name, folder.card.branch(branch.name).bottleneck)


def _try_codec(codec: str, branch: str, shape: tuple[int, int, int]) -> None:
    """Raise ConfigError unless the codec takes a tensor of ``shape``: some have limits, a learned one its channels."""
    try:
        feature_codecs.get(codec).encode(np.zeros(shape, np.float32))
    except CodecError as error:
        size = "x".join(map(str, shape))
        raise ConfigError(f"branch {branch!r} sends {size} values: {error}; choose another codec for it") from error


def cpu_name() -> str:
    """Model name of this host's processor, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _checked_frames(frames: Sequence[int] | None, available: int) -> list[int]:
    wanted = list(range(available)) if frames is None else [int(i) for i in frames]
    if not wanted or len(set(wanted)) != len(wanted) or min(wanted) < 0 or max(wanted) >= available:
        raise ConfigError(f"{len(wanted)} frames asked for; expected distinct indices from 0 to {available - 1}")
    return sorted(wanted)


def _run(
    path: Path, source: FrameSpec, space: DecisionSpace, frames: list[int], workers: int, progress: Progress | None
) -> list[Chunk]:
    chunks = [frames[i : i + CHUNK] for i in range(0, len(frames), CHUNK)]
    results = _serial(path, source, space, chunks) if workers <= 1 else _parallel(path, source, space, chunks, workers)
    parts: list[Chunk] = []
    done = 0
    for part in results:
        parts.append(part)
        done += len(part["index"])
        if progress is not None:
            progress(done, len(frames))
    return sorted(parts, key=lambda part: int(part["index"][0]))


def _serial(path: Path, source: FrameSpec, space: DecisionSpace, chunks: list[list[int]]) -> Iterator[Chunk]:
    worker = FrameWorker(path, source.open(), space)
    for chunk in chunks:
        yield worker.measure(chunk)


_worker: FrameWorker | None = None


def _start_worker(path: Path, source: FrameSpec, space: DecisionSpace) -> None:
    global _worker
    _worker = FrameWorker(path, source.open(), space)


def _measure_chunk(chunk: list[int]) -> Chunk:
    if _worker is None:
        raise RuntimeError("worker process was not initialised")
    return _worker.measure(chunk)


def _parallel(
    path: Path, source: FrameSpec, space: DecisionSpace, chunks: list[list[int]], workers: int
) -> Iterator[Chunk]:
    import multiprocessing  # here: a device imports this package, and measures nothing
    from concurrent.futures import Future, ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (path, source, space)) as pool:
        futures: list[Future[Chunk]] = [pool.submit(_measure_chunk, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _arrays(parts: list[Chunk]) -> dict[str, AnyArray]:
    """Join the chunks and turn stage-time samples into quantiles."""
    arrays: dict[str, AnyArray] = {}
    for spec in SPECS:
        joined = np.concatenate([part[spec.name] for part in parts])
        if "Q" in spec.dims:
            joined = np.moveaxis(np.quantile(joined, LEVELS, axis=0), 0, -1)
        arrays[spec.name] = np.ascontiguousarray(joined, dtype=spec.dtype)
    return arrays


def _host(folder: ModelFolder, parts: list[Chunk], workers: int) -> Host:
    """Rate of the full model: MACs / median time of trunk and tail on this host."""
    full = np.concatenate([part["full_s"] for part in parts])
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    rate = folder.card.macs_full / float(np.median(full))
    return Host(macs_per_s=rate, cpu=cpu_name()[:400], system=system, clock=CLOCK, workers=max(1, workers))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
