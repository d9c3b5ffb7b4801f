"""Link entries of a scenario: what the optional keys do, in which order, and that old entries keep their traces."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit.config import Config, parse
from adaptsplit.errors import ConfigError, LinkError
from adaptsplit.links import LinkSpec, LinkTrace, build_links, format_description, link_generators, made_by
from adaptsplit.links.chain import fit_markov
from adaptsplit.links.compose import inject_outages, jittered, rtt_from
from adaptsplit.links.readers import read_links, read_recordings
from adaptsplit.links.shaping import named_seed
from adaptsplit.links.spec import AnyLink, describe_specs
from adaptsplit.scenario import load_scenario

STEADY = {"kind": "generate", "generator": "constant", "seeds": [1], "duration_s": 20, "family": "flat"}
DRONE = {"kind": "generate", "generator": "lte-drone", "seeds": ["1-3"], "duration_s": 30, "family": "lte"}
OUTAGES = {"every_s": 4, "mean_s": 1, "seed": 5}
JITTER = {"dt_ms": 100, "cv": 0.4, "correlation_s": 0.3, "seed": 6}


class Entries(Config):
    links: list[LinkSpec]


def specs_of(*entries: dict[str, Any]) -> list[AnyLink]:
    return parse(Entries, {"links": list(entries)}, "scenario").links


def built(*entries: dict[str, Any], data: Path | None = None) -> list[LinkTrace]:
    return build_links(specs_of(*entries), data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = "".join(f"{t},{1 + t % 3}\n" for t in range(30))
    (tmp_path / "a.csv").write_text("time_s,capacity_mbps\n" + rows)
    for k in (1, 2):
        rows = "".join(f"{t / 2},{10 * k + t % 5}\n" for t in range(24))
        (tmp_path / f"p{k}.csv").write_text("time_s,rtt_ms\n" + rows)
    return tmp_path


def test_flight_lte_has_the_traces_it_always_had() -> None:
    """Shipped results name these traces; the digests were taken before generators had other files."""
    scenario = load_scenario("flight-lte")
    found = {}
    for split in ("train", "validation", "test"):
        traces = scenario.links(split)
        made_by = "".join(trace.provenance[0] for trace in traces)
        digests = "".join(trace.digest() for trace in traces)
        found[split] = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (digests, made_by)]
    assert found == {
        "train": ["037c078d5d9e22a5", "6beb05619a9b6b94"],
        "validation": ["414d83d9cecc1cbc", "e343a39329c3c886"],
        "test": ["420630a542e735e7", "c0f06ab7fed2d54a"],
    }


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("constant", "bde742539072b1f0"),
        ("gilbert-elliott", "5ed6bec0762688a0"),
        ("lte-drone", "ceea97aea1c6764f"),
        ("markov", "3f75b4b9bbecf5c9"),
    ],
)
def test_every_older_generator_has_the_traces_it_always_had(name: str, digest: str) -> None:
    assert link_generators.get(name)(7, 12.0).digest()[:16] == digest


def test_the_options_act_in_the_stated_order(data: Path) -> None:
    shaped = {"scale": 2, "rtt_from": {"path": "p1.csv"}, "outages": OUTAGES, "jitter": JITTER}
    [trace] = built({"kind": "file", "path": "a.csv", "family": "cell", "end_s": 20, **shaped}, data=data)
    expected = read_links(data / "a.csv", family="cell")[0].slice(0, 20).scaled(2.0)
    expected = rtt_from(expected, read_recordings(data / "p1.csv")[0])
    expected = inject_outages(expected, 4, 1, named_seed(5, expected.name))
    expected = jittered(expected, 0.1, 0.4, 0.3, named_seed(6, expected.name))
    assert trace.digest() == expected.digest()
    assert trace.provenance == expected.provenance
    words = [
        "csv",
        "round trip taken",
        "slice",
        "scaled by 2",
        "round-trip times of p1",
        "p1: ",
        "outages:",
        "variation",
    ]
    places = [next(i for i, line in enumerate(trace.provenance) if word in line) for word in words]
    assert places == sorted(places)


def test_every_kind_takes_every_option(data: Path) -> None:
    shaped = {"scale": 0.5, "rtt_from": {"path": "p2.csv"}, "outages": OUTAGES, "jitter": JITTER}
    spliced = {"kind": "splice", "parts": [STEADY, {"kind": "file", "path": "a.csv", "family": "x"}], "family": "mix"}
    for entry, seconds in ((STEADY, 20), (spliced, 50), ({"kind": "file", "path": "a.csv", "family": "x"}, 30)):
        [plain], [trace] = built(entry, data=data), built(entry | shaped, data=data)
        assert trace.dt_s == 0.1
        assert trace.duration_s == pytest.approx(seconds)
        kept = trace.capacity_bps.reshape(-1, 10).sum(axis=1) / 10
        assert set(np.round(kept / plain.capacity_bps, 9)) == {0.0, 0.5}
        assert 0.02 <= trace.rtt_s.min() < trace.rtt_s.max() <= 0.0241
        assert len(trace.provenance) == len(plain.provenance) + 5


def test_traces_of_one_entry_differ_in_their_outages(data: Path) -> None:
    flat = STEADY | {"seeds": ["1-4"], "duration_s": 200, "outages": OUTAGES}
    traces = built(flat)
    assert len({trace.digest() for trace in traces}) == 4  # without outages they are all the same
    assert [t.digest() for t in traces] == [t.digest() for t in built(flat)]
    assert len({t.digest() for t in traces + built(flat | {"outages": OUTAGES | {"seed": 9}})}) == 8


def test_splits_with_the_same_options_share_no_trace() -> None:
    digests = [
        {trace.digest() for trace in built(DRONE | {"seeds": seeds, "outages": OUTAGES, "scale": 2})}
        for seeds in (["1-5"], ["6-10"], ["11-15"])
    ]
    assert len(set.union(*digests)) == 15


def test_several_round_trip_recordings_are_dealt_out_in_turn(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "probes.zip", "w") as archive:
        for k in (70, 80, 90):
            archive.writestr(f"p{k}.csv", f"time_s,rtt_ms\n0,{k}\n1,{k}\n")
    entry = DRONE | {"rtt_from": {"path": "probes.zip", "select": [0, 2]}}
    assert [set(trace.rtt_s) for trace in built(entry, data=tmp_path)] == [{0.07}, {0.09}, {0.07}]


def test_real_round_trips_under_a_real_uplink(shared_data: Path) -> None:
    """15 recordings of one directory cannot be one entry, but each can serve; here one with second-long stalls."""
    probes = sorted((shared_data / "net_cicv5g_rtt" / "data").rglob("*.txt"))
    entry = {
        "kind": "file",
        "path": "net_starlink_autobahn/throughput.zip",
        "family": "starlink",
        "select": ["0-3"],
        "rtt_from": {"path": str(probes[0].relative_to(shared_data))},
        "jitter": JITTER | {"dt_ms": 50},
    }
    traces = built(entry, data=shared_data)
    [probe, *_] = read_recordings(probes[0])
    assert len(traces) == 4
    for trace in traces:
        assert trace.dt_s == 0.05
        assert trace.rtt_s.min() >= probe.columns["rtt_s"].min() - 1e-9
        assert trace.rtt_s.max() <= probe.columns["rtt_s"].max() + 1e-9
        assert np.ptp(trace.rtt_s) > 0


def test_splice_joins_all_traces_of_its_parts(data: Path) -> None:
    part = {"kind": "file", "path": "a.csv", "family": "x", "start_s": 3, "end_s": 5}
    entry = {"kind": "splice", "parts": [DRONE, part], "family": "mixed", "name": "there and back"}
    [trace] = built(entry, data=data)
    assert (trace.name, trace.family, trace.dt_s) == ("there and back", "mixed", 0.05)
    assert trace.duration_s == pytest.approx(3 * 30 + 2)
    assert trace.provenance[-1].startswith("splice of 4 parts")
    assert [line.split(" (")[0] for line in trace.provenance[:3]] == ["part 1", "part 2", "part 3"]


def test_markov_is_fitted_where_the_entry_says_so(data: Path) -> None:
    fitted = {"fitted_from": {"path": "a.csv", "reader": "csv", "select": [0]}, "states": 3, "rtt_ms": 80}
    entry = DRONE | {"generator": "markov", "parameters": fitted, "duration_s": 60}
    traces = built(entry, data=data)
    chain = fit_markov(read_links(data / "a.csv", rtt_s=0.08)[0], 3)
    assert traces[0].digest() == link_generators.get("markov")(1, 60.0, chain).digest()
    assert len(traces) == 3
    assert "fitted to a: 30 samples of 1 s, of a.csv" in traces[0].provenance[0]
    assert set(traces[0].capacity_bps) == {1e6, 2e6, 3e6}
    assert set(traces[0].rtt_s) == {0.08}


def test_markov_is_fitted_to_several_recordings_at_once(shared_data: Path) -> None:
    path = "net_starlink_autobahn/throughput.zip"
    source = {"path": path, "select": ["0-9"]}
    entry = DRONE | {"generator": "markov", "parameters": {"fitted_from": source, "states": 8}, "duration_s": 3000}
    recorded = read_links(shared_data / path)[:10]
    mean = np.concatenate([trace.capacity_bps for trace in recorded]).mean()
    assert np.mean([trace.capacity_bps.mean() for trace in built(entry, data=shared_data)]) == pytest.approx(
        mean, rel=0.1
    )


def test_an_explicit_matrix_and_an_air_to_ground_flight_in_yaml() -> None:
    chain = {"levels_bps": [0, 4e6], "transition": [[0.5, 0.5], [0.1, 0.9]], "dt_s": 0.2}
    flight = {"environment": "UMi", "flight": {"height_m": 60, "random_start": True}, "cqi_set": "B"}
    traces = built(
        DRONE | {"generator": "markov", "parameters": chain},
        DRONE | {"generator": "air-to-ground", "parameters": flight, "family": "a2g"},
    )
    assert set(traces[0].capacity_bps) == {0.0, 4e6}
    assert traces[3].altitude_m is not None
    assert traces[3].sinr_db is not None
    assert [trace.family for trace in traces] == ["lte"] * 3 + ["a2g"] * 3


def test_a_description_of_a_scenario_shows_every_step(data: Path) -> None:
    entry = {"kind": "file", "path": "a.csv", "family": "cell", "outages": OUTAGES, "jitter": JITTER}
    document = describe_specs(specs_of(entry, STEADY), data)
    assert document["schema"] == "adaptsplit.links/1"
    assert [row["duration_s"] for row in document["links"]] == pytest.approx([30.0, 20.0])
    lines = document["links"][0]["provenance"]
    assert any(line.startswith("outages: every 4 s for 1 s") for line in lines)
    assert lines[-1].startswith("variation within 1 s")
    assert "outages" in made_by(document)
    text = format_description(document)
    assert "cell" in text
    assert "constant-1" in text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (STEADY | {"jiter": JITTER}, "jiter"),
        (STEADY | {"jitter": JITTER | {"dt_ms": 300}}, "a whole fraction of its samples of 1 s"),
        (STEADY | {"jitter": JITTER | {"cv": 0}}, "cv"),
        (STEADY | {"outages": {"every_s": 1, "mean_s": 0, "seed": 1}}, "mean_s"),
        (STEADY | {"outages": {"every_s": 1, "mean_s": 1}}, "seed: missing"),
        (STEADY | {"rtt_from": {"path": "a.csv"}}, "no round-trip times, only capacity_bps"),
        (STEADY | {"rtt_from": {"path": "none.csv"}}, "not found in the data directory"),
        (STEADY | {"rtt_from": {"path": "../p1.csv"}}, "leads out of the data directory"),
        (STEADY | {"rtt_from": {"path": "p1.csv", "select": [1]}}, "select 1, expected 0 to 0"),
        (STEADY | {"scale": 0}, "scale"),
        ({"kind": "splice", "parts": [], "family": "x"}, "parts"),
        ({"kind": "splice", "parts": [{"kind": "splice"}], "family": "x"}, "splice"),
        ({"kind": "file", "path": "p1.csv", "family": "x"}, "use it as rtt_from of another link"),
        (DRONE | {"parameters": {"fitted_from": {"path": "a.csv"}}}, "belongs to markov"),
        (DRONE | {"generator": "markov", "parameters": {"fitted_from": {"path": "p1.csv"}}}, "has only rtt_s"),
        (DRONE | {"generator": "markov", "parameters": {"fitted_from": {"path": "a.csv"}, "state": 3}}, "'states'"),
    ],
)
def test_a_faulty_option_is_named(entry: dict[str, Any], words: str, data: Path) -> None:
    with pytest.raises((ConfigError, LinkError), match=words):
        built(entry, data=data)
