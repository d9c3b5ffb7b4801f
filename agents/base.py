"""What a rule may know beside the observation: the context of the scenario, without the scenario itself.

A controller is built from a decision space, a profile summary and this context; all three travel inside a bundle, so
the same rule runs in the simulator and on a device. Names such as ``threshold:margin=1.5/stale_s=2`` carry parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.registry import did_you_mean

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

Kind = Literal["static", "random", "rule", "learned", "interleaved", "oracle"]


class RewardWeights(Config):
    """Weights of the objective's terms, as the rules use them to predict a reward."""

    quality: float = 1.0
    energy_per_j: float = Field(default=0.0, ge=0)
    bytes_per_kib: float = Field(default=0.0, ge=0)
    switch: float = Field(default=0.0, ge=0)
    miss: float = Field(default=0.0, ge=0)
    latency_per_s: float = Field(default=0.0, ge=0)


class ControllerContext(Config):
    """Constants of a scenario that a controller may use. Times s, rates bit/s, powers W, energy J.

    ``stage_scale`` (networks) and ``codec_scale`` (codecs, content signals) turn the profile's host times into times on
    the named device; ``decision_s`` is what a decision takes. ``compute_w`` is the power of the device's computation
    above idle, ``radio_w`` of the radio above the connected state while it sends, ``radio_j_per_bit`` the energy per
    bit beside it. The three priors hold before anything was heard.
    """

    fps: float = Field(gt=0)
    deadline_s: float = Field(gt=0)
    window: int = Field(default=2, ge=1)
    stage_scale: float = Field(default=1.0, gt=0)
    codec_scale: float = Field(default=1.0, gt=0)
    weights: RewardWeights = RewardWeights()
    decision_s: float = Field(default=0.0, ge=0)
    compute_w: float = 0.0
    radio_w: float = 0.0
    radio_j_per_bit: float = 0.0
    goodput_bps: float = Field(default=1e6, gt=0)
    rtt_s: float = Field(default=0.05, gt=0)
    server_s: float = Field(default=0.02, ge=0)


class Factory(Protocol):
    """Builds a controller; ``argument`` is what stands after the colon of its name (empty without one)."""

    def __call__(
        self, space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
    ) -> Controller:
        """Return the controller; ConfigError for an argument that it cannot use."""
        ...


def need_summary(name: str, summary: ProfileSummary | None) -> ProfileSummary:
    """Return ``summary``; ConfigError when there is none."""
    if summary is None:
        raise ConfigError(f"controller {name!r} predicts from a profile summary; give a scenario that has a profile")
    return summary


def full_name(name: str, argument: str) -> str:
    """Return ``name`` or ``name:argument``: how a controller with parameters is listed."""
    return f"{name}:{argument}" if argument else name


def parse_parameters(name: str, argument: str, known: Mapping[str, type]) -> dict[str, Any]:
    """Parse ``key=value/key=value`` into typed values; ConfigError names the wrong part and what is known."""
    parsed: dict[str, Any] = {}
    for part in argument.split("/") if argument else ():
        key, equals, text = part.partition("=")
        if not equals or key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(
                f"controller {name!r}: parameter {part!r}{hint} Known: {', '.join(sorted(known))}; write key=value"
            )
        try:
            parsed[key] = known[key](text)
        except ValueError as error:
            raise ConfigError(f"controller {name!r}: {key}={text!r} is not a {known[key].__name__}") from error
    return parsed
