"""How far the representations of a layer are alike, which a probe that finds nothing may be due to."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
_BLOCK = 2**22  # values at a time
_NO_SPREAD = 1e-7  # of the norm: less is what float32 makes of equal values


def degeneracy(x: Array, lengths: Array) -> tuple[float, float, float]:
    """Return how far representations are alike; three zeros where all are equal.

    Args:
        x: representations, `(n, hidden_size)`.
        lengths: residues of the protein of each, `(n,)`.

    Returns:
        The mean cosine of all pairs of different rows after the mean of all was taken off, where a row that is the mean
        counts as at right angles to all; the participation ratio `(tr C)^2 / tr C^2` of their covariance `C`, which is
        `k` where they vary in `k` directions alike; and the share of their variance, over all features, that a straight
        line in the length explains.
    """
    mean, about = x.mean(0, dtype=np.float64), lengths - lengths.mean()
    n, hidden = x.shape
    gram, slopes, sums = np.zeros((hidden, hidden)), np.zeros(hidden), np.zeros(hidden)
    directed, step = 0, max(1, _BLOCK // hidden)
    for rows in (slice(first, first + step) for first in range(0, n, step)):
        centred = (x[rows] - mean).astype(x.dtype)
        gram += centred.T @ centred
        slopes += about[rows] @ centred
        norms = np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64))
        sums += np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0) @ centred
        directed += np.count_nonzero(norms)
    total = float(np.trace(gram))
    if total <= (_NO_SPREAD * float(np.linalg.norm(x))) ** 2:
        return 0.0, 0.0, 0.0
    # all pairs, without those of a row and itself
    cosine = (float(sums @ sums) - directed) / (n * (n - 1))
    explained = float(slopes @ slopes) / (float(about @ about) * total) if about.any() else 0.0
    return cosine, total**2 / float(np.vdot(gram, gram)), min(explained, 1.0)
