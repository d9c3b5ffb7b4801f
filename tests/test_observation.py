"""The observation of a device is the simulator's, to the last bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from adaptsplit import estimators as est
from adaptsplit import observation as obs


@pytest.mark.parametrize("seed", range(3))
def test_a_device_s_row_is_observe_and_normalise_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = np.zeros((obs.SIZE, 2), dtype=bool)
    for _ in range(1500):
        tracker = rng.normal(0.0, 1.0, est.TRACKER_SIZE) * 10.0 ** rng.integers(-5, 9, est.TRACKER_SIZE)
        tracker[rng.random(est.TRACKER_SIZE) < 0.1] = np.nan
        tracker[rng.random(est.TRACKER_SIZE) < 0.05] = -np.inf
        tracker[est.GOODPUT] = abs(rng.normal()) * 1e6 + 1.0
        now, wait, sharpness, difference = (rng.random(4) * 10.0 ** rng.integers(-3, 3)).tolist()
        signals = now, wait, 1.0, sharpness, difference
        raw, expected = np.empty(obs.SIZE), np.empty(obs.SIZE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a device's log must not fill with numpy's remarks
            row = obs.observation_row(tracker, *signals)
        obs.observe(tracker.tolist(), *signals, raw)
        obs.normalise(raw, expected)
        assert row.dtype == np.float32
        assert row.tolist() == expected.astype(np.float32).tolist()
        seen |= np.stack([row == 0.0, (row > 0.0) & (row < 1.0)], axis=1)
    assert seen[:, 0].sum() > 25  # the corners were met, and the inside, too
    assert seen[:, 1].sum() > 25
