"""What the device's session is configured with, and what it asks to be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.flight import NO_ENERGY, Energy, Prediction
from adaptsplit.device_bridge.messages import FrameMessage, Heartbeat
from adaptsplit.outcome import Outcomes

Observation = NDArray[np.float32]
Grader = Callable[[int, Prediction], float]
"""(frame, prediction) -> fraction of cells right; NaN without labels."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Constants of a session. ``frames`` None runs until ``finish``; the three priors hold before anything was heard.
    ``retention`` is what an answer that is used again keeps of its confidence per frame (``ProfileSummary``).

    A message no longer counts against the window after ``lost_after_s`` without acknowledgement, or when
    ``silent_beats`` heartbeats sent after it (and after the last acknowledgement) have been answered: the link works,
    so it is lost. A result may come until ``give_up_s`` after the deadline, then it counts as never. ``model`` names
    the networks in frame messages (``edge_tail.model_id``); empty leaves them unnamed.
    """

    session: bytes
    space: DecisionSpace
    fps: float
    deadline_s: float
    window: int = 2
    frames: int | None = None
    prior_bps: float = 1e6
    prior_rtt_s: float = 0.05
    prior_server_s: float = 0.02
    retention: float = 1.0
    energy: Energy = NO_ENERGY
    lost_after_s: float = 10.0
    silent_beats: int = 3
    give_up_s: float = 10.0
    model: bytes = b""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the device believes of its link; ``edge`` is online, offline or unknown."""

    frame: int
    goodput_bps: float
    rtt_s: float
    unacked: int
    edge: Literal["online", "offline", "unknown"]


@dataclass(frozen=True, slots=True)
class Look:
    """Compute the content signals of a frame, then call ``looked``."""

    frame: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the controller, then call ``decided``. ``observation`` is (D,) float32."""

    frame: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Run:
    """Run head and exit (or the full model of a local branch), then call ``ran``."""

    frame: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode the features or the image, then call ``encoded``."""

    frame: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Send:
    """Publish on the data plane."""

    message: FrameMessage


@dataclass(frozen=True, slots=True)
class Beat:
    """Publish on the control connection."""

    message: Heartbeat


@dataclass(frozen=True, slots=True)
class Settled:
    """A frame has ended; ``outcome`` is one record, ``times`` are of its stages (``Flight.times``)."""

    frame: int
    outcome: Outcomes
    times: Mapping[str, float] = field(default_factory=dict)


Action: TypeAlias = Look | Decide | Run | Encode | Send | Beat | Settled
