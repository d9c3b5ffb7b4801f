"""Bytes, quality and speed of ours and other coders on the same quantised activations, in one run.

    python benchmarks/codecs.py --model MODEL --frames tiles:img_eurosat_rgb/eurosat_rgb_15000.tar --data DATA

Tensors: bottlenecks and the trunk's last map of a model folder (trained), and maps of ResNet-18 (He et al., 2016; of
64x16x16, 128x28x28, 256x14x14) on the same frames, with random weights and batch statistics: no weights are fetched.
``context`` and ``zstd-19`` are the coders alone, on codes (packed as in ``adaptsplit.codecs.features``); ``fast`` and
``codec-context`` are whole codecs, from floats to container. ``order-0`` is the entropy of the codes, a length without
a coder; ``model`` the context model's own code length. lz4, blosc2 and constriction take part where installed.
Quality is the signal-to-noise ratio of the decoded features in dB, of images the PSNR.
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

from adaptsplit.codecs import feature_codecs, image_codecs
from adaptsplit.codecs.context import read_coded, write_coded
from adaptsplit.codecs.context_compile import intervals
from adaptsplit.codecs.packing import pack
from adaptsplit.codecs.quantise import Grid
from adaptsplit.frames import open_frames
from adaptsplit.runtime import DeviceRuntime, ModelFolder
from adaptsplit.runtime.sessions import run_session, to_input

LAYOUT = {2: 2, 3: 4, 4: 4, 6: 8, 8: 8}
BITS = (2, 4, 6, 8)
IMAGES = ("webp-75", "jpeg-75")


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

        yield "blosc2", (lambda: blosc2.compress2(packed), blosc2.decompress2)
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


def measure(name: str, values: np.ndarray, bits: int) -> list[Row]:
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
    for codec, kind in (("fast", "fast"), ("codec-context", "context"), ("codec-zstd", "zstd")):
        whole = feature_codecs.get(f"{grid.prefix}-{kind}")
        data = whole.encode(values)
        add(codec, len(data), best(lambda: whole.encode(values)), best(lambda: whole.decode(data)))  # noqa: B023
    other = constriction_row(codes)
    if other is not None:
        add("constriction", *other)
    return rows


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


def model_tensors(folder: Path, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """(n, C, H, W) activations of a model folder, by name."""
    device = DeviceRuntime(ModelFolder.open(folder))
    card, found = device.folder.card, {}
    for branch in card.branches:
        maps = np.stack([device.head(branch.name, image).features for image in images])
        found[f"bottleneck {branch.name} {'x'.join(map(str, maps.shape[1:]))}"] = maps
    session = device._sessions.get("trunk.onnx")
    feeds = [{"image": to_input(image, card.input.height, card.input.width)} for image in images]
    trunk = np.stack([run_session(session, feed)[0][0] for feed in feeds])
    found[f"trunk {'x'.join(map(str, trunk.shape[1:]))}"] = trunk
    return found


def resnet_tensors(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """(n, C, H, W) maps of ResNet-18 with He-initialised weights (seed 0); empty without torch."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return {}
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def unit(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def block(x: Any, width: int, stride: int) -> Any:
        inputs = x.shape[1]
        y = unit(width, width, 3, 1)(torch.relu(unit(inputs, width, 3, stride)(x)))
        return torch.relu(y + (x if stride == 1 and inputs == width else unit(inputs, width, 1, stride)(x)))

    def maps(side: int) -> list[Any]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        x = nn.functional.interpolate((pixels - 0.45) / 0.22, side, mode="area")
        x = nn.functional.max_pool2d(torch.relu(unit(3, 64, 7, 2)(x)), 3, 2, 1)
        found = []
        for width, stride in ((64, 1), (128, 2), (256, 2)):
            x = block(block(x, width, stride), width, 1)
            found.append(x)
        return found

    with torch.no_grad():
        small, large = maps(64), maps(224)
    tensors = {"64x16x16": small[0], "128x28x28": large[1], "256x14x14": large[2]}
    return {f"resnet18 {name}": tensor.numpy() for name, tensor in tensors.items()}


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


def plot(rows: list[Row], path: Path) -> None:
    """Bytes relative to order-0 entropy against encoding speed, one point per tensor, width and codec."""
    from matplotlib.figure import Figure

    floor = {(row.tensor, row.bits): row.bytes for row in rows if row.codec == "order-0"}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="encode, million values/s", ylabel="bytes / order-0 entropy")
    for codec in sorted({row.codec for row in rows if row.encode_mvalues_s and (row.tensor, row.bits) in floor}):
        chosen = [row for row in rows if row.codec == codec]
        ratios = [row.bytes / floor[row.tensor, row.bits] for row in chosen]
        axes.plot([row.encode_mvalues_s for row in chosen], ratios, "o", ms=4, label=codec)
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Print a table, or JSON with ``--json``; ``--plot FILE`` draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; without it only ResNet-18 and images")
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true", help="two frames and 4 bits only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    o = parser.parse_args()
    source = open_frames(o.frames, split="test", data=o.data)
    places = np.linspace(0, len(source) - 1, 2 if o.quick else 6).astype(int)
    images = [source.frame(int(place)).image for place in places]
    tensors = {**(model_tensors(o.model, images) if o.model else {}), **resnet_tensors(images)}
    rows = mean_rows([measure_image(image) for image in images])
    for name, maps in tensors.items():
        for bits in (4,) if o.quick else BITS:
            rows += mean_rows([measure(name, np.ascontiguousarray(values), bits) for values in maps])
    if o.plot:
        plot(rows, o.plot)
    print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2) if o.json else table(rows))


if __name__ == "__main__":
    main()
