"""Notice when a policy collapses to one decision while it is trained, and say what to do.

Judged is the deterministic policy on the validation episodes: the share of its most frequent decision, and the entropy
of its decisions (nats). Early in training a policy may well hold one decision, so there is a warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptsplit.agents.validation import COLLAPSED_SHARE, ValidationPoint

ENTROPY_FLOOR = 0.1  # nats: one decision on 98 % of the frames and another on the rest; chosen by us
RECOVERED_SHARE = 0.8  # of the most frequent decision; lower than what is a collapse, so that nothing flickers
COLLAPSED = "the policy has collapsed to one decision"
AGAIN = "the policy has collapsed again"
WARM_UP = 0.3  # share of the training before which nothing is said; chosen by us


class CollapseWatch:
    """Names a collapse once, and its end once; what to do is said the first time. ``collapsed`` is the latest state.

    ``before`` are the warnings of the run so far, when it is resumed.
    """

    def __init__(self, steps: int, before: Sequence[str] = (), warm_up: float = WARM_UP) -> None:
        self._from = warm_up * steps
        self._said = any(text.startswith(COLLAPSED) for text in before)
        self._named = bool(before) and before[-1].startswith((COLLAPSED, AGAIN))
        self.collapsed = False

    def __call__(self, point: ValidationPoint) -> str | None:
        """Return what is to be said of a validation: None nearly always."""
        self.collapsed = point.steps >= self._from and is_collapsed(point)
        if self.collapsed and not self._named:
            said, self._said, self._named = self._said, True, True
            return f"{AGAIN} at {point.steps} frames ({point.top})" if said else describe(point)
        if self._named and not is_collapsed(point) and point.top_share < RECOVERED_SHARE:
            self._named = False
            return f"the policy recovered from its collapse at {point.steps} frames: {point.distinct} decisions now"
        return None


def is_collapsed(point: ValidationPoint) -> bool:
    """Tell whether a validated policy is hardly better than its most frequent decision, as a static one."""
    return point.top_share > COLLAPSED_SHARE or point.entropy < ENTROPY_FLOOR


def describe(point: ValidationPoint) -> str:
    """Return the warning of a collapse: what was seen and what to do."""
    return (
        f"{COLLAPSED} at {point.steps} frames ({point.top} on {point.top_share:.0%} of the "
        f"frames, entropy {point.entropy:.2f}), no better than that static one; train longer, or raise ent_coef "
        "(exploration_final_eps of a Q-learner) with --set; if the informed oracle gains nothing over the best static "
        "decision either (adaptsplit scenarios diagnose), adapting cannot pay in this scenario"
    )
