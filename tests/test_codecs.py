"""Codecs: round trips, sizes, golden bytes, and containers from a hostile sender."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.codecs import (
    UniformCodec,
    build_container,
    codec_of,
    decode_container,
    feature_codecs,
    get_codec,
    image_codecs,
    parse_container,
)
from adaptsplit.codecs.container import MAX_CONTAINER_BYTES
from adaptsplit.codecs.packing import pack, packed_size, unpack
from adaptsplit.errors import CodecError, UnknownNameError

BITS = (2, 3, 4, 6, 8)
FEATURE_NAMES = [f"q{bits}{scope}-zstd" for bits in BITS for scope in "tc"]
IMAGE_NAMES = ["webp-10", "webp-75", "jpeg-50", "jpeg-75"]


def smooth(channels: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Spatially smooth zero-mean features with channels of different spread."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(1, 6, (channels, 2, 1, 1))
    phase = rng.uniform(0, 6, (channels, 1, 1))
    spread = rng.uniform(0.2, 3, (channels, 1, 1))
    return np.asarray(spread * np.sin(waves[:, 0] * y + waves[:, 1] * x + phase), dtype=np.float32)


def picture(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Return a smooth colour image."""
    waves = smooth(3, height, width, seed=3)
    return np.ascontiguousarray((127 + 120 * waves / np.abs(waves).max()).transpose(1, 2, 0).astype(np.uint8))


def encode(name: str) -> bytes:
    """A small container of the named codec."""
    codec: Any = get_codec(name)
    return bytes(codec.encode(smooth(4, 8, 8) if name in feature_codecs else picture(16, 24)))


def stored_step(name: str, data: bytes) -> NDArray[np.float32]:
    """(C or 1, 1, 1) quantisation step that a container of ``name`` states."""
    container = parse_container(data)
    codec = codec_of(container)
    assert isinstance(codec, UniformCodec)
    size = 4 + (2 * container.shape[0] if codec.per_channel else 0)
    return codec._steps(container.payload[:size], container.shape[0])[1]


def test_every_promised_codec_is_registered() -> None:
    assert set(FEATURE_NAMES) <= set(feature_codecs.names())
    assert set(IMAGE_NAMES) <= set(image_codecs.names())


@pytest.mark.parametrize("name", feature_codecs.names() + image_codecs.names())
def test_codecs_say_what_they_are(name: str) -> None:
    codec = get_codec(name)
    assert codec.name == name
    assert codec.__doc__


def test_unknown_codec_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'q4c-zstd'"):
        get_codec("q4c-zst")


@pytest.mark.parametrize("name", FEATURE_NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (24, 8, 8), (12, 16, 16), (130, 3, 1)])
def test_round_trip_error_is_half_a_step(name: str, shape: tuple[int, int, int]) -> None:
    codec = feature_codecs.get(name)
    values = smooth(*shape, seed=sum(shape)) + np.float32(0.37)
    data = codec.encode(values)
    decoded = codec.decode(data)
    assert decoded.dtype == np.float32
    assert decoded.shape == shape
    assert np.all(np.abs(decoded - values) <= stored_step(name, data) * 0.5001 + 1e-6)
    assert np.array_equal(decode_container(data), decoded)
    assert codec.encode(values) == data


@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_stored_range_is_hardly_wider_than_the_true_one(name: str) -> None:
    values = smooth(8, 16, 16)
    step = stored_step(name, feature_codecs.get(name).encode(values)).ravel()
    codec = feature_codecs.get(name)
    assert isinstance(codec, UniformCodec)
    axes = (1, 2) if codec.per_channel else None
    true = (values.max(axis=axes) - values.min(axis=axes)) / (2**codec.bits - 1)
    slack = 2 / 255 * np.ptp(values) / (2**codec.bits - 1) if codec.per_channel else 0.002 * true
    assert np.all(step >= true * 0.999)
    assert np.all(step <= true + slack * 1.01 + 0.002 * true)


@pytest.mark.parametrize("name", FEATURE_NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, -5.0, 1e-30, -1e-7, 65504.0])
def test_constant_tensors_survive(name: str, value: float) -> None:
    codec = feature_codecs.get(name)
    values = np.full((3, 4, 4), value, dtype=np.float32)
    decoded = codec.decode(codec.encode(values))
    assert np.allclose(decoded, values, rtol=6e-4, atol=1.3e-7)


@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_values_beyond_float16_saturate_and_stay_finite(name: str) -> None:
    codec = feature_codecs.get(name)
    decoded = codec.decode(codec.encode(np.array([[[3e38, -3e38, 1.0, 0.0]]], dtype=np.float32)))
    assert np.isfinite(decoded).all()
    assert decoded[0, 0, 0] == pytest.approx(65504)
    assert decoded[0, 0, 1] == pytest.approx(-65504)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    values = smooth(2, 4, 4)
    values[1, 2, 3] = bad
    with pytest.raises(CodecError, match="NaN or infinity"):
        feature_codecs.get(name).encode(values)


@pytest.mark.parametrize(
    "values",
    [np.zeros((4, 4), np.float32), np.zeros((0, 4, 4), np.float32), np.zeros((1, 2, 2), np.int32)],
    ids=["rank", "empty", "integers"],
)
def test_other_features_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(CodecError, match="expected"):
        get_codec("q4t-zstd").encode(values)


@pytest.mark.parametrize("scope", "tc")
def test_sizes_grow_and_errors_shrink_with_bits(scope: str) -> None:
    values = smooth(12, 16, 16)
    codecs = [feature_codecs.get(f"q{bits}{scope}-zstd") for bits in BITS]
    data = [codec.encode(values) for codec in codecs]
    errors = [float(np.abs(codec.decode(d) - values).mean()) for codec, d in zip(codecs, data, strict=True)]
    assert all(len(a) < len(b) for a, b in itertools.pairwise(data))
    assert all(a > b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", BITS)
def test_noise_costs_at_most_the_packed_size(bits: int) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (24, 8, 8)).astype(np.float32)
    data = feature_codecs.get(f"q{bits}t-zstd").encode(values)
    assert len(data) <= packed_size(values.size, bits) + 4 + 15


def test_header_is_small() -> None:
    for shape in [(24, 8, 8), (127, 127, 127), (1, 1, 1)]:
        assert len(build_container(4, 0, shape, bytes(1500))) - 1500 <= 16


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 255, 1000])
def test_packing_is_reversible(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    data = pack(codes, bits)
    assert len(data) == packed_size(count, bits)
    assert len(data) <= count * bits / 8 + 2
    assert np.array_equal(unpack(data, count, bits), codes)


def test_padding_is_checked() -> None:
    with pytest.raises(CodecError, match="padding"):
        unpack(b"\xff", 1, 2)


@pytest.mark.parametrize("name", image_codecs.names())
def test_images_round_trip(name: str) -> None:
    codec = image_codecs.get(name)
    image = picture()
    data = codec.encode(image)
    decoded = codec.decode(data)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - image).mean() < 16
    assert np.array_equal(decode_container(data), decoded)
    assert codec.encode(image) == data


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_better_images_are_larger(kind: str) -> None:
    image = picture()
    image = image + np.random.default_rng(0).integers(-6, 6, image.shape).astype(np.int16)
    sizes = [len(image_codecs.get(f"{kind}-{q}").encode(image.clip(0, 255).astype(np.uint8))) for q in (10, 30, 50, 75)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


def test_wrong_images_are_refused() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(CodecError, match="expected"):
            image_codecs.get("webp-50").encode(image)


def test_a_codec_refuses_the_container_of_another() -> None:
    for one, other in (("q4c-zstd", "q4t-zstd"), ("webp-10", "webp-75"), ("jpeg-75", "q2c-zstd")):
        with pytest.raises(CodecError, match="expected"):
            get_codec(one).decode(encode(other))


GOLDEN = {
    "q2t-zstd": "415301020001040408000000420055aaff02ea5dca",
    "q3t-zstd": "41530103000104040a000000420055aaff00ffbe10c545",
    "q4c-zstd": "41530114000104040e0000004200ff00005555aaaaffff01f553ea",
    "q8t-zstd": "415301080001040414000000420000000055555555aaaaaaaaffffffff1232c638",
}
ZSTD_GOLDEN = "41530102010408081100000042000045000010e4e4010093001651bd743b"


def golden_features() -> NDArray[np.float32]:
    """(1, 4, 4) ramp 0 .. 3."""
    return np.repeat(np.arange(4, dtype=np.float32), 4).reshape(1, 4, 4)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str) -> None:
    codec = feature_codecs.get(name)
    data = bytes.fromhex(GOLDEN[name])
    assert codec.encode(golden_features()).hex() == data.hex()
    assert np.allclose(codec.decode(data), golden_features(), atol=0.25)


def test_a_stored_zstd_container_stays_readable() -> None:
    expected = np.tile(np.arange(4, dtype=np.float32), 64).reshape(4, 8, 8)
    assert np.array_equal(decode_container(bytes.fromhex(ZSTD_GOLDEN)), expected)


def with_crc(body: bytes) -> bytes:
    """Seal a forged body, as a hostile sender would."""
    return body + zlib.crc32(body).to_bytes(4, "big")


def check_hostile(data: bytes) -> bool:
    """Decode; either CodecError or a valid array of the declared shape. Returns whether it decoded."""
    try:
        decoded = decode_container(data)
    except CodecError:
        return False
    declared = parse_container(data).shape
    assert decoded.shape in (declared, (*declared, 3))
    assert np.isfinite(decoded).all()
    return True


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: flipped bits, random byte, cut, extension, inserted or deleted byte, swapped slice."""
    out = bytearray(data)
    place = int(rng.integers(0, len(out)))
    match int(rng.integers(0, 6)):
        case 0:
            out[place] ^= 1 << int(rng.integers(0, 8))
        case 1:
            out[place] = int(rng.integers(0, 256))
        case 2:
            del out[place:]
        case 3:
            out += rng.bytes(int(rng.integers(1, 9)))
        case 4:
            del out[place]
        case _:
            out[place:place] = rng.bytes(1)
    return bytes(out)


@pytest.mark.parametrize("name", FEATURE_NAMES + IMAGE_NAMES)
def test_damaged_containers_are_refused(name: str) -> None:
    data, rng = encode(name), np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(1500):
        damaged = mutate(data, rng)
        if damaged != data:
            assert not check_hostile(damaged)


@pytest.mark.parametrize("name", FEATURE_NAMES + IMAGE_NAMES)
def test_forged_containers_with_a_good_checksum_do_no_harm(name: str) -> None:
    body, rng = encode(name)[:-4], np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(800):
        forged = body
        for _ in range(int(rng.integers(1, 4))):
            forged = mutate(forged, rng) or body
        check_hostile(with_crc(forged))


def test_every_truncation_is_refused() -> None:
    data = encode("q3c-zstd")
    for size in range(len(data)):
        with pytest.raises(CodecError):
            decode_container(data[:size])


@pytest.mark.parametrize("length", [0, 1, 9, 10, 100])
def test_random_bytes_are_refused(length: int) -> None:
    with pytest.raises(CodecError):
        decode_container(np.random.default_rng(length).bytes(length))


def leb(*numbers: int) -> bytes:
    """Plain LEB128 of each number."""
    out = bytearray()
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"AS\x01\x02\x00" + leb(1 << 20, 1 << 20, 1 << 20, 4) + bytes(4), "dimensions"),
        (b"AS\x01\x02\x00" + leb(0, 4, 4, 4) + bytes(4), "dimensions"),
        (b"AS\x01\x02\x00" + leb(1, 4, 4, 3) + bytes(4), "truncated or extended"),
        (b"AS\x01\x02\x00\x81\x00" + leb(4, 4, 8) + bytes(8), "canonical"),
        (b"AS\x01\x02\x00\xff\xff\xff\xff\xff\xff", "above"),
        (b"AS\x02\x02\x00" + leb(1, 4, 4, 8) + bytes(8), "version 2"),
        (b"XS\x01\x02\x00" + leb(1, 4, 4, 8) + bytes(8), "not a container of ours"),
        (b"AS\x01\x07\x00" + leb(1, 4, 4, 8) + bytes(8), "no codec"),
        (b"AS\x01\x02\x09" + leb(1, 4, 4, 8) + bytes(8), "form 9"),
        (b"AS\x01\x02\x00" + leb(1, 4, 4, 8) + b"\x00\x7e\x00\x7e" + bytes(4), "range"),
        (b"AS\x01\x02\x01" + leb(1, 4, 4, 14) + bytes(4) + b"\xe0" + b"\xff" * 8 + b"\x00", "zstd frame header"),
        (b"AS\x01\x20\x32" + leb(4096, 4096, 4) + b"RIFF", "dimensions"),
        (b"AS\x01\x21\x32" + leb(64, 64, 4) + b"\xff\xd8\xff\xd9", "not a baseline JPEG"),
    ],
    ids=[
        "huge shape",
        "empty shape",
        "length",
        "padded number",
        "endless number",
        "version",
        "magic",
        "codec",
        "form",
        "nan range",
        "zstd that states a huge size",
        "huge image",
        "jpeg without a frame",
    ],
)
def test_forgeries_are_named(body: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode_container(with_crc(body))


def test_a_decompression_bomb_is_bounded() -> None:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=0, write_checksum=0
    )
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(1 << 24))
    with pytest.raises(CodecError, match="zstd"):
        decode_container(build_container(2, 1, (1, 8, 8), bytes(4) + bomb))


def test_an_image_of_another_size_is_refused_before_it_is_unpacked() -> None:
    for name in ("webp-50", "jpeg-50"):
        container = parse_container(image_codecs.get(name).encode(picture(64, 64)))
        with pytest.raises(CodecError, match="the container says"):
            decode_container(build_container(container.kind, container.form, (32, 32), container.payload))


def test_an_image_of_another_format_is_refused() -> None:
    webp = parse_container(image_codecs.get("webp-50").encode(picture(64, 64)))
    with pytest.raises(CodecError, match="not a baseline JPEG"):
        decode_container(build_container(0x21, 50, webp.shape, webp.payload))


def test_containers_are_capped() -> None:
    with pytest.raises(CodecError, match="at most"):
        build_container(2, 0, (1, 8, 8), bytes(MAX_CONTAINER_BYTES))
    with pytest.raises(CodecError, match="container has"):
        parse_container(b"AS\x01" + bytes(MAX_CONTAINER_BYTES))
