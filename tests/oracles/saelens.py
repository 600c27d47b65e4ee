"""Slow, obvious float64 reference for what SAELens makes of activations, from the tensors as they are in its files.

W_enc [d,F], W_dec [F,D] and b_dec [D] of SAEs (D = d) and transcoders, with what each architecture has beside: b_enc
[F]; threshold [F] (jumprelu); b_gate, b_mag, r_mag [F] (gated). A matching pursuit SAE has no W_enc.
Shapes: n tokens, d model width, D width of the output, F features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import FloatArray
from .tree import largest

STD_EPS = 1e-5


def saelens_forward(
    cfg: Mapping[str, Any], tensors: Mapping[str, ArrayLike], x: ArrayLike, scale: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Codes [n,F] and reconstructions [n,D] of activations x [n,d].

    scale: factor on activations that was not folded into the weights.
    """
    w = {name: np.array(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    raw = np.array(x, dtype=np.float64)
    transcoder = "transcoder" in cfg["architecture"]
    subtracted = cfg.get("apply_b_dec_to_input", True) and not transcoder
    codes, outputs = [], []
    for row in raw:
        mean, std = statistics(row, cfg.get("normalize_activations", "none"), scale)
        inside = (row - mean) / (std + (STD_EPS if cfg.get("normalize_activations") == "layer_norm" else 0))
        if subtracted:
            inside = inside - w["b_dec"]
        code = encoded(cfg, w, inside)
        shares = code.copy()
        if cfg.get("rescale_acts_by_decoder_norm"):
            shares = shares / np.sqrt((w["W_dec"] ** 2).sum(1))
        out = shares @ w["W_dec"]
        if cfg["architecture"] != "matching_pursuit" or subtracted:
            out = out + w["b_dec"]
        codes.append(code)
        outputs.append(out if transcoder else out * std + mean)
    return np.array(codes), np.array(outputs)


def statistics(row: FloatArray, how: str, scale: float) -> tuple[float, float]:
    """Mean and deviation with which a token [d] is normalized, the deviation without its epsilon."""
    d = len(row)
    if how == "layer_norm":
        mean = row.sum() / d
        return mean, np.sqrt(((row - mean) ** 2).sum() / (d - 1))
    if how == "constant_norm_rescale":
        return 0.0, np.sqrt((row**2).sum()) / np.sqrt(d)
    return 0.0, 1.0 / scale


def encoded(cfg: Mapping[str, Any], w: Mapping[str, FloatArray], inside: FloatArray) -> FloatArray:
    """Code [F] of a token [d] that is normalized and has b_dec taken off, where that is done."""
    kind = cfg["architecture"]
    if kind == "matching_pursuit":
        return pursued(cfg, w["W_dec"], inside)
    if kind == "gated":
        product = inside @ w["W_enc"]
        magnitude = np.maximum(inside @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
        return np.where(product + w["b_gate"] > 0, magnitude, 0.0)
    h = inside @ w["W_enc"] + w["b_enc"]
    if cfg.get("rescale_acts_by_decoder_norm"):
        h = h * np.sqrt((w["W_dec"] ** 2).sum(1))
    if kind == "topk":
        code = np.zeros_like(h)
        for i in largest(h, cfg["k"]):
            code[i] = max(h[i], 0.0)
        return code
    if "topk_threshold" in w:
        return np.where(h > w["topk_threshold"], np.maximum(h, 0), 0.0)
    threshold = w["threshold"] if "jumprelu" in kind else np.zeros_like(h)
    return np.where(h > threshold, np.maximum(h, 0), 0.0)


def pursued(cfg: Mapping[str, Any], atoms: FloatArray, inside: FloatArray) -> FloatArray:
    """Code [F] of a token [d] with the rows of atoms [F,d], until it is near enough or its support stays the same."""
    code, residual = np.zeros(len(atoms)), inside.copy()
    for _ in range(cfg["max_iterations"] or len(inside)):
        products = np.maximum(atoms @ residual, 0)
        best = int(np.argmax(products))
        before = set(np.flatnonzero(code).tolist())
        code[best] += products[best]
        residual = residual - products[best] * atoms[best]
        if set(np.flatnonzero(code).tolist()) == before:
            break
        if cfg["residual_threshold"] > 0 and np.sqrt((residual**2).sum()) < cfg["residual_threshold"]:
            break
    return code
