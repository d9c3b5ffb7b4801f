"""Quantiles of the Beta distribution in NumPy, for Bayes-UCB on a device without SciPy.

Formulas: continued fraction DLMF 8.17.22 (https://dlmf.nist.gov/8.17) by the method of Lentz; starting point Abramowitz
and Stegun 26.2.23 and 26.5.22; improved by Halley's method, by halving the bracket where a step leaves it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TERMS = 60  # of the continued fraction: it needs about sqrt(max(a, b)), so enough to a + b of several thousand
HALLEY_STEPS = 12  # at most; two or three do but for a start that was far off
TINY, END = 1e-300, 1e-12


def log_gamma(x: Floats) -> Floats:
    """Return ln Gamma(x) of positive ``x``, same shape; relative error below 1e-12 (Stirling's series at x + 8)."""
    shifted = x + 8.0
    product = np.ones_like(x)
    for k in range(8):
        product = product * (x + k)
    inverse = 1.0 / shifted
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return np.asarray((shifted - 0.5) * np.log(shifted) - shifted + 0.5 * np.log(2 * np.pi) + series - np.log(product))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """Return the continued fraction of I_x(a, b), for x below (a + 1) / (a + b + 2)."""
    c, d = np.ones_like(x), 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, TERMS + 1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            value = value * c * d
        if m % 4 == 0 and np.all(np.abs(value - before) < 1e-13 * np.abs(value)):
            break
    return np.asarray(value)


def beta_cdf(a: Floats, b: Floats, x: Floats) -> Floats:
    """Return I_x(a, b), the distribution function of Beta(a, b) at ``x`` in (0, 1); all of one shape."""
    swap = x > (a + 1.0) / (a + b + 2.0)
    p, q, y = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1.0 - x, x)
    front = log_gamma(a + b) - log_gamma(a) - log_gamma(b) + p * np.log(y) + q * np.log1p(-y)
    lower = np.exp(front) * _fraction(p, q, y) / p
    return np.asarray(np.where(swap, 1.0 - lower, lower))


def normal_quantile(level: Floats) -> Floats:
    """Return the standard normal quantile to 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    tail = np.minimum(level, 1.0 - level)
    t = np.sqrt(-2.0 * np.log(tail))
    top = 2.515517 + t * (0.802853 + t * 0.010328)
    z = t - top / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return np.asarray(np.where(level < 0.5, -z, z))


def _first_guess(level: Floats, a: Floats, b: Floats) -> Floats:
    """Return Abramowitz and Stegun 26.5.22; their y is the upper quantile, hence the sign."""
    y = -normal_quantile(level)
    p, q = 1.0 / (2.0 * a - 1.0), 1.0 / (2.0 * b - 1.0)
    h, lam = 2.0 / (p + q), (y * y - 3.0) / 6.0
    w = y * np.sqrt(np.maximum(h + lam, 0.0)) / h - (q - p) * (lam + 5.0 / 6.0 - 2.0 / (3.0 * h))
    return np.asarray(a / (a + b * np.exp(2.0 * w)))


def beta_quantile(level: Floats | float, a: Floats, b: Floats) -> Floats:
    """Return the quantile of Beta(a, b) at ``level`` in (0, 1), same shape as ``a`` and ``b`` (both at least 1)."""
    target = np.broadcast_to(np.asarray(level, dtype=np.float64), a.shape)
    x = np.clip(_first_guess(target, a, b), END, 1.0 - END)
    constant = log_gamma(a + b) - log_gamma(a) - log_gamma(b)
    low, high = np.zeros_like(x), np.ones_like(x)
    for _ in range(HALLEY_STEPS):
        excess = beta_cdf(a, b, x) - target
        low, high = np.where(excess < 0.0, x, low), np.where(excess < 0.0, high, x)
        density = np.exp(constant + (a - 1.0) * np.log(x) + (b - 1.0) * np.log1p(-x))
        u = excess / np.maximum(density, TINY)
        bend = u * ((a - 1.0) / x - (b - 1.0) / (1.0 - x))
        following = x - u / (1.0 - 0.5 * np.minimum(1.0, bend))
        outside = (following < low) | (following > high)
        before, x = x, np.clip(np.where(outside, 0.5 * (low + high), following), END, 1.0 - END)
        if np.all(np.abs(x - before) < 1e-9):
            break
    return np.asarray(x)
