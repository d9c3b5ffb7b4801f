"""adaptsplit: adaptive control of split neural networks at the edge.

Per frame a controller chooses the head branch, the compression rate and the exit threshold. This package trains such
controllers on replayed measurements, evaluates them against every static decision and the oracles, and runs them on
devices over MQTT. ``import adaptsplit`` is light; ``import adaptsplit.envs`` registers the Gymnasium environments.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AdaptsplitError": "adaptsplit.errors",
    "Decision": "adaptsplit.decision",
    "DecisionSpace": "adaptsplit.decision",
    "cut_points": "adaptsplit.models.split",
    "evaluate": "adaptsplit.evaluation.evaluate",
    "load_bundle": "adaptsplit.bundle",
    "load_scenario": "adaptsplit.scenario",
    "make_controller": "adaptsplit.agents",
    "split": "adaptsplit.models.split",
    "train": "adaptsplit.agents.training",
}
__all__ = [*sorted(_EXPORTS), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'adaptsplit' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
