"""The gain that a fading channel holds with a given probability, when only its mean is known."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def outage_margin(probability: float, rician_k: npt.ArrayLike = 0.0) -> FloatArray:
    """Share of the mean power gain that flat fading falls short of with probability q in (0, 1).

    Under Rayleigh fading (``rician_k`` 0) the gain is exponential, the margin is -ln(1 - q); under Rician fading with
    linear factor kappa it is the q-quantile of a noncentral chi-squared variable with 2 degrees of freedom and
    noncentrality 2 kappa, over 2 (1 + kappa). Returned in the shape of ``rician_k``.
    """
    if not 0 < probability < 1:
        raise ValueError(f"outage_probability must lie in (0, 1), found {probability!r}")
    from scipy.stats import ncx2  # a command that plans nothing starts without it

    kappa = np.asarray(rician_k, dtype=np.float64)
    scattered = np.full(kappa.shape, -np.log1p(-probability))
    steady = ncx2.ppf(probability, 2, 2 * np.maximum(kappa, 1e-12)) / (2 * (1 + kappa))
    return np.where(kappa > 0, steady, scattered)
