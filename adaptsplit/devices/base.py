"""What every preset has: an id, its source, and notes on what was measured, derived or assumed."""

from __future__ import annotations

from pydantic import Field

from adaptsplit.config import Config

MEGA = 1e6


class Preset(Config):
    """What every preset has: an id, notes on how its numbers came about, and their source."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    notes: str = ""
    source: str = Field(min_length=1)
