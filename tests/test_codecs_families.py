"""Run-length, sparse rANS, SLICER and prior codecs: round trips, theory, golden bytes; contracts over every codec."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import smooth
from numpy.typing import NDArray

from adaptsplit import fuzzing as fz
from adaptsplit.codecs import (
    PriorCodec,
    PriorTable,
    SlicerCodec,
    build_container,
    codec_of,
    decode_container,
    feature_codecs,
    fit_prior,
    get_codec,
    parse_container,
    register_prior,
)
from adaptsplit.codecs.context_compile import is_compiled
from adaptsplit.codecs.features import PACKED
from adaptsplit.codecs.grid_codec import STORAGE_SHIFT
from adaptsplit.codecs.packing import packed_size
from adaptsplit.codecs.prior import PRIOR_KIND, register_priors
from adaptsplit.codecs.quantise import BITS
from adaptsplit.codecs.runlength import RLE_KIND, RUN_BITS
from adaptsplit.codecs.slicer import GROUPS, PRESETS, SLICER_KIND, bits_of, edges_of, groups_of, top_of
from adaptsplit.codecs.sparse_rans import RANS_KIND, best_rows, read_sparse, write_sparse
from adaptsplit.codecs.static_rans import (
    TOTAL,
    decode_static,
    encode_static,
    histogram,
    histogram_bits,
    table_of,
)
from adaptsplit.errors import CodecError

PLAIN = (False, True) if is_compiled() else (False,)


PRIOR = register_prior(fit_prior(np.stack([smooth(3, 5, 4, seed) for seed in range(8)])))


# ---- contracts over every registered codec -------------------------------------------------------------------------

EVERY = feature_codecs.names()


def any_codec(name: str) -> Any:
    return feature_codecs.get(name)


@pytest.mark.parametrize("name", EVERY)
def test_every_codec_keeps_the_contract(name: str) -> None:
    codec, values = any_codec(name), smooth(3, 5, 4)
    data = codec.encode(values)
    decoded = codec.decode(data)
    assert (decoded.shape, decoded.dtype) == (values.shape, np.float32)
    assert np.isfinite(decoded).all()
    assert np.array_equal(decode_container(data), decoded)
    assert codec_of(parse_container(data)) == codec
    assert codec.encode(values) == data
    assert codec.encode(values.astype(np.float64)) == data
    assert codec.encode(np.asfortranarray(values)) == data


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_codec_refuses_nan_and_infinity(name: str, bad: float) -> None:
    values = smooth(3, 5, 4)
    values[1, 2, 3] = bad
    with pytest.raises(CodecError, match="NaN or infinity"):
        feature_codecs.get(name).encode(values)


@pytest.mark.parametrize("name", EVERY)
def test_every_codec_refuses_other_arrays(name: str) -> None:
    for values in (np.zeros((4, 4), np.float32), np.zeros((0, 4, 4), np.float32), np.zeros((3, 2, 2), np.int32)):
        with pytest.raises(CodecError, match="expected"):
            feature_codecs.get(name).encode(values)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0.0, -5.0, 65504.0, 3e38, -3e38])
def test_every_codec_survives_constants(name: str, value: float) -> None:
    codec = any_codec(name)
    decoded = codec.decode(codec.encode(np.full((3, 5, 4), value, np.float32)))
    assert np.isfinite(decoded).all()
    if not name.startswith("prior"):
        assert np.allclose(decoded, np.clip(value, -65504, 65504), rtol=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_every_codec_refuses_every_truncation(name: str) -> None:
    data = any_codec(name).encode(smooth(3, 5, 4))
    payload = parse_container(data)
    for size in range(len(data)):
        with pytest.raises(CodecError):
            decode_container(data[:size])
    for size in range(len(payload.payload)):
        forged = build_container(payload.kind, payload.form, payload.shape, payload.payload[:size])
        with pytest.raises(CodecError):
            decode_container(forged)


@pytest.mark.parametrize("name", EVERY)
def test_every_codec_refuses_the_containers_of_others(name: str) -> None:
    other = next(codec for codec in ("q4t-zstd", "q8c-zstd") if codec != name)
    with pytest.raises(CodecError, match="expected"):
        any_codec(name).decode(any_codec(other).encode(smooth(3, 5, 4)))


FUZZED = ["q2t-rle", "q4c-rle", "q8t-rle", "q2c-rans", "q4t-rans", "slicer-k50-d15", "slicer-k100-d30", PRIOR.name]


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_payloads_are_refused_or_read(name: str) -> None:
    container = parse_container(any_codec(name).encode(smooth(3, 5, 4)))
    rng, read = random.Random(name), 0
    for _ in range(600):
        payload = fz.damaged(container.payload, rng)
        try:
            decoded = decode_container(build_container(container.kind, container.form, container.shape, payload))
        except CodecError:
            continue
        read += 1
        assert decoded.shape == container.shape
        assert np.isfinite(decoded).all()
    assert read < 550


MEMORY = [*FUZZED, "q2t-zstd", "q8c-zstd", "q4t-fast", "q2c-context", "q8t-context"]


@pytest.mark.parametrize("name", MEMORY)
def test_memory_stays_within_the_declared_size(name: str) -> None:
    """A payload of 60 values in containers that declare 1 to 2**18 values: at most 120 bytes a value, and 1 MiB."""
    container, codec = parse_container(any_codec(name).encode(smooth(3, 5, 4))), any_codec(name)
    rng = random.Random(name)
    tracemalloc.start()
    try:
        for shape in [(3, 5, 4), (3, 1, 1), (3, 50, 40), (3, 256, 340), (1, 512, 512), (4096, 8, 8)]:
            for payload in (container.payload, *(fz.damaged(container.payload, rng) for _ in range(12))):
                data = build_container(container.kind, container.form, shape, payload)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                with contextlib.suppress(CodecError):
                    assert codec.decode(data).shape == shape
                used = tracemalloc.get_traced_memory()[1] - before
                assert used < 120 * shape[0] * shape[1] * shape[2] + (1 << 20)
    finally:
        tracemalloc.stop()


# ---- codes that are stored without loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rle", "rans"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scope", "tc")
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (24, 8, 8), (130, 3, 1), (2, 1, 9), (4, 40, 40)])
def test_codes_are_those_of_the_fast_path(kind: str, bits: int, scope: str, shape: tuple[int, int, int]) -> None:
    values = smooth(*shape, seed=sum(shape)) - np.float32(0.37)
    found, expected = (get_codec(f"q{bits}{scope}-{name}").encode(values) for name in (kind, "fast"))  # type: ignore[arg-type]
    assert np.array_equal(decode_container(found), decode_container(expected))
    assert len(parse_container(found).payload) <= packed_size(values.size, bits) + 4 + 2 * shape[0]


@pytest.mark.parametrize("kind", ["rle", "rans"])
def test_sparse_maps_take_less_than_packed_ones(kind: str) -> None:
    values = np.where(np.random.default_rng(0).random((8, 16, 16)) < 0.05, 1.0, 0.0).astype(np.float32)
    data = get_codec(f"q4t-{kind}").encode(values)  # type: ignore[arg-type]
    assert parse_container(data).form >> STORAGE_SHIFT != PACKED
    assert len(data) < 0.45 * packed_size(values.size, 4)


def test_run_lengths_take_the_bytes_that_were_counted_by_hand() -> None:
    # 64 zeros then one 3: runs of 2, 4, 8 bits are 16 + 1, 4 + 1, 1 + 1 tokens; at 8 bits 3 + 2 * 2 / 8 + 2 bytes.
    values = np.zeros((1, 5, 13), np.float32)
    values[0, 4, 12] = 3
    container = parse_container(get_codec("q2t-rle").encode(values))  # type: ignore[arg-type]
    assert RUN_BITS[container.form >> STORAGE_SHIFT] == 8
    assert container.payload[4:] == bytes((2, 0, 0, 0b1100, 63, 0))


@pytest.mark.parametrize("zeros", [0, 1, 63, 64])
def test_sparse_form_of_nearly_constant_tensors(zeros: int) -> None:
    codes = np.full(64, 2, np.uint8)
    codes[:zeros] = 0
    assert np.array_equal(read_sparse(write_sparse(codes, 2), 64, 2), codes)


def test_the_shape_search_finds_the_period() -> None:
    places = np.flatnonzero(np.arange(4096) % 32 == 5)  # one value in every row of 32, always in column 5
    assert 4096 // best_rows(places, 4096) == 32


@pytest.mark.parametrize("compiled", PLAIN)
def test_sparse_bytes_do_not_depend_on_numba(compiled: bool) -> None:
    codes = np.random.default_rng(0).integers(0, 4, 600).astype(np.uint8) * (np.arange(600) % 3 == 0).astype(np.uint8)
    data = write_sparse(codes, 4, compiled=compiled)
    assert zlib.crc32(data) == zlib.crc32(write_sparse(codes, 4))
    assert np.array_equal(read_sparse(data, 600, 4, compiled=compiled), codes)


# ---- static tables and histograms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 500, 20_000])
def test_a_static_stream_is_its_code_length_and_five_bytes(count: int) -> None:
    rng = np.random.default_rng(count)
    symbols = rng.choice(9, count, p=np.array([60, 20, 8, 5, 3, 2, 1, 1, 0]) / 100)
    table = table_of(histogram(symbols, 9), histogram_bits(count))
    which = np.zeros_like(symbols)
    data = encode_static(symbols, which, table[None])
    bits = -np.log2(np.diff(table)[symbols] / TOTAL).sum()
    assert bits / 8 - 1 <= len(data) <= bits / 8 * 1.001 + 6
    assert np.array_equal(decode_static(data, which, table[None]), symbols)


@pytest.mark.parametrize(("count", "most"), [(4_000, 0.045), (40_000, 0.004)])
def test_a_histogram_costs_what_the_module_says(count: int, most: float) -> None:
    rng = np.random.default_rng(1)
    for spread in (0.3, 1.0, 3.0):
        symbols = rng.poisson(spread, count).clip(0, 15)
        share = np.bincount(symbols, minlength=16) / count
        frequency = np.diff(table_of(histogram(symbols, 16), histogram_bits(count))) / TOTAL
        used = share > 0
        assert not frequency[~used].any()
        assert (share[used] * np.log2(share[used] / frequency[used])).sum() < most


@pytest.mark.parametrize("bits", [4, 6])
def test_tables_sum_to_the_scale_at_any_levels(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for size in (1, 2, 17, 1025):
        levels = rng.integers(0, 1 << bits, size).astype(np.uint8)
        levels[rng.integers(size)] = 1
        table = table_of(levels, bits)
        assert (table[0], table[-1]) == (0, TOTAL)
        assert np.array_equal(np.diff(table) > 0, levels > 0)


# ---- SLICER --------------------------------------------------------------------------------------------------------


def test_top_k_ranks_the_signs_apart() -> None:
    values = np.array([1, 2, 3, 4, -10, -20, -30, -40, 0, 0], np.float32)
    assert values[top_of(values, 0.5)].tolist() == [3, 4, -30, -40]
    assert values[top_of(values, 0.01)].tolist() == [4, -40]
    assert not top_of(np.zeros(5, np.float32), 1.0).any()


def test_groups_have_equal_sizes_and_edges_hold_their_members() -> None:
    magnitudes = np.random.default_rng(0).exponential(size=1000).astype(np.float32)
    group = groups_of(magnitudes)
    assert np.bincount(group).tolist() == [1000 // GROUPS] * GROUPS
    edges = edges_of(magnitudes, group)
    assert np.all((edges[group, 0] <= magnitudes) & (magnitudes <= edges[group, 1]))
    assert magnitudes[group == 0].max() <= magnitudes[group == 1].min()


@pytest.mark.parametrize("budget", [10, 20, 30, 40])
def test_bits_are_the_fewest_that_hold_the_budget(budget: int) -> None:
    """Against all 9**4 choices of bits: none with the distortion allowed takes fewer bits in all."""
    magnitudes = np.random.default_rng(0).exponential(size=800).astype(np.float32)
    group = groups_of(magnitudes)
    edges, energy = edges_of(magnitudes, group), float((magnitudes.astype(float) ** 2).sum())
    bits = np.array(bits_of(edges, group, magnitudes, budget))
    widths, allowed = edges[:, 1] - edges[:, 0], energy * 10 ** (-budget / 10)
    every = np.stack(np.meshgrid(*[np.arange(9)] * GROUPS), -1).reshape(-1, GROUPS)
    distortion = (200 * (widths / 2.0**every) ** 2 / 12).sum(axis=1)
    assert (200 * (widths / 2.0**bits) ** 2 / 12).sum() <= allowed
    assert bits.sum() == every[distortion <= allowed].sum(axis=1).min()


@pytest.mark.parametrize("codec", PRESETS, ids=lambda codec: codec.name)
def test_slicer_keeps_the_share_and_the_signs(codec: SlicerCodec) -> None:
    values = np.random.default_rng(0).normal(size=(8, 12, 12)).astype(np.float32)
    decoded = codec.decode(codec.encode(values))
    kept = decoded != 0
    assert abs(kept.mean() - codec.keep / 100) < 0.01
    assert np.all(np.sign(decoded[kept]) == np.sign(values[kept]))
    error = float(np.square(decoded[kept] - values[kept], dtype=np.float64).sum())
    assert (
        10 * np.log10(np.square(values[kept], dtype=np.float64).sum() / error) > codec.budget_db - 1.5
    )  # w**2 / 12 supposes flat cells


def test_slicer_refuses_large_tensors() -> None:
    with pytest.raises(CodecError, match="use q4t-fast"):
        PRESETS[0].encode(np.zeros((1, 512, 513), np.float32))


# ---- prior ---------------------------------------------------------------------------------------------------------


def laplace_table(levels: int = 9) -> PriorTable:
    """Two channels of integers -4 to 4, frequencies 2**-|i| shares, from a formula that no library takes part in."""
    shares = [2 ** (8 - 2 * abs(i - levels // 2)) for i in range(levels)]
    edges = [sum(shares[:i]) * (TOTAL - levels) // sum(shares) + i for i in range(levels + 1)]
    cdf = np.array([edges, [TOTAL * i // levels for i in range(levels + 1)]], np.uint32)
    return PriorTable(np.full(2, -(levels // 2), np.int32), cdf, np.array([2, 4], np.float32))


def test_prior_bytes_are_the_tables_code_length() -> None:
    table = fit_prior(np.stack([smooth(12, 16, 16, seed) for seed in range(6)]), 16)
    values = smooth(12, 16, 16, 0)
    symbols = table.symbols(values)
    data = PriorCodec(table).encode(values)
    length = table.bits(symbols) / 8
    assert length <= len(parse_container(data).payload) - 8 <= length * 1.001 + 6
    assert np.all(np.abs(PriorCodec(table).decode(data) - values) <= (1.01 / table.scale)[:, None, None])


def test_a_prior_beats_tables_that_travel_on_small_tensors() -> None:
    """Maps of one distribution without structure in space: the prior is right and costs nothing to send."""
    rng = np.random.default_rng(0)
    maps = rng.laplace(size=(40, 8, 6, 6)).astype(np.float32).clip(-8, 8)
    codec = PriorCodec(fit_prior(maps[1:], 64))
    assert len(codec.encode(maps[0])) < 0.95 * len(get_codec("q6t-rans").encode(maps[0]))


def test_values_beyond_the_table_saturate() -> None:
    codec = PriorCodec(laplace_table())
    decoded = codec.decode(codec.encode(np.full((2, 1, 2), 100, np.float32)))
    assert decoded.tolist() == [[[2, 2]], [[1, 1]]]


def test_a_prior_survives_its_file(tmp_path: Path) -> None:
    table = laplace_table()
    table.save(tmp_path / "prior-deep.npz")
    read = PriorTable.load(tmp_path / "prior-deep.npz")
    assert read.id == table.id
    assert [codec.name for codec in register_priors(tmp_path)] == [f"prior-{table.id}"]
    assert register_prior(read) == get_codec(f"prior-{table.id}") or register_prior(read).name == f"prior-{table.id}"
    (tmp_path / "prior-deep.npz").write_bytes(b"PK")
    with pytest.raises(CodecError, match=r"prior-deep.npz: not a prior table \("):
        PriorTable.load(tmp_path / "prior-deep.npz")


def test_tables_with_other_numbers_have_other_ids() -> None:
    table = laplace_table()
    others = [
        PriorTable(table.offset + np.int32(1), table.cdf, table.scale),
        PriorTable(table.offset, table.cdf[::-1].copy(), table.scale),
        PriorTable(table.offset, table.cdf, table.scale * np.float32(2)),
    ]
    assert len({table.id, *(other.id for other in others)}) == 4


def test_an_unknown_prior_is_named() -> None:
    table = laplace_table(7)
    data = PriorCodec(table).encode(np.zeros((2, 3, 3), np.float32))
    with pytest.raises(CodecError, match=f"prior-{table.id} is not known here; load its table file"):
        decode_container(data)
    with pytest.raises(CodecError, match=f"container of prior-{table.id}, form 0; expected {PRIOR.name}"):
        PRIOR.decode(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": np.array([1, 0], np.float32)}, "positive finite"),
        ({"scale": np.array([1, np.nan], np.float32)}, "positive finite"),
        ({"scale": np.array([1, 1e30], np.float32)}, "positive finite"),
        ({"scale": np.array([1e-30, 1], np.float32)}, "beyond"),
        ({"scale": np.ones(3, np.float32)}, "positive finite"),
        ({"offset": np.zeros(3, np.int32)}, "expected \\(C,\\)"),
        ({"offset": np.zeros(2, np.int64)}, "expected int32"),
        ({"cdf": np.array([[0, TOTAL], [1, TOTAL]], np.uint32)}, "does not rise"),
        ({"cdf": np.array([[0, 9, 9, TOTAL]] * 2, np.uint32)}, "does not rise"),
        ({"cdf": np.array([[0, 9, TOTAL - 1]] * 2, np.uint32)}, "does not rise"),
    ],
)
def test_wrong_tables_are_named(change: dict[str, NDArray[Any]], message: str) -> None:
    table = laplace_table()
    parts: dict[str, Any] = {"offset": table.offset, "cdf": table.cdf, "scale": table.scale, **change}
    with pytest.raises(CodecError, match=message):
        PriorTable(**parts)


# ---- golden bytes and forgeries ------------------------------------------------------------------------------------


def golden_features() -> NDArray[np.float32]:
    """(3, 8, 8): integers 0 to 3 from a formula that no library takes part in."""
    places = [(c, y, x) for c in range(3) for y in range(8) for x in range(8)]
    return np.array([max(0, (x * x + y * (c + 1)) // 9 % 7 - 3) for c, y, x in places], np.float32).reshape(3, 8, 8)


GOLDEN: dict[str, str] = {
    # Bytes of release 0.1.0; they fix the format. The values are 0 to 3.
    "q2t-rle": (
        "4153010b0203080834000000420090009000900090009000d000d000d000900090009000d000d000e000e400240090009000"
        "d000e000e400240034003963ceb083"
    ),
    "q4c-rle": (
        "4153010b740308085800000042000000ffffff64000000a500a500a500a500a500f500f500f500a500a500a500f500f500fa"
        "00a50f500a500a500a500fa00f50fa00a500f500a50f0707070707070707070707070707030c2c1c1c1c0c307030000e3789"
        "71"
    ),
    "q2t-rans": (
        "4153010c420308082f0000004200180000330000f0ef0000daff00cf0000008d714840276fe3a20539b63c8868a932f7629c"
        "3a6a0e998904db2f0df4"
    ),
    "q4t-rans": (
        "4153010c440308083500000042001800003300000000f000000f00e00000daff00cf0000008d714840276fe3a20539b63c88"
        "68a932f7629c3a6a0e99890489b2e1f5"
    ),
    "q8c-rans": (
        "4153010c58030808b30100000042000000ffffff001800003300000000000000000000000000000000000000000000000000"
        "00000000000000000000000000000000000000f0000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000f00000000000000000000000000000000000000000000000000000000000000000000000000"
        "00000000e00000daff00cf0000008d714840276fe3a20539b63c8868a932f7629c3a6a0e9989041a7bad2b"
    ),
    "slicer-k50-d15": (
        "4153010d0903080831004000400000000000420042000000000000cfb000000017000008333bcbcd06faf6c65f1eca5b4627"
        "6e4a000b1d150600a2547c25"
    ),
    "slicer-k100-d30": (
        "4153010d130308083d003c003c0040004000000000004200420000cf0c0b0000230000dcad47287c73679cd1e5ec6b3bf8fe"
        "6bce1a3de9ec28a3f8cfef17b59a76a590400100b7c8f281"
    ),
    "prior": (
        "4153010e000208082dc9273df58273f3b600829ec2c973b38541d16a7882763782328b0f947878378982f49f96b68177c2ec"
        "4ed4a6f0d86ec047"
    ),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize("numba", PLAIN)
def test_golden_bytes(name: str, numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptsplit.codecs.context_compile.is_compiled", lambda: numba)
    data = bytes.fromhex(GOLDEN[name])
    codec: Any = PriorCodec(laplace_table()) if name == "prior" else get_codec(name)
    values = golden_features()[:2] / 4 if name == "prior" else golden_features()
    assert codec.encode(values).hex() == data.hex()
    assert np.abs(codec.decode(data) - values).max() <= {"slicer-k50-d15": 1, "prior": 0.26}.get(name, 0.02)


FORGERIES: list[tuple[int, int, tuple[int, int, int], bytes, str]] = [
    (RLE_KIND, 0x42, (1, 4, 4), bytes(12), "form 2"),
    (RLE_KIND, 0x62, (1, 4, 4), bytes(4) + bytes((2, 0, 0, 4, 0x0F)), "runs of 8 values for 16"),
    (RLE_KIND, 0x62, (1, 4, 4), bytes(4) + bytes((5, 0, 0, 0, 0, 0)), "runs in"),
    (RLE_KIND, 0xA2, (1, 4, 4), bytes(4) + bytes((2, 0, 0, 0, 7, 7)), "equal neighbours"),
    (RLE_KIND, 0x65, (1, 4, 4), bytes(12), "5 bits"),
    (RANS_KIND, 0x24, (1, 4, 4), bytes(11), "form 1"),
    (RANS_KIND, 0x44, (1, 4, 4), bytes(4) + bytes((16, 0, 0, 0, 0, 0, 0)), "code 16"),
    (RANS_KIND, 0x44, (1, 4, 4), bytes(4) + bytes((1, 3, 0, 0, 2, 0, 0)), "2 values in 3 rows"),
    (RANS_KIND, 0x44, (1, 4, 4), bytes(4) + bytes((1, 4, 0, 0, 16, 0, 0)), "16 values in 4 rows"),
    (RANS_KIND, 0x44, (1, 8, 8), bytes(4) + bytes((1, 4, 0, 0, 2, 0, 0)) + bytes(20), "without symbols"),
    (RANS_KIND, 0x44, (1, 512, 513), bytes(30), "form 2 of 26 bytes"),
    (SLICER_KIND, len(PRESETS), (1, 4, 4), bytes(40), "slicer preset"),
    (SLICER_KIND, 0, (1, 4, 4), bytes(10), "groups alone"),
    (SLICER_KIND, 0, (1, 4, 4), b"\x00\x7e" * 8 + bytes(30), "two finite magnitudes"),
    (SLICER_KIND, 0, (1, 4, 4), bytes(16) + b"\x99\x99" + bytes(30), "0 to 8 bits"),
    (SLICER_KIND, 0, (1, 512, 513), bytes(40), "at most"),
    (PRIOR_KIND, 0, (3, 5, 4), bytes(30), "prior-0000000000000000 is not known here"),
    (PRIOR_KIND, 1, (3, 5, 4), bytes.fromhex(PRIOR.table.id) + bytes(9), "form 1"),
    (PRIOR_KIND, 0, (4, 5, 4), bytes.fromhex(PRIOR.table.id) + bytes(9), "shape"),
    (PRIOR_KIND, 0, (3, 5, 4), bytes.fromhex(PRIOR.table.id) + bytes(8), "8 range-coded bytes"),
    (PRIOR_KIND, 0, (3, 5, 4), bytes.fromhex(PRIOR.table.id) + bytes(9), "do not end"),
]


@pytest.mark.parametrize(("kind", "form", "shape", "payload", "message"), FORGERIES)
def test_forgeries_are_named(kind: int, form: int, shape: tuple[int, ...], payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode_container(build_container(kind, form, shape, payload))


def test_sparse_values_that_are_the_zero_are_refused() -> None:
    codes = np.arange(64, dtype=np.uint8) % 16 // 12
    data = write_sparse(codes, 4)
    with pytest.raises(CodecError, match="left out"):
        read_sparse(bytes((1,)) + data[1:], 64, 4)
