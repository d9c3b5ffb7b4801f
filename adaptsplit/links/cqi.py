"""From the SINR of a link to its channel quality indicator (CQI) and the bits per second and hertz that it carries."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptsplit.errors import ConfigError
from adaptsplit.links.trace import Array

CqiSet = Literal["A", "B", "C"]

# bit/s/Hz of CQI 1 to 15: 3GPP TS 36.213 table 7.2.3-1 (the same as TS 38.214 table 5.2.2.1-2); CQI 0 is out of range.
SPECTRAL_EFFICIENCY = (
    *(0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141),
    *(2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547),
)
# Least SINR (dB) of CQI 1 to 15. No standard fixes it. A: the set for a block error rate of 10 % that most public
# simulators share. B: the rule of ns-3 (Piro), SINR = (2^SE - 1) * -ln(5 BER) / 1.5 with BER 5e-5, to 0.1 dB. C: a set
# credited to the NR examples of MathWorks, as one public simulator has it.
THRESHOLDS_DB: dict[str, tuple[float, ...]] = {
    "A": (-6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7),
    "B": (-2.1, -0.1, 2.2, 4.6, 6.7, 8.4, 9.9, 11.8, 13.8, 14.9, 17.0, 18.9, 20.9, 22.7, 24.1),
    "C": (-1.89, -0.82, 0.95, 2.95, 4.90, 7.39, 8.89, 11.02, 13.32, 14.68, 16.62, 18.91, 21.58, 24.88, 29.32),
}


def cqi_from_sinr(sinr_db: ArrayLike, cqi_set: CqiSet = "A") -> NDArray[np.int64]:
    """Return the greatest CQI (0 to 15) whose threshold ``sinr_db`` (dB, any shape) reaches; 0 is no link.

    >>> cqi_from_sinr([-6.8, -6.7, 0.0, 40.0]).tolist()
    [0, 1, 3, 15]
    """
    if cqi_set not in THRESHOLDS_DB:
        raise ConfigError(f"CQI set {cqi_set!r}, expected A, B or C")
    found: NDArray[np.int64] = np.searchsorted(THRESHOLDS_DB[cqi_set], np.asarray(sinr_db, dtype=np.float64), "right")
    return found


def spectral_efficiency(cqi: ArrayLike) -> Array:
    """Return bit/s/Hz of each CQI (0 to 15, any shape); 0 for CQI 0."""
    index = np.asarray(cqi, dtype=np.int64)
    if index.size and not (index.min() >= 0 and index.max() <= 15):
        raise ConfigError(f"CQI {int(index.min())} to {int(index.max())}, expected 0 to 15")
    return np.array((0.0, *SPECTRAL_EFFICIENCY))[index]
