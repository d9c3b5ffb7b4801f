"""What a policy store keeps in ``state.json``: which slot decides, which is on trial, how the last job ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adaptsplit.config import Config

Slot = str
_SLOT = r"^[0-9a-f]{64}$"


class Result(Config):
    """How the last job ended."""

    job: str = Field(max_length=32)
    version: int
    status: Literal["SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK"]
    reason: str = Field(default="", max_length=64)
    detail: str = Field(default="", max_length=1000)


class Rates(Config):
    """How a policy did, per frame: guard trips, decisions of the recovery, frames without an answer."""

    trips: float = Field(default=0.0, ge=0)
    recovered: float = Field(default=0.0, ge=0)
    misses: float = Field(default=0.0, ge=0)


class Trial(Config):
    """A policy on trial: ``attempts`` processes have begun to run it; ``before`` is what it is held against."""

    slot: Slot = Field(pattern=_SLOT)
    job: str = Field(max_length=32)
    version: int
    attempts: int = Field(ge=0)
    before: Rates = Rates()


class StoreState(Config):
    """The content of ``state.json``. ``refused`` is the version that was rolled back last."""

    schema_: Literal["adaptsplit.policy-store/1"] = Field(default="adaptsplit.policy-store/1", alias="schema")
    current: Slot | None = Field(default=None, pattern=_SLOT)
    previous: Slot | None = Field(default=None, pattern=_SLOT)
    trial: Trial | None = None
    refused: int = 0
    last: Result | None = None
