"""The decision space of the reference model."""

from __future__ import annotations

from adaptsplit.decision import BranchSpec

SPLIT_CODECS = ("q2c-zstd", "q3c-zstd", "q4c-zstd", "q6c-zstd")
IMAGE_CODECS = ("webp-10", "webp-30", "webp-50", "webp-75", "jpeg-75")


def reference_branches(
    split: tuple[str, ...] = ("stem", "shallow", "mid", "deep"), *, fallback: str | None = None
) -> tuple[BranchSpec, ...]:
    """Split branches (cheapest first), ``offload`` with the exit of ``fallback`` (default: the first), ``local``."""
    heads = tuple(BranchSpec(name, "split", SPLIT_CODECS) for name in split)
    return (
        *heads,
        BranchSpec("offload", "offload", IMAGE_CODECS, exit=fallback or split[0]),
        BranchSpec("local", "local"),
    )
