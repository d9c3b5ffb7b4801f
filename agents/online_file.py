"""The file of an online learner, ``policy.npz`` with schema "adaptsplit.online/1": the frozen network, the features,
and what has been learned so far. It needs no profile summary, so a device loads it as any other policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents.base import RewardWeights
from adaptsplit.agents.online import OnlineController
from adaptsplit.agents.online_model import OnlineModel
from adaptsplit.agents.online_state import Deployment, Lessons, OnlineParameters
from adaptsplit.agents.online_view import View, ViewScale
from adaptsplit.agents.policy import Activation, Head, PolicyController, PolicyNet, layer_arrays, take_layers
from adaptsplit.agents.policy_file import Arrays, common_meta, space_of, write_policy
from adaptsplit.config import Config, parse
from adaptsplit.errors import AdaptsplitError, DataError

SCHEMA = "adaptsplit.online/1"
MAX_FEATURES = 1024
SCALE_BOUNDS = {
    "deadline_s": (1e-6, 1e6),
    "goodput_bps": (1.0, 1e15),
    "rtt_s": (1e-9, 1e6),
    "server_s": (0.0, 1e6),
    "idle_s": (0.0, 1e6),
}
"""What a file may say of the view: far wider than any scenario, so that no decision meets log(0) or an infinity."""
OWN = ("view", "psi", "hidden", "scale", "theta", "covariance")


class OnlineMeta(Config):
    """What the file says about itself."""

    schema_: Literal["adaptsplit.online/1"] = Field(alias="schema")
    agent: str
    observation: str
    space: dict[str, Any]
    head: Head
    activation: Activation
    parameters: OnlineParameters
    weights: RewardWeights
    fps: float = Field(ge=1e-3, le=1e6)
    probe: int = Field(ge=0)
    view: ViewScale
    taught: int = Field(ge=0)


def save_online(path: Path, controller: OnlineController) -> None:
    """Write network, features and lessons."""
    model, deployment, lessons = controller.model, controller.deployment, controller.lessons
    meta = common_meta(SCHEMA, controller.name, controller.space) | {
        "head": model.net.head,
        "activation": model.net.activation,
        "parameters": controller.parameters.model_dump(),
        "weights": deployment.weights.model_dump(),
        "fps": deployment.fps,
        "probe": deployment.probe,
        "view": model.view.scale.model_dump(),
        "taught": lessons.taught,
    }
    arrays: Arrays = layer_arrays(model.net.layers)
    own = (model.view.table, model.psi, model.hidden, model.scale, lessons.theta, lessons.covariance)
    write_policy(path, meta, arrays | dict(zip(OWN, own, strict=True)))


def parse_online(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> OnlineController:
    """Build the controller of a file; DataError for anything that does not fit together."""
    try:
        said = parse(OnlineMeta, meta, where)
        space = space_of(meta, where)
        own = {key: arrays[key] for key in OWN}
        layers = take_layers({key: array for key, array in arrays.items() if key not in OWN}, where)
        net = PolicyNet(layers, said.activation, said.head)
        PolicyController(said.agent, space, net)
        for key, array in own.items():
            _check(key, array)
        _check_scale(said.view)
        view = View(own["view"], said.view)
        model = OnlineModel(space, net, view, own["psi"], own["hidden"], own["scale"], said.parameters.tau)
        lessons = Lessons(own["theta"], own["covariance"], said.taught)
        check_lessons(lessons, model.size)
    except (LookupError, ValueError, TypeError, ArithmeticError, AdaptsplitError) as error:
        raise DataError(f"{where}: not an online policy of ours ({error}); make it again from its run") from error
    if said.probe >= len(space.table):
        raise DataError(f"{where}: probe {said.probe}; the table has {len(space.table)} decisions; make it again")
    deployment = Deployment(said.weights, said.fps, said.probe)
    return OnlineController(name or said.agent, model, deployment, said.parameters, lessons)


def _check_scale(scale: ViewScale) -> None:
    """DataError unless its logarithms and quotients are finite numbers."""
    for key, (low, high) in SCALE_BOUNDS.items():
        if not low <= getattr(scale, key) <= high:
            raise DataError(f"view: {key} {getattr(scale, key):g}; expected {low:g} to {high:g}")


def _check(key: str, array: NDArray[Any]) -> None:
    wanted = np.float32 if key == "view" else np.float64
    if array.dtype != wanted or not np.isfinite(array).all() or max(array.shape, default=0) > MAX_FEATURES * 8:
        raise DataError(f"array {key!r}: {array.dtype} {array.shape}; expected finite {np.dtype(wanted)}")


def check_lessons(lessons: Lessons, size: int) -> None:
    """DataError unless theta and covariance are of ``size`` features, finite, and the covariance is one."""
    theta, covariance = lessons.theta, lessons.covariance
    if theta.shape != (size,) or covariance.shape != (size, size) or size > MAX_FEATURES:
        raise DataError(f"theta {theta.shape}, covariance {covariance.shape}; expected {size} features")
    values = np.linalg.eigvalsh(0.5 * (covariance + covariance.T))
    if not np.allclose(covariance, covariance.T, atol=1e-6) or values.min() < -1e-6 or values.max() > 1.0 + 1e-6:
        raise DataError(f"covariance with eigenvalues {values.min():.3g} to {values.max():.3g}; expected 0 to 1")
