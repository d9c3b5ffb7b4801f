"""LinkTrace, LinkClock, link entries of a scenario, descriptions."""

from __future__ import annotations

import doctest
import hashlib
import json
import re
import struct
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptsplit.config import Config, parse
from adaptsplit.errors import ConfigError, LinkError, RunError, UnknownNameError
from adaptsplit.links import (
    LinkClock,
    LinkSpec,
    LinkTrace,
    Recording,
    build_links,
    describe,
    format_description,
    link_generators,
    plot,
)
from adaptsplit.links import clock as clock_module
from adaptsplit.links import trace as trace_module
from adaptsplit.links.description import describe_traces, sparkline, statistics


def trace_of(capacity: list[float], dt_s: float = 1.0, **changed: Any) -> LinkTrace:
    count = len(capacity)
    fields: dict[str, Any] = {
        "name": "t",
        "family": "test",
        "dt_s": dt_s,
        "capacity_bps": np.array(capacity),
        "rtt_s": np.full(count, 0.05),
        "loss": np.zeros(count),
    }
    return LinkTrace(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"capacity_bps": np.zeros(2)}, "zero in all 2"),
        ({"capacity_bps": np.array([1.0, -1.0])}, r"capacity_bps\[1\] is -1"),
        ({"capacity_bps": np.array([np.nan, 1.0])}, r"capacity_bps\[0\] is nan"),
        ({"capacity_bps": np.array([])}, "shape"),
        ({"capacity_bps": np.ones((2, 2))}, "shape"),
        ({"capacity_bps": np.array(["a", "b"])}, "not an array of numbers"),
        ({"rtt_s": np.full(3, 0.1)}, "3 samples and capacity_bps 2"),
        ({"rtt_s": None}, "rtt_s"),
        ({"loss": np.array([0.0, 1.0])}, r"loss\[1\] is 1"),
        ({"signal_dbm": np.array([-90.0])}, "signal_dbm has 1"),
        ({"sinr_db": np.array([3.0])}, "sinr_db has 1"),
        ({"sinr_db": np.array([3.0, np.nan])}, r"sinr_db\[1\] is nan"),
        ({"altitude_m": np.array([3.0, 1e7])}, r"altitude_m\[1\] is 1e\+07"),
        ({"dt_s": 0.0}, "dt_s is 0"),
        ({"dt_s": float("nan")}, "dt_s is nan"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(LinkError, match=words):
        trace_of([1.0, 2.0], **changed)


def test_a_trace_owns_its_arrays_and_is_frozen() -> None:
    capacity = np.array([1.0, 2.0])
    trace = trace_of([1.0, 2.0], capacity_bps=capacity)
    capacity[0] = 9.0
    assert trace.capacity_bps[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        trace.capacity_bps[0] = 5.0
    with pytest.raises(FrozenInstanceError):
        trace.dt_s = 2.0  # type: ignore[misc]


def test_statistics_count_outages_in_samples_and_zeros_in_bins() -> None:
    trace = trace_of([0, 4e6, 0, 0, 0, 0, 2e6, 2e6], dt_s=0.5)
    figures = trace.statistics(bin_s=1.0)
    assert figures.duration_s == 4.0
    assert figures.longest_outage_s == 2.0
    assert figures.zero_fraction == 0.5
    assert figures.mean_bps == 1e6
    assert figures.p50_bps == 1e6
    assert figures.as_dict()["rtt_p50_s"] == 0.05


def test_transformations_keep_a_record_of_themselves() -> None:
    trace = trace_of([1.0, 2.0, 3.0, 4.0], dt_s=0.5, signal_dbm=np.arange(4.0))
    part = trace.slice(0.5, 1.5).scaled(2.0).with_rtt(0.2)
    assert part.capacity_bps.tolist() == [4.0, 6.0]
    assert part.rtt_s.tolist() == [0.2, 0.2]
    assert part.signal_dbm is not None
    assert part.signal_dbm.tolist() == [1.0, 2.0]
    assert len(part.provenance) == 3
    assert trace.provenance == ()
    for start, end in ((1.0, 1.0), (-1.0, 1.0), (5.0, 6.0), (0.0, float("nan"))):
        with pytest.raises(LinkError, match="slice"):
            trace.slice(start, end)
    with pytest.raises(LinkError, match="scale"):
        trace.scaled(0.0)


def test_sinr_and_altitude_travel_with_the_trace() -> None:
    trace = trace_of([1.0, 2.0, 3.0], sinr_db=np.array([3.0, 4.0, 5.0]), altitude_m=np.array([10.0, 20.0, 30.0]))
    part = trace.slice(1.0, 3.0).scaled(2.0).with_rtt(0.2)
    assert part.sinr_db is not None
    assert part.altitude_m is not None
    assert part.sinr_db.tolist() == [4.0, 5.0]
    assert part.altitude_m.tolist() == [20.0, 30.0]
    with pytest.raises(ValueError, match="read-only"):
        part.sinr_db[0] = 1.0
    assert LinkTrace("t", "test", 1.0, np.ones(1), np.ones(1), np.zeros(1), None, ("by hand",)).sinr_db is None


def test_the_digest_is_as_it_was_before_there_were_sinr_and_altitude() -> None:
    """The SHA-256 of what the first version hashed: a header, dt and length, three columns, signal or a dash."""
    trace = trace_of([1.0, 2.0], dt_s=0.5)
    header = b"adaptsplit.link/1" + struct.pack("<2d", 0.5, 2.0)
    columns = struct.pack("<6d", 1.0, 2.0, 0.05, 0.05, 0.0, 0.0)
    assert trace.digest() == hashlib.sha256(header + columns + b"-").hexdigest()
    sinr = trace_of([1.0, 2.0], dt_s=0.5, sinr_db=np.array([3.0, 4.0]))
    altitude = trace_of([1.0, 2.0], dt_s=0.5, altitude_m=np.array([3.0, 4.0]))
    assert len({trace.digest(), sinr.digest(), altitude.digest()}) == 3


def test_adjacent_slices_share_no_sample_and_leave_none_out() -> None:
    trace = trace_of(list(range(1, 101)), dt_s=0.02)
    parts = [trace.slice(a, b).capacity_bps for a, b in ((0.0, 0.3), (0.3, 1.1), (1.1, 9.0))]
    assert np.concatenate(parts).tolist() == trace.capacity_bps.tolist()


def test_the_digest_depends_on_content_alone() -> None:
    trace = trace_of([1.0, 2.0])
    assert trace.digest() == trace_of([1.0, 2.0], name="other", provenance=("x",)).digest()
    others = [trace.scaled(2.0), trace.with_rtt(0.1), trace_of([1.0, 2.0], dt_s=0.5), trace_of([2.0, 1.0])]
    assert len({trace.digest(), *(other.digest() for other in others)}) == 5
    assert trace_of([0.0, 2.0]).digest() == trace_of([-0.0, 2.0]).digest()


def test_the_clock_by_hand() -> None:
    clock = LinkClock(trace_of([8.0, 0.0, 4.0], rtt_s=np.array([0.1, 0.2, 0.3])))
    assert clock.finish(0.0, 8.0) == 1.0  # the earliest time, not the end of the outage
    assert clock.finish(0.0, 8.5) == 2.125
    assert clock.finish(1.5, 4.0) == 3.0
    assert clock.finish(1.5, 0.0) == 1.5
    assert clock.finish(0.0, 12.0 * 1000) == 3000.0
    assert [clock.rtt(t) for t in (0.0, 1.0, 2.9, 3.0, 301.5)] == [0.1, 0.2, 0.3, 0.1, 0.2]
    assert [clock.capacity(t) for t in (0.5, 1.5, 5.5)] == [8.0, 0.0, 4.0]
    assert LinkClock(trace_of([8.0, 0.0, 4.0]), offset_s=4.0).finish(0.0, 4.0) == 2.0
    with pytest.raises(LinkError, match="offset"):
        LinkClock(trace_of([1.0]), offset_s=-1.0)


def delivered(trace: LinkTrace, start_s: float, end_s: float) -> float:
    """Bits between two times of the looped trace, by summing sample after sample: slow, and written another way."""
    total, i = 0.0, int(start_s // trace.dt_s)
    while i * trace.dt_s < end_s:
        overlap = min(end_s, (i + 1) * trace.dt_s) - max(start_s, i * trace.dt_s)
        total += max(0.0, overlap) * float(trace.capacity_bps[i % len(trace)])
        i += 1
    return total


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.lists(st.sampled_from([0.0, 1e3, 7e5, 3e6]), min_size=1, max_size=12).filter(any),
    dt_s=st.sampled_from([0.02, 0.1, 1.0]),
    start_s=st.floats(0, 30),
    offset_s=st.floats(0, 10),
    loops=st.floats(1e-6, 3.0),
)
def test_finish_is_the_earliest_time_at_which_the_bits_have_crossed(
    capacity: list[float], dt_s: float, start_s: float, offset_s: float, loops: float
) -> None:
    trace = trace_of(capacity, dt_s=dt_s)
    bits = loops * sum(capacity) * dt_s
    end = LinkClock(trace, offset_s).finish(start_s, bits)
    assert end >= start_s
    assert delivered(trace, start_s + offset_s, end + offset_s) == pytest.approx(bits, rel=1e-6, abs=0.1)
    earlier = end - 1e-3 * dt_s
    if earlier > start_s:
        assert delivered(trace, start_s + offset_s, earlier + offset_s) < bits


def test_whole_loops_end_before_the_outage_that_begins_the_next() -> None:
    for capacity in (0.1, 0.7, 3.3, 1e6 / 3):
        clock = LinkClock(trace_of([0.0, capacity, capacity], dt_s=0.1))
        for loops in range(1, 400):
            bits = loops * (2 * capacity * 0.1)
            assert clock.finish(0.0, bits) == pytest.approx(0.3 * loops, abs=1e-6)


def test_finish_never_overtakes() -> None:
    clock = LinkClock(link_generators.get("lte-drone")(3, 30.0), offset_s=7.3)
    starts = np.linspace(0, 100, 500)
    ends = [clock.finish(float(start), 40_000.0) for start in starts]
    assert np.all(np.diff(ends) >= 0)


class Links(Config):
    links: list[LinkSpec]


def specs_of(*entries: dict[str, Any]) -> list[LinkSpec]:
    return parse(Links, {"links": list(entries)}, "test").links


GENERATE = {"kind": "generate", "generator": "lte-drone", "seeds": [1, 2], "duration_s": 20, "family": "lte"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.up").write_text("".join(f"{10 * k}\n" for k in range(1, 101)))
    return tmp_path


def test_links_of_a_scenario(data: Path) -> None:
    recorded = {"kind": "file", "path": "sub/a.up", "family": "cell", "rtt_ms": 60, "start_s": 0.2, "scale": 2}
    traces = build_links(specs_of(GENERATE, recorded), data)
    assert [trace.family for trace in traces] == ["lte", "lte", "cell"]
    assert [trace.duration_s for trace in traces] == pytest.approx([20.0, 20.0, 0.8])
    assert traces[2].rtt_s[0] == 0.06
    assert traces[2].statistics().mean_bps == pytest.approx(2 * 1.2e6)
    assert len({trace.digest() for trace in traces}) == 3
    assert len(build_links(specs_of(GENERATE | {"seeds": ["1-3", 7], "duration_s": 2}), None)) == 4
    other = GENERATE | {"parameters": {"base_rtt_s": 0.1}, "family": "far"}
    assert len({trace.name for trace in build_links(specs_of(GENERATE, other), None)}) == 4


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (GENERATE | {"sedes": [1]}, "sedes"),
        (GENERATE | {"kind": "generated"}, "generated"),
        (GENERATE | {"generator": "lte-dron"}, "did you mean 'lte-drone'"),
        (GENERATE | {"parameters": {"level_bps": [1e6]}}, "did you mean 'levels_bps'"),
        (GENERATE | {"seeds": [-1]}, "expected at least 0"),
        (GENERATE | {"seeds": ["1-99999"]}, "more than 10000 seeds"),
        (GENERATE | {"parameters": {"levels_bps": [2e6, 1e6]}}, "sort them"),
        ({"kind": "file", "path": "../a.up", "family": "x"}, "leads out of the data directory"),
        ({"kind": "file", "path": "b.up", "family": "x"}, "not found in the data directory"),
        ({"kind": "file", "path": "sub/a.up", "family": "x", "reader": "mahi"}, "unknown link reader 'mahi'"),
        ({"kind": "file", "path": "sub/a.up", "family": "x", "select": [1]}, "expected 0 to 0"),
        ({"kind": "file", "path": "sub/a.up", "family": "x", "select": ["3-1"]}, "expected an index or a range"),
    ],
)
def test_a_faulty_link_entry_is_named(entry: dict[str, Any], words: str, data: Path) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=words):
        build_links(specs_of(entry), data)


@pytest.mark.parametrize("missing", [None, Path("/no/such/folder")])
def test_a_missing_data_directory_names_every_cure(missing: Path | None) -> None:
    with pytest.raises(ConfigError) as caught:
        build_links(specs_of({"kind": "file", "path": "a.up", "family": "x"}), missing)
    assert all(cure in str(caught.value) for cure in ("--data", "data:", "ADAPTSPLIT_DATA"))


def test_the_same_trace_twice_is_refused() -> None:
    with pytest.raises(LinkError, match="occurs twice"):
        build_links(specs_of(GENERATE, GENERATE), None)
    with pytest.raises(ConfigError, match="no link"):
        build_links([], None)


def test_a_description_names_file_figures_and_shape(data: Path) -> None:
    description = describe([data / "sub" / "a.up"])
    link = description["links"][0]
    assert link["mean_bps"] == pytest.approx(1.2e6)
    text = format_description(description)
    assert "1.20" in text
    assert text.splitlines()[0].split()[:3] == ["name", "family", "s"]
    assert sparkline(trace_of([0.0, 1.0, 8.0])) == " ▂█"


MIXED = Recording(
    "mixed",
    "test",
    0.5,
    {
        "rtt_s": np.array([0.02, 0.04, 0.06, 4.0]),
        "signal_dbm": np.array([-90.0, np.nan, -80.0, -85.0]),
        "sinr_db": np.full(4, np.nan),
        "loss": np.array([0.0, 0.2, 0.0, 0.2]),
    },
    filled=1,
)


def test_a_description_has_the_columns_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "probe.csv"
    path.write_text("time_s,rtt_ms,rsrp_dbm,sinr_db\n0,20,-90,\n1,40,-80,\n2,90,,\n")
    [link] = describe([path])["links"]
    assert link["columns"] == ["rtt_s", "signal_dbm", "sinr_db"]
    assert link["rtt_p50_s"] == 0.04
    assert link["signal_p50_dbm"] == -85.0
    assert link["sinr_p50_db"] is None
    assert link["mean_bps"] is None
    assert link["digest"] is None
    assert link["shaped_by"] == "rtt_s"
    header, row = format_description(describe([path])).splitlines()
    assert header.split() == ["name", "family", "s", "dt", "ms", "rtt", "ms", "p95", "ms", "signal", "dBm", "shape"]
    assert row.split()[:6] == ["probe", "recorded", "3", "1000", "40", "85"]


def test_statistics_of_a_recording_leave_out_what_is_unknown() -> None:
    figures = statistics(MIXED)
    assert figures["rtt_p50_s"] == 0.05
    assert (figures["signal_p5_dbm"], figures["signal_p50_dbm"]) == (-89.5, -85.0)
    assert figures["loss_mean"] == 0.1
    assert figures["sinr_p95_db"] is None
    described = describe_traces([trace_of([0.0, 4e6], altitude_m=np.array([10.0, 30.0]))])
    [link] = json.loads(json.dumps(described))["links"]
    assert link["altitude_p50_m"] == 20.0
    assert link["zero_fraction"] == 0.5
    assert "alt m" in format_description(described)


def test_sparklines_of_other_columns() -> None:
    assert sparkline(MIXED) == "▁▁▁█"  # round trip, from zero
    signal = Recording("s", "test", 1.0, {"signal_dbm": np.array([-100.0, np.nan, -80.0, -90.0])})
    assert sparkline(signal) == "▁ █▅"  # from the least; a space is unknown
    assert sparkline(Recording("u", "test", 1.0, {"sinr_db": np.full(2, np.nan)})) == "  "
    assert sparkline(Recording("c", "test", 1.0, {"sinr_db": np.full(2, 7.0)})) == "██"


def test_a_plot_has_one_panel_per_column(tmp_path: Path) -> None:
    traces = [trace_of([1.0, 2.0]), trace_of([1.0, 2.0], rtt_s=np.array([0.1, 0.2]), signal_dbm=np.array([-90.0, -80]))]
    drawn = plot([*traces, MIXED], tmp_path / "links.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    # capacity alone; capacity, the round trip, which varies, and signal, but no constant loss; the recording's four
    assert len(re.findall(r'id="axes_\d+"', drawn)) == 1 + 3 + 4
    assert plot([MIXED], tmp_path / "mixed.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected \.svg"):
        plot([MIXED], tmp_path / "links.exe")
    with pytest.raises(ConfigError, match="16 links with 64 panels to plot, expected 1 to 60"):
        plot([MIXED] * 16, tmp_path / "links.png")
    with pytest.raises(RunError, match="cannot be written"):
        plot([MIXED], tmp_path / "none" / "links.png")


@pytest.mark.parametrize("module", [clock_module, trace_module])
def test_the_examples_of_the_docstrings_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_links_import_nothing_heavy() -> None:
    code = (
        "import sys, adaptsplit.links as links; links.link_generators.get('lte-drone')(1, 5.0);"
        "sys.exit(bool({'torch', 'gymnasium', 'numba', 'matplotlib', 'scipy', 'stable_baselines3'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
