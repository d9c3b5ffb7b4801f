"""The published controllers, and the module that registers each; it is imported when one of them is asked for."""

from __future__ import annotations

PUBLISHED = {
    "neurosurgeon": "published_split",
    "dads": "published_split",
    "dynamic-split": "published_split",
    "edgent": "published_exit",
    "edgent-dynamic-style": "published_change",
    "spinn-style": "published_exit",
    "dynasplit-style": "published_exit",
    "quantpipe": "published_rate",
    "ema-trigger": "published_change",
    "robust-mpc": "published_horizon",
    "lyapunov": "published_budget",
    "temporal-decisions-style": "published_temporal",
}
