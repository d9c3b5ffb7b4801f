"""Every decoder of bytes from outside: damaged input gives an AdaptsplitError or a valid result, in bounded work.

``fuzz_targets`` lists the decoders. Inputs are mutations of what our own encoders write (``adaptsplit.fuzzing``) and
follow from a seed. What a network brings, and YAML, takes 10^5 inputs here. ``Target.inputs`` is fewer where a document
takes a tenth of a millisecond or more: policies and other arrays (zip), whole scenarios, and files that only this
machine writes. ADAPTSPLIT_FUZZ=full takes 10^6 of each, ADAPTSPLIT_FUZZ=<n> takes n.
"""

from __future__ import annotations

import json
import os

import pytest
from fuzz_policies import arrays_of, policies
from fuzz_targets import BEHIND, ON_THE_WIRE, TARGETS
from fuzzing import fuzz, outcome, peak_bytes, seconds, silent

from adaptsplit.agents.policy import PARSERS

MODE = os.environ.get("ADAPTSPLIT_FUZZ", "")


@pytest.mark.timeout(36_000 if MODE else 120)
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_read(name: str) -> None:
    target = TARGETS[name]()
    with silent():
        assert [outcome(target, data) for data in target.whole] == ["read"] * len(target.whole)
    inputs = 1_000_000 if MODE == "full" else int(MODE or target.inputs)
    run = fuzz(target, f"fuzz {name}", inputs)
    print(f"{name}: {dict(run.seen)}, slowest {run.worst_s * 1e3:.2f} ms")
    assert run.seen.total() == inputs
    assert run.seen["read"] > target.read * inputs
    assert run.worst_s < target.most_s, run.worst[:3000]


@pytest.mark.parametrize("name", TARGETS)
def test_memory_is_bounded(name: str) -> None:
    target = TARGETS[name]()
    most = peak_bytes(target, f"memory {name}", 100)
    assert 0 < most < target.most_bytes


@pytest.mark.parametrize("name", ON_THE_WIRE)
def test_what_a_network_brings_takes_many_inputs_each_in_ten_milliseconds(name: str) -> None:
    target = TARGETS[name]()
    assert target.inputs >= (20_000 if name in BEHIND else 100_000)
    assert target.most_s <= 0.010
    assert all(seconds(target, data) < target.most_s for data in target.whole)


def test_every_schema_of_policies_is_a_target() -> None:
    schemas = {json.loads(arrays_of(data)["meta"].tobytes())["schema"] for data in policies().values()}
    assert schemas == set(PARSERS)
