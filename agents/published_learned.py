"""Published controllers that are trained: what ``adaptsplit train`` accepts beside the agents of the libraries.

Each is a function ``(scenario, out, steps, seed, progress) -> result`` with the fields of ``Trained``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from adaptsplit.agents.validation import ValidationPoint
    from adaptsplit.scenario import Scenario

METHODS = {
    "navisplit-style": "adaptsplit.agents.gate_training:train_gate",
    "edgerl-style": "adaptsplit.agents.edgerl:train_edgerl",
}


class Trained(Protocol):
    """What a training came to."""

    @property
    def steps(self) -> int:
        """Frames of training."""
        ...

    @property
    def seconds(self) -> float:
        """Duration."""
        ...

    @property
    def best(self) -> ValidationPoint:
        """The validation of the policy that was kept."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about it."""
        ...


class Method(Protocol):
    """Trains into the run folder ``out``."""

    def __call__(
        self, scenario: Scenario, out: Path | str, steps: int | None = None, seed: int = 0, progress: bool = True
    ) -> Trained:
        """Train; ConfigError for a folder in use."""
        ...


def method(name: str) -> Method:
    """Return the training of a published method; KeyError for another name."""
    module, _, attribute = METHODS[name].partition(":")
    return cast("Method", getattr(importlib.import_module(module), attribute))
