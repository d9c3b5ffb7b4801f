"""Fitting what exit rules need to know: a correctness predictor, and the weights of a cascade.

Plain numpy on recorded answers; the rules are in ``adaptsplit.runtime.exits``, thresholds in
``adaptsplit.models.exits_tune``. Letters as there: E exits, n answers (cells or frames), K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaptsplit.runtime.exits import TINY, Cascade, Correctness, Floats, Ints, softmax64, statistics

RIDGE = 1e-3
"""Penalty on squared (standardised) weights, per answer: keeps separable data finite (ours)."""
NO_BIAS = 1e9
"""Penalty that keeps biases at zero."""
NEWTON_STEPS = 30


def fit_correctness(probabilities: NDArray[np.floating], right: NDArray[np.bool_]) -> Correctness:
    """Fit the logistic regression of ``right`` (n,) on the statistics of probabilities (n, K), by Newton's method."""
    features = statistics(probabilities)
    mean, spread = features.mean(0), np.maximum(features.std(0), 1e-6)
    x = np.concatenate([(features - mean) / spread, np.ones((len(features), 1))], axis=1)
    w = np.zeros(x.shape[1])
    penalty = RIDGE * np.eye(x.shape[1])
    penalty[-1, -1] = 1e-6
    for _ in range(NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-(x @ w).clip(-50, 50)))
        gradient = x.T @ (p - right) / len(x) + penalty @ w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x / len(x) + penalty, gradient)
        w -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), TINY))
    weights = w[:-1] / spread
    return Correctness(tuple(float(v) for v in weights), float(w[-1] - weights @ mean))


def fit_cascade(probabilities: NDArray[np.floating], labels: Ints, *, bias: bool = True) -> Cascade:
    """Fit the weights and biases of every exit's ensemble: probabilities (E, n, K), labels (n,).

    Each ensemble minimises its own negative log-likelihood, with weights that are not negative, as in the paper. The
    loss is convex in weights and biases: Newton's method, and a weight that turns negative is fixed at zero. A bias per
    class learns how frequent the classes are here: ``bias=False`` where they differ elsewhere.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    fitted = [_fit_ensemble(logs[: e + 1], labels, bias) for e in range(len(logs))]
    return Cascade(
        tuple(tuple(float(v) for v in w) for w, _ in fitted), tuple(tuple(float(v) for v in b) for _, b in fitted)
    )


def _fit_ensemble(logs: Floats, labels: Ints, bias: bool) -> tuple[Floats, Floats]:
    members = len(logs)
    active = np.ones(members, bool)
    while True:
        parameters = _newton(logs[active], labels, RIDGE if bias else NO_BIAS)
        weights = parameters[: active.sum()]
        if (weights >= 0).all() or active.sum() == 1:
            break
        active[np.flatnonzero(active)[int(weights.argmin())]] = False
    full = np.zeros(members)
    full[active] = weights.clip(0.0)
    return full, parameters[len(weights) :]


def _newton(logs: Floats, labels: Ints, bias_penalty: float) -> Floats:
    """Minimise the NLL over (m weights, K biases), from the geometric mean; damped Newton, at most 30 steps."""
    members, count, classes = logs.shape
    design = np.concatenate([logs.transpose(1, 2, 0), np.broadcast_to(np.eye(classes), (count, classes, classes))], 2)
    target = np.eye(classes)[labels]
    w = np.concatenate([np.full(members, 1.0 / members), np.zeros(classes)])
    ridge = np.diag([1e-3 * RIDGE] * members + [bias_penalty] * classes)
    loss = _cascade_loss(design, labels, w, ridge)
    for _ in range(NEWTON_STEPS):
        p = softmax64(design @ w)
        gradient = np.einsum("nkp,nk->p", design, p - target, optimize=True) / count + ridge @ w
        centred = design - np.einsum("nkp,nk->np", design, p)[:, None]
        hessian = np.tensordot(centred * p[..., None], centred, axes=((0, 1), (0, 1))) / count + ridge
        step = np.linalg.solve(hessian, gradient)
        share = 1.0
        while share > 1e-4 and _cascade_loss(design, labels, w - share * step, ridge) > loss:
            share /= 2
        w = w - share * step
        before, loss = loss, _cascade_loss(design, labels, w, ridge)
        if before - loss < 1e-10:
            break
    return w


def _cascade_loss(design: Floats, labels: Ints, w: Floats, ridge: Floats) -> float:
    p = softmax64(design @ w)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(p, TINY)).mean() + 0.5 * w @ ridge @ w)
