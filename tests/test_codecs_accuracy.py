"""What codecs cost in accuracy, with the packaged model, and what ``benchmarks/codecs.py`` prints."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.codecs import PriorCodec, decode_container, fit_prior, get_codec
from adaptsplit.codecs.context_compile import is_compiled
from adaptsplit.frames import Frame, open_frames
from adaptsplit.runtime import ModelFolder
from adaptsplit.runtime.device import SessionStore
from adaptsplit.runtime.sessions import run_session, to_input

PACKAGED = Path(str(resources.files("adaptsplit.data"))) / "flight" / "model"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FRAMES = 8
Maps = NDArray[np.float32]


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    source = open_frames("flight", split="test")
    return [source.frame(int(place)) for place in np.linspace(0, len(source) - 1, FRAMES)]


@pytest.fixture(scope="module")
def store() -> SessionStore:
    return SessionStore(ModelFolder.open(PACKAGED))


@pytest.fixture(scope="module")
def trunk(store: SessionStore, frames: list[Frame]) -> list[Maps]:
    feeds = [{"image": to_input(frame.image, 256, 256)} for frame in frames]
    return [run_session(store.get("trunk.onnx"), feed)[0][0] for feed in feeds]


def accuracy(store: SessionStore, maps: list[Maps], frames: list[Frame]) -> float:
    answers = [run_session(store.get("tail.onnx"), {"hidden": hidden[None]})[0][0].argmax(-1) for hidden in maps]
    return float(np.mean([found == frame.labels for found, frame in zip(answers, frames, strict=True)]))


@pytest.mark.parametrize("name", ["slicer-k50-d10", "slicer-k75-d15", "slicer-k75-d20", "slicer-k100-d15", "q3t-rans"])
def test_ten_times_fewer_bytes_cost_at_most_a_point(
    name: str, store: SessionStore, trunk: list[Maps], frames: list[Frame]
) -> None:
    """The cut without a bottleneck, nothing trained for the codec; 128 cells, so one more wrong cell is 0.8 points."""
    data = [get_codec(name).encode(values) for values in trunk]  # type: ignore[arg-type]
    raw = sum(values.size * 4 for values in trunk)
    decoded = [np.asarray(decode_container(container), np.float32) for container in data]
    assert raw / sum(map(len, data)) >= 10
    assert accuracy(store, trunk, frames) - accuracy(store, decoded, frames) <= 0.01


def test_a_broken_codec_would_be_seen(store: SessionStore, trunk: list[Maps], frames: list[Frame]) -> None:
    zeros = [np.zeros_like(values) for values in trunk]
    assert accuracy(store, trunk, frames) - accuracy(store, zeros, frames) > 0.3


@pytest.fixture
def benchmark() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("codec_benchmark", BENCHMARKS / "codecs.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))
    del sys.modules[spec.name]


@pytest.mark.skipif(not is_compiled(), reason="numba is not installed: the context coder only decodes")
def test_the_benchmark_measures_every_coder(benchmark: ModuleType, trunk: list[Maps]) -> None:
    values = np.ascontiguousarray(trunk[0][:16])
    rows = {row.codec: row for row in benchmark.measure("trunk", values, 4, PriorCodec(fit_prior(values[None], 16)))}
    assert {"order-0", "model", "context", "fast", "zstd-1", "zstd-19", "zlib-6", "codec-rle", "codec-rans"} <= set(
        rows
    )
    assert rows["model"].bytes <= rows["context"].bytes <= 1.05 * rows["model"].bytes
    assert rows["context"].bytes < min(rows["zstd-19"].bytes, rows["order-0"].bytes)
    assert all(row.encode_mvalues_s > 0 for name, row in rows.items() if name not in ("order-0", "model"))
    assert list(benchmark.Row.__dataclass_fields__) == [
        *("tensor", "bits", "codec", "bytes", "encode_mvalues_s", "decode_mvalues_s", "quality")
    ]
