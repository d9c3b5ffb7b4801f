"""Policy files of every schema, small, for tests that damage them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents import ControllerContext, PolicyController, PolicyNet
from adaptsplit.agents.base import RewardWeights
from adaptsplit.agents.gate import INPUTS, Branching, GateController
from adaptsplit.agents.online import build_online
from adaptsplit.agents.online_state import OnlineParameters
from adaptsplit.agents.policy_cautious import CautiousController
from adaptsplit.agents.policy_lookup import LookupController
from adaptsplit.agents.policy_recurrent import RecurrentNet, RecurrentPolicyController
from adaptsplit.agents.policy_tree import TreeController, tree_of
from adaptsplit.agents.static import StaticController
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.profiles import ProfileSummary

POLICIES = ("policy", "recurrent", "tree", "lookup", "online", "gate", "gate-network", "cautious")
SPACE = DecisionSpace(
    (BranchSpec("stem", "split", ("q2c-zstd", "q4c-zstd")), BranchSpec("off", "offload", ("webp-10",), exit="stem")),
    (0.0, 0.8, 1.01),
)
CONTEXT = ControllerContext(
    fps=10, deadline_s=0.25, goodput_bps=2e6, rtt_s=0.06, server_s=0.01, compute_w=2.5, weights=RewardWeights()
)


def make_summary() -> ProfileSummary:
    """Return a summary of ``SPACE``."""
    levels, quality = np.linspace(0.0, 1.0, 3), np.full((2, 2), 0.9)
    per_level = np.full((2, 3), 0.8)
    return ProfileSummary(
        branches=("stem", "off"),
        exit_quality=np.full(2, 0.8),
        tail_quality=quality,
        payload_bytes=quality * 1e3,
        head_s=np.full(2, 0.02),
        encode_s=quality * 0.004,
        tail_s=quality * 0.01,
        signal_s=0.001,
        levels=levels,
        exit_ratio=per_level,
        exit_quality_above=per_level,
        exit_quality_below=per_level,
        tail_quality_below=np.full((2, 2, 3), 0.7),
        confidence_mean=np.full(2, 0.8),
        retention=0.9,
    )


@functools.lru_cache
def policies() -> dict[str, bytes]:
    """A policy file of every schema."""
    rng, rows = np.random.default_rng(0), len(SPACE.table)

    def layers(*sizes: int) -> tuple[tuple[NDArray[Any], NDArray[Any]], ...]:
        return tuple((rng.normal(size=p).astype(np.float32), np.zeros(p[1], np.float32)) for p in pairwise(sizes))

    network = PolicyController("p", SPACE, PolicyNet(layers(obs.SIZE, 8, rows), "tanh", "flat"))
    ((weight, bias),) = layers(obs.SIZE + 4, 16)
    cell = RecurrentNet(weight, bias, PolicyNet(layers(4, rows), "relu", "flat"))
    tree = tree_of(np.array([2, -1, -1]), np.array([0.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    gate = Branching(SPACE, np.array([1, 0]))
    made: dict[str, Any] = {
        "policy": network,
        "recurrent": RecurrentPolicyController("r", SPACE, cell),
        "tree": TreeController("t", SPACE, tree, np.array([-1, 0, 1])),
        "lookup": LookupController("l", SPACE, [1, 3], [np.array([0.5]), np.array([0.2, 0.4])], np.arange(6) % rows),
        "online": build_online("o", network, make_summary(), CONTEXT, OnlineParameters()),
        "gate": GateController("g", StaticController(SPACE, SPACE.parse("stem/1/0.8")), gate, layers(INPUTS, 4, 1)),
        "gate-network": GateController("g", network, gate, layers(INPUTS, 4, 1)),
    }
    values = tuple(PolicyNet(layers(obs.SIZE, 8, rows), "relu", "flat") for _ in range(2))
    made["cautious"] = CautiousController("c", SPACE, values, 0, 1.0)
    return {name: _saved(controller.save) for name, controller in made.items()}


def _saved(save: Callable[[Path], object]) -> bytes:
    place = scratch() / "seed.npz"
    save(place)
    return place.read_bytes()


@functools.lru_cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="adaptsplit-fuzz-")  # removed with the process


def scratch() -> Path:
    return Path(_folder().name)


def arrays_of(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz of ours."""
    with np.load(io.BytesIO(data)) as archive:
        return {key: archive[key] for key in archive.files}
