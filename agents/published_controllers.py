"""Registers the published controllers: importing this module makes their names known to ``build_controller``."""

from __future__ import annotations

# Importing the modules registers their controllers.
from adaptsplit.agents import published_budget as _budget  # noqa: F401
from adaptsplit.agents import published_change as _change  # noqa: F401
from adaptsplit.agents import published_exit as _exit  # noqa: F401
from adaptsplit.agents import published_horizon as _horizon  # noqa: F401
from adaptsplit.agents import published_rate as _rate  # noqa: F401
from adaptsplit.agents import published_split as _split  # noqa: F401
from adaptsplit.agents import published_temporal as _temporal  # noqa: F401

PUBLISHED = (
    "neurosurgeon",
    "dads",
    "dynamic-split",
    "edgent",
    "edgent-dynamic-style",
    "spinn-style",
    "dynasplit-style",
    "quantpipe",
    "ema-trigger",
    "robust-mpc",
    "lyapunov",
    "temporal-decisions-style",
)
