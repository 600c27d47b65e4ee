"""Checks that the configurations of several systems share."""

from __future__ import annotations

from ..errors import InputError

#: The kernels number features by 32-bit integers.
MOST_FEATURES = 2**31 - 1


def check_sizes(sizes: tuple[int, ...], k: tuple[int, ...], what: str = "layer {}") -> None:
    """Raise InputError unless every layer has at least one feature, and a k from 1 to its number of features.

    what: how messages name a layer.
    """
    if not sizes or min(sizes) < 1:
        raise InputError(
            f"sae.layer_sizes {list(sizes)}: expected at least one layer, each of 1 or more features"
        )
    if sum(sizes) > MOST_FEATURES:
        raise InputError(f"sae.layer_sizes: {sum(sizes):,} features; expected at most {MOST_FEATURES:,}")
    if len(k) != len(sizes):
        raise InputError(
            f"sae.k_per_layer {list(k)} has {len(k)} entries but sae.layer_sizes {list(sizes)} has {len(sizes)}; "
            "give one k for each layer"
        )
    for layer, (size, active) in enumerate(zip(sizes, k, strict=True)):
        if not 1 <= active <= size:
            raise InputError(
                f"sae.k_per_layer[{layer}] = {active}: expected 1 to {size}, the size of {what.format(layer)}; "
                "lower k or raise sae.layer_sizes"
            )


def check_dead_after(tokens: int | None) -> None:
    """Raise InputError if `dead_after_tokens` is below 1."""
    if tokens is not None and tokens < 1:
        raise InputError(f"sae.dead_after_tokens = {tokens}: expected 1 or more")


def check_one_layer(architecture: str, sizes: tuple[int, ...]) -> None:
    """Raise InputError if a system that has only one layer is given several sizes."""
    if len(sizes) != 1:
        raise InputError(
            f"sae.layer_sizes {list(sizes)}: an SAE of architecture {architecture} has one layer; "
            f"give one size, such as {sum(sizes)}"
        )
