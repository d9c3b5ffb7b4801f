"""Everything that chooses decisions.

This module and the light controllers (static, random, rules, learned policies in NumPy) need only the base install;
training (``adaptsplit.agents.training``) needs the ``train`` extra.
"""

from __future__ import annotations

from adaptsplit.agents.base import ControllerContext, Factory, RewardWeights
from adaptsplit.agents.build import build_controller, kind_of, make_controller
from adaptsplit.agents.policy import PolicyController, PolicyNet, load_policy, save_policy
from adaptsplit.agents.prediction import DecisionModel
from adaptsplit.agents.rules import DeadlineRule, ThresholdRule
from adaptsplit.agents.static import InterleavedController, RandomController, StaticController, static_grid

__all__ = [
    "ControllerContext",
    "DeadlineRule",
    "DecisionModel",
    "Factory",
    "InterleavedController",
    "PolicyController",
    "PolicyNet",
    "RandomController",
    "RewardWeights",
    "StaticController",
    "ThresholdRule",
    "build_controller",
    "kind_of",
    "load_policy",
    "make_controller",
    "save_policy",
    "static_grid",
]
