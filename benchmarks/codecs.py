"""Bytes, quality and speed of ours and other coders on the same activations, in one run.

    python benchmarks/codecs.py                    # the packaged model on synthetic frames; --quick for a glance
    python benchmarks/codecs.py --model MODEL --frames tiles:img_eurosat_rgb/eurosat_rgb_15000.tar --data DATA

Tensors: bottlenecks and the trunk's last map of a model folder (trained), and maps of ResNet-18 (He et al., 2016; of
64x16x16, 128x28x28, 256x14x14) on the same frames, with random weights and batch statistics: no weights are fetched.
``context``, ``zstd-19`` and other names without ``codec-`` are coders alone, on codes (packed as in
``adaptsplit.codecs.features``); ``fast`` and ``codec-...`` are whole codecs, from floats to container, ``slicer-...``
too (bits 0: it chooses them). ``order-0`` is the entropy of the codes, a length without a coder; ``model`` the context
model's own code length. ``codec-prior`` is fitted on frames of another split. lz4, blosc2 and constriction take part
where installed. Quality is the signal-to-noise ratio of the decoded features in dB, of images the PSNR.

A second table, ``accuracy``, says what the cut without a bottleneck (the trunk's map) costs through each codec: bytes,
how many times smaller than raw float32, share of right cells, and points lost against the uncompressed map.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from codec_tensors import accuracy, model_tensors, resnet_tensors, tail_of, trunk_maps

from adaptsplit.codecs import PriorCodec, decode_container, feature_codecs, fit_prior, get_codec, image_codecs
from adaptsplit.codecs.context import read_coded, write_coded
from adaptsplit.codecs.context_compile import intervals
from adaptsplit.codecs.packing import pack
from adaptsplit.codecs.quantise import Grid
from adaptsplit.frames import Frame, open_frames

LAYOUT = {2: 2, 3: 4, 4: 4, 6: 8, 8: 8}
BITS = (2, 4, 6, 8)
IMAGES = ("webp-75", "jpeg-75")
WHOLE = {"fast": "fast", **{f"codec-{kind}": kind for kind in ("context", "zstd", "rle", "rans")}}
SLICERS = ("slicer-k50-d15", "slicer-k75-d20", "slicer-k100-d15", "slicer-k100-d30")
ACCURACY = (
    *("slicer-k25-d10", "slicer-k50-d10", "slicer-k75-d15", "slicer-k75-d20", "slicer-k100-d15", "slicer-k100-d30"),
    *(f"q{bits}t-{kind}" for bits in (2, 3, 4, 8) for kind in ("context", "rans", "rle", "zstd")),
    *("q2c-context", "q3c-context"),
)
DRAWN = ("context", "zstd-19", "zlib-6", "constriction", "zstd-1", "blosc2", "lz4", "fast", "codec-rle", "codec-rans")
PACKAGED = Path(__file__).resolve().parents[1] / "adaptsplit" / "data" / "flight" / "model"


@dataclass(frozen=True)
class Row:
    """One line of the table: means over the frames; speeds in million values a second, None where nothing ran."""

    tensor: str
    bits: int
    codec: str
    bytes: float
    encode_mvalues_s: float | None
    decode_mvalues_s: float | None
    quality: float


@dataclass(frozen=True)
class Answer:
    """What a codec at the cut without a bottleneck leaves: means over frames; ``points`` of accuracy lost."""

    codec: str
    bytes: float
    ratio: float
    accuracy: float
    points: float


Coder = tuple[Callable[[], bytes], Callable[[bytes], Any]]


def coders(codes: np.ndarray, shape: tuple[int, int, int], bits: int) -> Iterator[tuple[str, Coder]]:
    """Every lossless coder that is installed: encode the codes, decode them (general coders: without unpacking)."""
    packed = pack(codes, LAYOUT[bits])
    yield "context", (lambda: write_coded(codes, shape, bits), lambda data: read_coded(data, shape, bits))
    for level in (1, 19):
        coder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        yield f"zstd-{level}", (lambda coder=coder: coder.compress(packed), decoder.decompress)  # type: ignore[misc]
    yield "zlib-6", (lambda: zlib.compress(packed, 6), zlib.decompress)
    yield from _optional(packed)


def _optional(packed: bytes) -> Iterator[tuple[str, Coder]]:
    try:
        import lz4.block

        yield "lz4", (lambda: lz4.block.compress(packed), lz4.block.decompress)
    except ImportError:
        pass
    try:
        import blosc2

        blosc2.set_nthreads(1)
        yield "blosc2", (lambda: blosc2.compress2(packed, typesize=1), blosc2.decompress2)
    except ImportError:
        pass


def constriction_row(codes: np.ndarray) -> tuple[float, float, float] | None:
    """(bytes, seconds to encode, to decode) of constriction's ANS under the order-0 model, 2 bytes a used symbol."""
    try:
        import constriction
    except ImportError:
        return None
    counts, symbols = np.bincount(codes).astype(np.float64), codes.astype(np.int32)
    model = constriction.stream.model.Categorical((counts + 1e-9) / (counts + 1e-9).sum(), perfect=False)

    def encode() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    words = encode()
    decode = best(lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size))
    return 4 * len(words) + 2 * float((counts > 0).sum()), best(encode), decode


def best(run: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest of some runs, in seconds, after one that warms up."""
    run()
    found = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - start)
    return found


def entropy_bytes(codes: np.ndarray) -> float:
    """Order-0 entropy of the codes."""
    share = np.bincount(codes) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * codes.size / 8)


def snr_db(true: np.ndarray, decoded: np.ndarray) -> float:
    """Signal-to-noise ratio of decoded features."""
    noise = float(np.mean((true - decoded) ** 2, dtype=np.float64))
    return 10 * float(np.log10(max(float(np.var(true)), 1e-30) / max(noise, 1e-30)))


def measure(name: str, values: np.ndarray, bits: int, prior: PriorCodec) -> list[Row]:
    """All rows of one tensor at one width."""
    grid, shape = Grid(bits, name.startswith("bottleneck")), values.shape
    head, codes = grid.quantise(values)
    quality = snr_db(values, grid.restore(head, codes, shape))
    rows = []

    def add(codec: str, size: float, encode_s: float | None, decode_s: float | None) -> None:
        speeds = [None if s is None else codes.size / s / 1e6 for s in (encode_s, decode_s)]
        rows.append(Row(name, bits, codec, size, *speeds, quality))

    add("order-0", entropy_bytes(codes), None, None)
    frequencies = intervals(codes, shape, bits) & 0x1FFFF
    add("model", float((16 - np.log2(frequencies)).sum() / 8), None, None)
    for codec, (encode, decode) in coders(codes, shape, bits):
        data = encode()
        add(codec, len(data), best(encode), best(lambda decode=decode, data=data: decode(data)))  # type: ignore[misc]
    other = constriction_row(codes)
    if other is not None:
        add("constriction", *other)
    rows += [whole(name, bits, label, f"{grid.prefix}-{kind}", values) for label, kind in WHOLE.items()]
    return [*rows, whole(name, bits, "codec-prior", prior, values)]


def whole(name: str, bits: int, label: str, codec: str | PriorCodec, values: np.ndarray) -> Row:
    """Row of a whole codec, from floats to container and back."""
    chosen: Any = get_codec(codec) if isinstance(codec, str) else codec
    data = chosen.encode(values)
    times = best(lambda: chosen.encode(values)), best(lambda: chosen.decode(data))
    quality = snr_db(values, chosen.decode(data))
    return Row(name, bits, label, len(data), *(values.size / time / 1e6 for time in times), quality)


def measure_image(image: np.ndarray) -> list[Row]:
    """JPEG and WebP of a frame, the offload baseline; a value is a pixel's channel, ``bits`` 8."""
    rows = []
    for name in IMAGES:
        codec = image_codecs.get(name)
        data = codec.encode(image)
        error = np.mean((codec.decode(data).astype(float) - image) ** 2)
        speeds = [image.size / best(run) / 1e6 for run in (lambda: codec.encode(image), lambda: codec.decode(data))]  # noqa: B023
        rows.append(Row("image 3x256x256", 8, name, len(data), *speeds, 10 * float(np.log10(255**2 / error))))
    return rows


def mean_rows(groups: list[list[Row]]) -> list[Row]:
    """Mean over frames of the rows that describe the same thing."""
    found = []
    for rows in zip(*groups, strict=True):
        numbers = [[getattr(row, field) for row in rows] for field in list(asdict(rows[0]))[3:]]
        means = [None if values[0] is None else float(np.mean(values)) for values in numbers]
        found.append(Row(rows[0].tensor, rows[0].bits, rows[0].codec, *means))  # type: ignore[arg-type]
    return found


def table(rows: list[Row]) -> str:
    """Plain-text table."""
    lines = [f"{'tensor':<28}{'bits':>5}  {'codec':<14}{'bytes':>9}{'enc M/s':>9}{'dec M/s':>9}{'dB':>7}"]
    for row in rows:
        speeds = "".join(
            "        -" if s is None else f"{s:9.1f}" for s in (row.encode_mvalues_s, row.decode_mvalues_s)
        )
        lines.append(f"{row.tensor:<28}{row.bits:>5}  {row.codec:<14}{row.bytes:>9.0f}{speeds}{row.quality:>7.1f}")
    return "\n".join(lines)


def accuracy_table(answers: list[Answer]) -> str:
    """Plain-text table."""
    lines = [f"{'trunk, codec':<18}{'bytes':>9}{'smaller':>9}{'accuracy':>10}{'points lost':>13}"]
    for row in answers:
        lines.append(f"{row.codec:<18}{row.bytes:>9.0f}{row.ratio:>8.1f}x{row.accuracy:>10.4f}{row.points:>13.2f}")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Bytes relative to order-0 entropy against encoding speed: a point per tensor and width, a colour per codec."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    floor = {(row.tensor, row.bits): row.bytes for row in rows if row.codec == "order-0"}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="encode, million values/s", ylabel="bytes / order-0 entropy")
    for index, codec in enumerate(DRAWN):
        chosen = [row for row in rows if row.codec == codec and (row.tensor, row.bits) in floor]
        ratios = [row.bytes / floor[row.tensor, row.bits] for row in chosen]
        speeds = [row.encode_mvalues_s for row in chosen]
        axes.plot(speeds, ratios, "ox^s"[index % 4], ms=5, color=colormaps["tab10"](index), label=codec)
    axes.axhline(1, color="0.7", lw=1)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path)


def measure_all(o: argparse.Namespace, images: list[np.ndarray]) -> list[Row]:
    """Rows of every tensor and of the images."""
    fitted = frames_of(o, "calibration", 4 if o.quick else 24)[1]
    tensors = {**model_tensors(o.model, images), **resnet_tensors(images)}
    others = {**model_tensors(o.model, fitted), **resnet_tensors(fitted)}
    rows = mean_rows([measure_image(image) for image in images])
    for name, maps in tensors.items():
        for bits in (4,) if o.quick else BITS:
            prior = PriorCodec(fit_prior(others[name], 1 << bits))
            rows += mean_rows([measure(name, np.ascontiguousarray(values), bits, prior) for values in maps])
        if not name.startswith("bottleneck"):
            rows += mean_rows([[whole(name, 0, codec, codec, values) for codec in SLICERS] for values in maps])
    return rows


def measure_accuracy(o: argparse.Namespace) -> list[Answer]:
    """What the cut without a bottleneck costs through each codec."""
    frames, images = frames_of(o, "test", 12 if o.quick else o.accuracy_frames)
    maps, answer = trunk_maps(o.model, images), tail_of(o.model)
    reference, raw = accuracy(answer, maps, frames), maps[0].size * 4
    found = [Answer("raw float32", raw, 1.0, reference, 0.0)]
    for name in ACCURACY:
        codec: Any = feature_codecs.get(name)
        data = [codec.encode(values) for values in maps]
        size = float(np.mean([len(container) for container in data]))
        kept = accuracy(answer, [decode_container(container) for container in data], frames)
        found.append(Answer(name, size, raw / size, kept, 100 * (reference - kept)))
    return found


def frames_of(o: argparse.Namespace, split: str, count: int) -> tuple[list[Frame], list[np.ndarray]]:
    """``count`` frames at equal distances over a split, and their images."""
    source = open_frames(o.frames, split=split, data=o.data)
    frames = [source.frame(int(place)) for place in np.linspace(0, len(source) - 1, count).astype(int)]
    return frames, [frame.image for frame in frames]


def main() -> None:
    """Print two tables, or JSON with ``--json``; ``--plot FILE`` draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=PACKAGED, help="model folder (default: the packaged one)")
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--accuracy-frames", type=int, default=200, help="frames of the accuracy table")
    parser.add_argument("--quick", action="store_true", help="two frames and 4 bits only; accuracy on 12 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    o = parser.parse_args()
    rows = measure_all(o, frames_of(o, "test", 2 if o.quick else 6)[1])
    answers = measure_accuracy(o)
    if o.plot:
        plot(rows, o.plot)
    document = {"rows": [asdict(row) for row in rows], "accuracy": [asdict(answer) for answer in answers]}
    print(json.dumps(document, indent=2) if o.json else f"{table(rows)}\n\n{accuracy_table(answers)}")


if __name__ == "__main__":
    main()
