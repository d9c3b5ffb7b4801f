"""Cases that several test files share: a small decision space and its summary, observations, maps, a command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.prediction import nominal_observation
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.profiles import ProfileSummary

CODECS = ("q2c-zstd", "q4c-zstd", "q8c-zstd")
SPACE = DecisionSpace(
    (
        BranchSpec("stem", "split", CODECS),
        BranchSpec("deep", "split", CODECS[:2]),
        BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="deep"),
        BranchSpec("local", "local"),
    )
)


def summary_from(
    branches: tuple[str, ...], exits: NDArray[np.float64], tail: NDArray[np.float64], payload: NDArray[np.float64]
) -> ProfileSummary:
    """Return a summary of B branches at 3 rates; half of the frames pass a threshold of 1, every one that of 0.5."""
    count = len(branches)
    levels = np.linspace(0.0, 1.0, 41)
    ratio = np.tile(np.clip(1.5 - levels, 0.0, 1.0), (count, 1))
    return ProfileSummary(
        branches=branches,
        exit_quality=exits,
        tail_quality=tail,
        payload_bytes=payload,
        head_s=np.full(count, 0.02),
        encode_s=np.full((count, 3), 0.003),
        tail_s=np.full((count, 3), 0.01),
        signal_s=0.001,
        levels=levels,
        exit_ratio=ratio,
        exit_quality_above=np.minimum(exits[:, None] + 0.1, 1.0) + 0.0 * ratio,
        exit_quality_below=exits[:, None] - 0.15 + 0.0 * ratio,
        tail_quality_below=tail[:, :, None] - 0.02 + 0.0 * levels,
        confidence_mean=exits,
        retention=0.9,
    )


def make_summary() -> ProfileSummary:
    """Return a summary of ``SPACE`` whose exits reach 0.7 and 0.8, and whose tail gets better with the rate."""
    tail = np.array([[0.85, 0.9, 0.95], [0.88, 0.92, 0.92], [0.8, 0.97, 0.97], [0.97, 0.97, 0.97]])
    payload = np.array([[1e3, 2e3, 4e3], [5e2, 1e3, 1e3], [2e3, 2e4, 2e4], [0.0, 0.0, 0.0]])
    names = tuple(branch.name for branch in SPACE.branches)
    found = summary_from(names, np.array([0.7, 0.8, 0.8, 0.97]), tail, payload)
    return replace(found, head_s=np.array([0.02, 0.04, 0.04, 0.4]))


def make_paced_summary() -> ProfileSummary:
    """As ``make_summary``, with a local branch that fits the deadline and server times that differ by branch."""
    return replace(
        make_summary(),
        head_s=np.array([0.02, 0.04, 0.04, 0.16]),
        encode_s=np.full((4, 3), 0.004),
        tail_s=np.tile(np.array([[0.02], [0.01], [0.03], [0.0]]), (1, 3)),
    )


def observed(context: ControllerContext, **given: float) -> NDArray[np.float32]:
    """Return one observation (1, D): nominal but for the named fields, in their units."""
    out = nominal_observation(context)
    for name, value in given.items():
        out[0, obs.index(name)] = obs.scaled(name, value)
    return out


def smooth(channels: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (C, H, W) smooth waves with noise, rectified like the maps of a network with ReLU."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(1, 6, (channels, 2, 1, 1))
    values = np.sin(waves[:, 0] * y + waves[:, 1] * x + rng.uniform(0, 6, (channels, 1, 1)))
    values += rng.normal(0, 0.1, values.shape)
    return np.asarray(values.clip(0, None), dtype=np.float32)


SMALL_SCENARIO = {
    "fps": 10,
    "deadline_s": 0.25,
    "episode_s": 2,
    "device": {"compute": "raspberry-pi-3b-plus", "radio": "lte", "battery_wh": 50},
    "priors": {"goodput_bps": 1.5e6, "rtt_s": 0.07, "server_s": 0.01},
    "objective": {"quality": 1.0, "energy_per_j": 0.3, "bytes_per_kib": 0.002},
}
"""A slow board over LTE, for two seconds; wants a name, a description, a profile, frames and links."""


def command(*arguments: str | Path) -> str:
    """Run ``adaptsplit ARGUMENTS`` in this process and return what it prints; its exit code must be 0."""
    from adaptsplit.cli import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
