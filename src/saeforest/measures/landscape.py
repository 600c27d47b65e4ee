"""Losses of a parent and a child that describe one concept, as functions of three cosines (Tree SAE paper, App. H).

A parent and its child, with unit decoder vectors d_p and d_c, fire with alpha and beta times the strength of the
concept, whose unit direction is d*. In terms of S_p = d_p . d*, S_c = d_c . d* and k = d_p . d_c, the multi-level
loss of a Tree SAE and the loss of an ordinary SAE are

    L1 = |alpha d_p - d*|^2 + |alpha d_p + beta d_c - d*|^2
       = 2 alpha^2 + beta^2 + 2 - 4 alpha S_p - 2 beta S_c + 2 alpha beta k                     Eq. 11
    L2 = |alpha d_p + beta d_c - d*|^2
       = alpha^2 + beta^2 + 1 - 2 alpha S_p - 2 beta S_c + 2 alpha beta k

Minimized over alpha and beta, approximately (for k^2 ~ 0) and exactly, they are

    L1*  ~  2 - 2 S_p^2 - S_c^2 + 2 S_p S_c k                                                   Eq. 12
    L1*  =  2 - (4 S_p^2 + 2 S_c^2 - 4 S_p S_c k) / (2 - k^2)
    L2*  ~  1 - S_p^2 - S_c^2 + 2 S_p S_c k                                                     Eq. 13
    L2*  =  1 - (S_p^2 + S_c^2 - 2 S_p S_c k) / (1 - k^2)

As in the paper, alpha and beta may be any numbers, although activations are never negative. All arguments are
numbers or arrays that broadcast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Number = float | NDArray[np.float64]


def l1(alpha: Number, beta: Number, s_p: Number, s_c: Number, k: Number) -> Number:
    """The multi-level loss (Eq. 11)."""
    return 2 * alpha**2 + beta**2 + 2 - 4 * alpha * s_p - 2 * beta * s_c + 2 * alpha * beta * k


def l2(alpha: Number, beta: Number, s_p: Number, s_c: Number, k: Number) -> Number:
    """The loss of an ordinary SAE."""
    return alpha**2 + beta**2 + 1 - 2 * alpha * s_p - 2 * beta * s_c + 2 * alpha * beta * k


def l1_converged(s_p: Number, s_c: Number, k: Number) -> Number:
    """The minimum of the multi-level loss, as the paper approximates it (Eq. 12)."""
    return 2 - 2 * s_p**2 - s_c**2 + 2 * s_p * s_c * k


def l2_converged(s_p: Number, s_c: Number, k: Number) -> Number:
    """The minimum of an ordinary SAE's loss, as the paper approximates it (Eq. 13)."""
    return 1 - s_p**2 - s_c**2 + 2 * s_p * s_c * k


def l1_minimum(s_p: Number, s_c: Number, k: Number) -> Number:
    """The exact minimum of the multi-level loss. Raises ValueError unless |k| <= 1."""
    if not np.all(np.abs(k) <= 1):
        raise ValueError(f"k = {k}: expected a cosine, -1 to 1")
    return 2 - (4 * s_p**2 + 2 * s_c**2 - 4 * s_p * s_c * k) / (2 - k**2)


def l2_minimum(s_p: Number, s_c: Number, k: Number) -> Number:
    """The exact minimum of an ordinary SAE's loss. Raises ValueError unless |k| < 1: at 1 the minimum is not unique."""
    if not np.all(np.abs(k) < 1):
        raise ValueError(f"k = {k}: expected the cosine of two different directions, between -1 and 1")
    return 1 - (s_p**2 + s_c**2 - 2 * s_p * s_c * k) / (1 - k**2)


def possible(s_p: Number, s_c: Number, k: Number) -> NDArray[np.bool_]:
    """Whether three unit vectors with these cosines exist, i.e. the determinant of their Gram matrix is not negative.

    This determinant is (1 - k^2) times the exact L2*, so a point is impossible where L2* would be negative.
    """
    return np.asarray(1 + 2 * s_p * s_c * k - s_p**2 - s_c**2 - k**2 >= 0)
