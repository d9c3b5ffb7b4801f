"""The fence around a device's parts: one that fails is counted, and the others go on."""

from __future__ import annotations

from collections import Counter

from adaptsplit.device_bridge.parts import Parts, QuietPart


class Failing(QuietPart):
    """Raises on every tick."""

    name = "failing"
    leaves: tuple[str, ...] = ("cmd/+",)

    def tick(self, now: float) -> None:
        """Fail."""
        raise RuntimeError("on purpose")


class Ticking(QuietPart):
    """Counts its ticks."""

    leaves: tuple[str, ...] = ("policy/desired", "cmd/+")

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self, now: float) -> None:
        """Note the time."""
        self.ticks.append(now)


def test_a_failing_part_is_counted_and_the_others_go_on() -> None:
    counts: Counter[str] = Counter()
    ticking = Ticking()
    parts = Parts([Failing(), ticking], counts)
    for now in (0.5, 1.0):
        parts.each(lambda part, now=now: part.tick(now))  # type: ignore[misc]
    assert ticking.ticks == [0.5, 1.0]
    assert counts == {"part_failing": 2}
    assert parts.leaves == ["cmd/+", "policy/desired"]
