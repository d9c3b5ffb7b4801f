"""What a device's session and its birth message take from the bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adaptsplit.bundle import MODEL_FOLDER, Bundle
from adaptsplit.device_bridge.actions import SessionConfig
from adaptsplit.device_bridge.camera import ShotSource
from adaptsplit.device_bridge.control import Birth
from adaptsplit.device_bridge.flight import Energy
from adaptsplit.device_bridge.messages import model_id
from adaptsplit.device_bridge.telemetry import TelemetrySource
from adaptsplit.observation import schema_hash
from adaptsplit.runtime.folder import MODEL_FILE


def session_config(bundle: Bundle, session: bytes, frames: int | None) -> SessionConfig:
    """Return the constants of a session from the bundle's context."""
    c = bundle.context
    return SessionConfig(
        session=session,
        space=bundle.space,
        fps=c.fps,
        deadline_s=c.deadline_s,
        window=c.window,
        frames=frames,
        prior_bps=c.goodput_bps,
        prior_rtt_s=c.rtt_s,
        prior_server_s=c.server_s,
        retention=bundle.summary.retention,
        model=model_id(bundle.manifest.files[f"{MODEL_FOLDER}/{MODEL_FILE}"].sha256, bundle.space),
        energy=Energy(c.compute_w, c.radio_w, c.radio_j_per_bit),
    )


def describe(bundle: Bundle, controllers: Sequence[str]) -> Birth:
    """Return a device's self-description."""
    context = bundle.context
    return Birth(
        library=bundle.manifest.library,
        bundle=bundle.digest,
        controllers=list(controllers)[:64],
        observation=schema_hash(),
        branches=[branch.name for branch in bundle.space.branches],
        classes=list(bundle.classes),
        fps=context.fps,
        deadline_s=context.deadline_s,
        window=context.window,
    )


def run_header(
    bundle: Bundle,
    controllers: Sequence[str],
    block: int,
    pace: str,
    camera: ShotSource,
    battery: TelemetrySource,
) -> dict[str, Any]:
    """Return what the log's first line says of a run, so that it can be played again in the simulator."""
    own, context = bundle.controller.name, bundle.context
    return {
        "scenario": bundle.manifest.scenario,
        "controllers": ["bundle" if name == own else name for name in controllers],
        "bundle_controller": own,
        "block": block,
        "fps": context.fps,
        "deadline_s": context.deadline_s,
        "decision_s": context.decision_s,
        "pace": pace,
        "first": camera.first,
        "frames": camera.frames,
        "battery": {name: getattr(battery, name, math.nan) for name in ("capacity_j", "start")},
    }
