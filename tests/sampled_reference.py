"""The sampled loss in float64 NumPy: textbook and judge, as ``reference.py`` for all else.

A token's classes are S samples, (S) for all tokens or (R,S), and its own target.  Class c is
expected e_c times among the samples and stands for 1 / e_c of its kind, so z = h W^T - log e; a
sample that is the target is left out.  Then it is the cross-entropy of S + 1 classes with the
target in the last place.
"""

from __future__ import annotations

import numpy as np
from reference import Array, float64, log_softmax


def rows_of(w: Array, samples: Array, R: int) -> Array:
    """(R,S,D), each token's samples."""
    return np.broadcast_to(w[samples], (R, samples.shape[-1], w.shape[1]))


def sampled_logits(
    h: Array, w: Array, targets: Array, samples: Array, log_expected: Array
) -> Array:
    """h(R,D), w(V,D), targets(R), samples(S) or (R,S), log_expected(V) -> z(R,S+1)."""
    z = np.einsum("rd,rsd->rs", h, rows_of(w, samples, len(h))) - log_expected[samples]
    z[targets[:, None] == samples] = -np.inf
    own = np.sum(h * w[targets], axis=1) - log_expected[targets]
    return np.hstack([z, own[:, None]])


@float64
def sampled_cross_entropy(
    h: Array, w: Array, targets: Array, samples: Array, log_expected: Array
) -> Array:
    """losses(R) in nats, 0 where the target is -1."""
    z = sampled_logits(h, w, targets, samples, log_expected)
    return np.where(targets == -1, 0.0, -log_softmax(z)[:, -1])


@float64
def sampled_cross_entropy_backward(
    h: Array, w: Array, targets: Array, samples: Array, log_expected: Array, scale: float
) -> tuple[Array, Array]:
    """dh(R,D), dw(V,D) of scale * sum(losses); rows of dw neither sampled nor targets are zero."""
    dz = np.exp(log_softmax(sampled_logits(h, w, targets, samples, log_expected)))
    dz[:, -1] -= 1
    dz *= np.where(targets == -1, 0.0, scale)[:, None]
    return sampled_products(dz, h, w, targets, samples)


def sampled_products(
    dz: Array, h: Array, w: Array, targets: Array, samples: Array
) -> tuple[Array, Array]:
    """dh(R,D), dw(V,D) from dz(R,S+1)."""
    dw = np.zeros(w.shape)
    each = np.broadcast_to(samples, dz[:, :-1].shape)
    np.add.at(dw, each, dz[:, :-1, None] * h[:, None])
    np.add.at(dw, targets, dz[:, -1:] * h)
    dh = np.einsum("rs,rsd->rd", dz[:, :-1], rows_of(w, samples, len(h)))
    return dh + dz[:, -1:] * w[targets], dw
