"""The context coder and the fast path: round trips, code length against the model, golden bytes, hostile senders."""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import pytest
from cases import smooth
from numpy.typing import NDArray

from adaptsplit.codecs import (
    ContextCodec,
    FastCodec,
    build_container,
    codec_of,
    decode_container,
    feature_codecs,
    get_codec,
    parse_container,
)
from adaptsplit.codecs import context as context_module
from adaptsplit.codecs.context import CODED, CONTEXT_KIND, MAX_CODED_CHANNELS, MAX_CODED_VALUES, read_coded, write_coded
from adaptsplit.codecs.context_compile import intervals, is_compiled
from adaptsplit.codecs.context_kernel import CHANNEL_ROW, STATE_WORDS, WIDTH
from adaptsplit.codecs.context_tables import fresh_tables
from adaptsplit.codecs.fastpath import FAST_KIND, _pack_wide
from adaptsplit.codecs.features import PACKED, ZSTD
from adaptsplit.codecs.grid_codec import STORAGE_SHIFT
from adaptsplit.codecs.packing import pack, packed_size
from adaptsplit.codecs.quantise import BITS, Grid
from adaptsplit.errors import CodecError

CONTEXT_NAMES = [f"q{bits}{scope}-context" for bits in BITS for scope in "tc"]
FAST_NAMES = [f"q{bits}{scope}-fast" for bits in BITS for scope in "tc"]
NAMES = CONTEXT_NAMES + FAST_NAMES
MUTATIONS = 100_000 if os.environ.get("ADAPTSPLIT_FUZZ") == "full" else 2_000
needs_numba = pytest.mark.skipif(not is_compiled(), reason="numba is not installed: encoding takes the fast path")


def quantised(values: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    return Grid(bits, False).quantise(values)[1]


def order_0_bytes(codes: NDArray[np.uint8]) -> float:
    share = np.bincount(codes) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * codes.size / 8)


def test_every_codec_is_registered() -> None:
    assert set(NAMES) <= set(feature_codecs.names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (24, 8, 8), (12, 16, 16), (130, 3, 1), (2, 1, 9)])
def test_round_trip_error_is_half_a_step(name: str, shape: tuple[int, int, int]) -> None:
    codec: Any = feature_codecs.get(name)
    values = smooth(*shape, seed=sum(shape)) - np.float32(0.37)
    data = codec.encode(values)
    decoded = codec.decode(data)
    grid = Grid(codec.bits, codec.per_channel)
    _, steps = grid.levels(parse_container(data).payload[: grid.head_bytes(shape[0])], shape[0])
    assert decoded.dtype == np.float32
    assert decoded.shape == shape
    assert np.all(np.abs(decoded - values) <= steps * 0.5001 + 1e-6)
    assert np.array_equal(decode_container(data), decoded)
    assert codec.encode(values) == data
    assert codec_of(parse_container(data)) == codec


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scope", "tc")
def test_context_fast_and_zstd_share_one_grid(bits: int, scope: str) -> None:
    values = smooth(5, 9, 11) - np.float32(0.2)
    decoded = [feature_codecs.get(f"q{bits}{scope}-{kind}") for kind in ("zstd", "fast", "context")]
    first, second, third = (codec.decode(codec.encode(values)) for codec in decoded)
    assert np.array_equal(second, third)
    # float32 against float64 arithmetic: only a value half-way between two levels may go to the other one.
    assert np.mean(np.abs(first - second) > 1e-5) < 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, -5.0, 1e-30, -1e-7, 65504.0, 3e38, -3e38])
def test_constant_tensors_survive_or_saturate(name: str, value: float) -> None:
    codec = feature_codecs.get(name)
    decoded = codec.decode(codec.encode(np.full((3, 4, 4), value, dtype=np.float32)))
    assert np.allclose(decoded, np.clip(value, -65504, 65504), rtol=6e-4, atol=1.3e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    values = smooth(2, 4, 4)
    values[1, 2, 3] = bad
    with pytest.raises(CodecError, match="NaN or infinity"):
        feature_codecs.get(name).encode(values)


@pytest.mark.parametrize("name", ["q4t-context", "q4c-fast"])
def test_other_features_are_refused(name: str) -> None:
    for values in (np.zeros((4, 4), np.float32), np.zeros((0, 4, 4), np.float32), np.zeros((1, 2, 2), np.int32)):
        with pytest.raises(CodecError, match="expected"):
            feature_codecs.get(name).encode(values)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 64, 1001])
def test_wide_packing_gives_the_bytes_of_pack(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    assert _pack_wide(codes, bits) == pack(codes, bits)


@pytest.mark.parametrize("bits", BITS)
def test_tables_start_as_distributions_over_the_alphabet(bits: int) -> None:
    tables = fresh_tables(bits, 3)
    size = 2 ** min(bits, 4)
    coarse = np.concatenate([tables.rows[: CHANNEL_ROW - WIDTH], tables.rows[CHANNEL_ROW:]])
    ends = np.concatenate([coarse[:, 1:], np.full((len(coarse), 1), 1 << 15)], axis=1)
    assert len(tables.rows) == CHANNEL_ROW + 3
    assert np.all(coarse[:, 0] == 0)
    assert np.all((ends - coarse)[:, :size] > 0)
    assert np.all(coarse[:, size:] == 1 << 15)


@pytest.mark.parametrize("bits", BITS)
def test_what_a_frequency_can_fall_to_stays_above_zero(bits: int) -> None:
    codes = np.zeros(30_000, np.uint8)
    codes[::7919] = 2**bits - 1
    frequencies = intervals(codes, (1, 100, 300), bits, compiled=is_compiled() or None) & 0x1FFFF
    assert frequencies.min() >= 16
    assert frequencies.max() < 1 << 16


@needs_numba
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 1, 70), (70, 1, 1), (3, 9, 2)])
def test_plain_python_and_compiled_code_agree(bits: int, shape: tuple[int, int, int]) -> None:
    codes = quantised(smooth(*shape, seed=bits), bits)
    plain = write_coded(codes, shape, bits, compiled=False)
    assert write_coded(codes, shape, bits, compiled=True) == plain
    for compiled in (False, True):
        assert np.array_equal(read_coded(plain, shape, bits, compiled=compiled), codes)


@needs_numba
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("noise", [False, True])
def test_bytes_are_the_models_code_length_and_hardly_more(bits: int, noise: bool) -> None:
    shape = (64, 16, 16)
    codes = quantised(smooth(*shape), bits)
    if noise:
        codes = np.random.default_rng(0).integers(0, 2**bits, codes.size).astype(np.uint8)
    frequencies = intervals(codes, shape, bits) & 0x1FFFF
    length = float((16 - np.log2(frequencies)).sum() / 8)
    coded = len(write_coded(codes, shape, bits))
    assert length <= coded <= length * 1.001 + 2 * STATE_WORDS


@needs_numba
@pytest.mark.parametrize("bits", BITS)
def test_smooth_maps_cost_less_than_order_0_and_than_zstd(bits: int) -> None:
    values = smooth(64, 16, 16)
    coded = len(get_codec(f"q{bits}t-context").encode(values))  # type: ignore[arg-type]
    zstd = len(get_codec(f"q{bits}t-zstd").encode(values))  # type: ignore[arg-type]
    assert coded < 0.97 * order_0_bytes(quantised(values, bits))
    assert coded < 0.97 * zstd


@pytest.mark.parametrize("kind", ["context", "fast"])
@pytest.mark.parametrize("bits", BITS)
def test_noise_costs_at_most_the_packed_size(kind: str, bits: int) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (24, 8, 8)).astype(np.float32)
    assert len(feature_codecs.get(f"q{bits}t-{kind}").encode(values)) <= packed_size(values.size, bits) + 4 + 15


def storage(data: bytes) -> int:
    return parse_container(data).form >> STORAGE_SHIFT


def test_without_numba_encoding_takes_the_fast_path_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "is_compiled", lambda: False)
    values = smooth(12, 16, 16)
    data, fast = get_codec("q4t-context").encode(values), get_codec("q4t-fast").encode(values)  # type: ignore[arg-type]
    assert storage(data) == ZSTD
    assert parse_container(data).kind == CONTEXT_KIND
    assert parse_container(data).payload == parse_container(fast).payload
    assert np.array_equal(decode_container(data), decode_container(fast))


@needs_numba
def test_each_way_of_storing_is_chosen_where_it_is_smallest() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8)).astype(np.float32)
    assert storage(get_codec("q4t-context").encode(smooth(12, 16, 16))) == CODED  # type: ignore[arg-type]
    assert storage(get_codec("q8t-context").encode(values)) == PACKED  # type: ignore[arg-type]


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1, MAX_CODED_VALUES + 1), (MAX_CODED_CHANNELS + 1, 1, 2)])
def test_large_tensors_take_the_fast_path(shape: tuple[int, int, int]) -> None:
    data = get_codec("q2t-context").encode(np.zeros(shape, np.float32))  # type: ignore[arg-type]
    assert storage(data) == ZSTD
    assert not decode_container(data).any()


# Bytes of release 0.1.0; they fix the format, tables and priors included. The ramp's range is 0 to 3.
GOLDEN: dict[str, str] = {
    "q2t-context": ("415301094203080819000000427f593dd5b3a5b5c9f2c81bd9799c99daf366c95600fb0faafb"),
    "q4t-context": ("41530109440308082100000042e1095c8b3bb6cd61099ba89d1baac1ea4affc0b88fb5c7792f3b0f4e1b0e988441"),
    "q4c-context": (
        "41530109540308082700000042000000ffffffe1095c8b3bb6cd61099ba89d1baac1ea4affc0b88fb5c7792f3b0f4e1bff324e00"
    ),
    "q8t-context": (
        "41530109480308083500000042b23293c3938ce56a9d2b3557546ccff0999b14b74d3cb43c69c28c5f13fe7eb6247805b5eb"
        "a31764baf28f5b5d160ca60a9daedcc2"
    ),
    "q2t-fast": (
        "4153010a220308082b000000420000150100b00090d090d000d000e000e40024e000e4002400340039040031f3403b205885"
        "6b03b6de84bc"
    ),
    "q4t-fast": (
        "4153010a240308082d00000042000025010090000000a5f5a5f5fa0000500a500f0000a50f07003b0df8d9175802f98061c0"
        "10278e0883fce016"
    ),
    "q6c-fast": (
        "4153010a360308084900000042000000ffffff0000d50100e8000000000000152a003f2a3f2a15003f2a152a3f0000000000"
        "152a3f000d004a15000682c160902138807640333008900fd40cd4b23280008ee8c63dde"
    ),
}


def golden_features() -> NDArray[np.float32]:
    """(3, 8, 8): integers 0 to 3 from a formula that no library takes part in."""
    places = [(c, y, x) for c in range(3) for y in range(8) for x in range(8)]
    return np.array([max(0, (x * x + y * (c + 1)) // 9 % 7 - 3) for c, y, x in places], np.float32).reshape(3, 8, 8)


@needs_numba
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str) -> None:
    data = bytes.fromhex(GOLDEN[name])
    codec = feature_codecs.get(name)
    assert codec.encode(golden_features()).hex() == data.hex()
    assert np.allclose(codec.decode(data), golden_features(), atol=0.02)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes_are_read_without_numba(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptsplit.codecs.context_compile.is_compiled", lambda: False)
    assert np.allclose(decode_container(bytes.fromhex(GOLDEN[name])), golden_features(), atol=0.02)


def sealed(body: bytes) -> bytes:
    """A forged body with a good checksum, as a hostile sender would send it."""
    return body + zlib.crc32(body).to_bytes(4, "big")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: a flipped bit, a random byte, a cut, an extension, a deleted or inserted byte."""
    out, place = bytearray(data), int(rng.integers(0, len(data)))
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


def decodes(data: bytes) -> bool:
    """Whether ``data`` decodes, to finite values of the declared shape; anything but CodecError is let through."""
    try:
        decoded = decode_container(data)
    except CodecError:
        return False
    assert decoded.shape[:3] in (parse_container(data).shape, (*parse_container(data).shape, 3))
    assert np.isfinite(decoded).all()
    return True


@pytest.mark.parametrize("kind", ["context", "fast"])
def test_damaged_containers_are_refused(kind: str) -> None:
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    seeds = [feature_codecs.get(f"q{b}{s}-{kind}").encode(smooth(4, 8, 8)) for b in BITS for s in "tc"]
    for k in range(MUTATIONS):
        data = seeds[k % len(seeds)]
        damaged = mutated(data, rng)
        assert damaged == data or not decodes(damaged)


@pytest.mark.parametrize("kind", ["context", "fast"])
def test_forged_containers_with_a_good_checksum_do_no_harm(kind: str) -> None:
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    seeds = [feature_codecs.get(f"q{b}{s}-{kind}").encode(smooth(4, 8, 8))[:-4] for b in BITS for s in "tc"]
    good = 0
    for k in range(MUTATIONS):
        forged = seeds[k % len(seeds)]
        for _ in range(int(rng.integers(1, 4))):
            forged = mutated(forged, rng) or forged
        good += decodes(sealed(forged))
    assert 0 < good < 0.9 * MUTATIONS


@needs_numba
@pytest.mark.parametrize("bits", BITS)
def test_a_forged_payload_is_refused_or_is_what_its_own_codes_encode_to(bits: int) -> None:
    shape, rng = (4, 8, 8), np.random.default_rng(bits)
    coded = write_coded(quantised(smooth(*shape), bits), shape, bits)
    refused = 0
    for _ in range(1000):
        forged = bytearray(coded)
        forged[int(rng.integers(0, len(forged)))] ^= 1 << int(rng.integers(0, 8))
        try:
            codes = read_coded(bytes(forged), shape, bits)
        except CodecError:
            refused += 1
            continue
        assert write_coded(codes, shape, bits) == forged
    assert refused > 900


@pytest.mark.parametrize(
    ("kind", "form", "shape", "payload", "message"),
    [
        (CONTEXT_KIND, 5, (1, 4, 4), bytes(12), "5 bits"),
        (FAST_KIND, 0x0F, (1, 4, 4), bytes(12), "15 bits"),
        (CONTEXT_KIND, 0x04 | 7 << 5, (1, 4, 4), bytes(12), "form 7"),
        (FAST_KIND, 0x04 | 2 << 5, (1, 4, 4), bytes(12), "form 2"),
        (CONTEXT_KIND, 0x44, (1, 4, 4), bytes(8), "4 context-coded bytes"),
        (CONTEXT_KIND, 0x44, (1, 4, 4), bytes(7), "3 context-coded bytes"),
        (CONTEXT_KIND, 0x44, (1, 4, 4), bytes(13), "9 context-coded bytes"),
        (CONTEXT_KIND, 0x44, (1, 4, 4), bytes(9), "do not end"),
        (CONTEXT_KIND, 0x44, (1, 1024, 1024), bytes(4 + 999), "at most"),
        (CONTEXT_KIND, 0x44, (4097, 1, 1), bytes(4 + 999), "at most"),
        (CONTEXT_KIND, 0x54, (3, 4, 4), bytes(7), "ranges alone"),
        (FAST_KIND, 0x04, (1, 4, 4), bytes.fromhex("007e007e") + bytes(8), "range"),
        (FAST_KIND, 0x14, (1, 4, 4), bytes.fromhex("000000420500") + bytes(8), "before it begins"),
    ],
)
def test_forgeries_are_named(kind: int, form: int, shape: tuple[int, ...], payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode_container(build_container(kind, form, shape, payload))


def test_a_codec_refuses_the_container_of_another() -> None:
    data = {name: feature_codecs.get(name).encode(smooth(4, 8, 8)) for name in (*NAMES, "q4t-zstd")}
    for one, other in (("q4t-context", "q4t-fast"), ("q4t-fast", "q4c-fast"), ("q4t-context", "q6t-context")):
        with pytest.raises(CodecError, match="expected"):
            feature_codecs.get(one).decode(data[other])
    for name in ("q4t-context", "q4t-fast"):
        with pytest.raises(CodecError, match="expected"):
            feature_codecs.get(name).decode(data["q4t-zstd"])


def test_codecs_compare_by_value() -> None:
    assert ContextCodec(4, True) == get_codec("q4c-context")
    assert FastCodec(4, True) == get_codec("q4c-fast")
