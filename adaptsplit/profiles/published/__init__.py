"""Split tables from the literature as profiles: compare with published systems without a model of one's own.

Each table is one YAML file in ``tables``. It says of every fact where it was measured, or by what model it was filled.
"""

from adaptsplit.profiles.published.build import to_profile
from adaptsplit.profiles.published.library import (
    PREFIX,
    SEEDS,
    no_network,
    published_names,
    published_profile,
    published_table,
    write_published,
)
from adaptsplit.profiles.published.plans import Plan, best_plan, plans
from adaptsplit.profiles.published.table import PublishedTable, load_table

__all__ = [
    "PREFIX",
    "SEEDS",
    "Plan",
    "PublishedTable",
    "best_plan",
    "load_table",
    "no_network",
    "plans",
    "published_names",
    "published_profile",
    "published_table",
    "to_profile",
    "write_published",
]
