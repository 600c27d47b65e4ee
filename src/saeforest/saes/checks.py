"""What the configurations of all systems are checked for."""

from __future__ import annotations

from ..errors import InputError

#: More cannot be numbered by the kernels.
MOST_FEATURES = 2**31 - 1


def check_sizes(sizes: tuple[int, ...], k: tuple[int, ...], what: str = "layer {}") -> None:
    """Raises InputError unless every layer has a size of at least its k, and a k of at least 1."""
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
                "lower k or enlarge it"
            )


def check_dead_after(tokens: int | None) -> None:
    """Raises InputError for a number of tokens after which nothing can be told dead."""
    if tokens is not None and tokens < 1:
        raise InputError(f"sae.dead_after_tokens = {tokens}: expected 1 or more")


def check_one_layer(architecture: str, sizes: tuple[int, ...]) -> None:
    """Raises InputError where a system without layers is given several."""
    if len(sizes) != 1:
        raise InputError(
            f"sae.layer_sizes {list(sizes)}: a {architecture} SAE has one layer; give one size, such as {sum(sizes)}"
        )
