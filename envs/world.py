"""The compiled core's view of a scenario: profile tables, links and constants of one split as plain arrays.

Letters: N profile rows (frames), B branches, R rates, Q quantile levels, S flights, T exit rules, C cells, K points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.exogenous import Board, Server, build_board, build_server
from adaptsplit.envs.link_table import LinkTable, build_table
from adaptsplit.profiles import Profile
from adaptsplit.scenario import Scenario

Array = NDArray[Any]

KIND_SPLIT, KIND_OFFLOAD, KIND_LOCAL, KIND_SKIP = 0, 1, 2, 3
_KINDS = {"split": KIND_SPLIT, "offload": KIND_OFFLOAD, "local": KIND_LOCAL, "skip": KIND_SKIP}
UNLABELLED = 255


class Outcomes(NamedTuple):
    """Measured outcomes per frame; row N is an average frame, used where a planner does not know the frame."""

    exit_quality: Array  # (N + 1, B) f4
    exit_confidence: Array  # (N + 1, B) f4
    tail_quality: Array  # (N + 1, B, R) f4
    tail_confidence: Array  # (N + 1, B, R) f4
    agreement: Array  # (N + 1, B, R) f4
    payload: Array  # (N + 1, B, R) f4 bytes
    sharpness: Array  # (N + 1,) f4
    difference: Array  # (N + 1,) f4


class Answers(NamedTuple):
    """What was answered for each cell, and what is true: the quality of an answer that is used again for a later frame.

    Where ``labelled`` is false (label-free objective, planners) the held answer's own quality decays instead, by the
    profile's retention per frame.
    """

    given: Array  # (N + 1, B, R + 1, C) u1 class; rate R is the exit's answer
    truth: Array  # (N + 1, C) u1, 255 where a cell has no label
    labelled: bool


class Stages(NamedTuple):
    """Stage times as quantiles, seconds; the device's are already scaled to the named board."""

    head: Array  # (B, Q)
    encode: Array  # (B, R, Q)
    tail: Array  # (B, R, Q)
    signal: Array  # (Q,)


class Constants(NamedTuple):
    """Scalars of the scenario in SI units."""

    fps: float
    deadline_s: float
    window: float
    fifo: float  # 1: first in, first out: sent whenever the window is open, whatever is predicted
    frames: int
    decision_s: float
    compute_w: float  # device power above idle while it computes
    base_w: float  # always drawn: flight, idle board, radio in the connected state
    radio_w: float  # transmission above the connected state, at zero rate
    radio_w_per_bps: float
    battery_j: float
    prior_bps: float
    prior_rtt_s: float
    prior_server_s: float
    retention: float  # share of cells whose answer is the same one frame later


class Weights(NamedTuple):
    """Reward of a frame = quality * q - energy * e - bytes * b - switch * s - miss * m - latency * l."""

    quality: float
    energy_per_j: float
    per_byte: float
    switch: float
    miss: float
    latency_per_s: float


class World(NamedTuple):
    """Everything that the transition function reads; it writes only the state row and the outcome log."""

    outcomes: Outcomes
    answers: Answers
    stages: Stages
    links: LinkTable
    server: Server
    device: Board
    constants: Constants
    weights: Weights
    kind: Array  # (B,) i8
    rates: Array  # (B,) i8 number of rates
    exit_branch: Array  # (B,) i8
    thresholds: Array  # (T,) f8
    patience: Array  # (T,) f8
    grid: Array  # (B * R * T, 3) i8 the decision that each point of the full grid stands for
    flight_first: Array  # (S,) i8
    flight_count: Array  # (S,) i8


def build_world(scenario: Scenario, split: str, *, label_free: bool | None = None) -> World:
    """Load profile and links of ``split`` ("train", "validation" or "test") and lay them out.

    ``label_free`` puts confidence in the place of quality (default: as the scenario says); evaluation never does.
    """
    profile, space = scenario.profile(split), scenario.space
    first, count = _flights(profile.segment)
    free = scenario.label_free if label_free is None else label_free
    return World(
        _outcomes(profile, free),
        _answers(profile, not free),
        _stages(scenario),
        build_table(scenario.links(split)),
        build_server(scenario, split),
        build_board(scenario, split),
        _constants(scenario),
        Weights(*scenario.objective.weights()),
        np.array([_KINDS[branch.kind] for branch in space.branches], dtype=np.int64),
        space.rates_per_branch,
        space.exit_branches,
        np.array(space.thresholds, dtype=np.float64),
        np.array(space.patience, dtype=np.float64),
        space.grid,
        first,
        count,
    )


def _outcomes(profile: Profile, label_free: bool) -> Outcomes:
    exit_quality = profile.exit_confidence if label_free else profile.exit_quality()
    tail_quality = profile.tail_confidence if label_free else profile.tail_quality()
    tables = (
        exit_quality,
        profile.exit_confidence,
        tail_quality,
        profile.tail_confidence,
        profile.agreement(),
        profile.payload_bytes,
        profile.sharpness,
        profile.difference,
    )
    return Outcomes(*(_with_average(table) for table in tables))


def _answers(profile: Profile, labelled: bool) -> Answers:
    given = np.concatenate([profile.tail_prediction, profile.exit_prediction[:, :, None]], axis=2)
    truth = np.where(profile.labels < 0, UNLABELLED, profile.labels).astype(np.uint8)
    unknown = np.full_like(truth[:1], UNLABELLED)
    return Answers(np.concatenate([given, given[:1] * 0]), np.concatenate([truth, unknown]), labelled)


def _with_average(table: Array) -> Array:
    values = np.asarray(table, dtype=np.float32)
    return np.ascontiguousarray(np.concatenate([values, values.mean(axis=0, keepdims=True)]))


def _stages(scenario: Scenario) -> Stages:
    """Stage times belong to the device, not to a split: they are those of the train profile, as in a bundle."""
    profile = scenario.profile("train")

    def scaled(table: Array, factor: float) -> Array:
        return np.ascontiguousarray(np.asarray(table, dtype=np.float64) * factor)

    return Stages(
        scaled(profile.head_s, scenario.stage_scale),
        scaled(profile.encode_s, scenario.codec_scale),
        scaled(profile.tail_s, 1.0),
        scaled(profile.signal_s, scenario.codec_scale),
    )


def _constants(scenario: Scenario) -> Constants:
    priors = scenario.priors
    return Constants(
        fps=scenario.fps,
        deadline_s=scenario.deadline_s,
        window=float(scenario.window),
        fifo=1.0 if scenario.sender == "fifo" else 0.0,
        frames=scenario.frames_per_episode,
        decision_s=scenario.decision_s,
        compute_w=scenario.compute_w,
        base_w=scenario.base_w,
        radio_w=scenario.radio_w,
        radio_w_per_bps=scenario.radio_j_per_bit,
        battery_j=scenario.battery_j,
        prior_bps=priors.goodput_bps,
        prior_rtt_s=priors.rtt_s,
        prior_server_s=priors.server_s,
        retention=scenario.summary().retention,
    )


def _flights(segment: Array) -> tuple[Array, Array]:
    """Return first row and length of each run of equal segment numbers."""
    change = np.flatnonzero(np.diff(segment)) + 1
    first = np.concatenate([[0], change]).astype(np.int64)
    count = np.diff(np.concatenate([first, [len(segment)]])).astype(np.int64)
    return first, count
