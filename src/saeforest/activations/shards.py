"""What a shard holds: its tensors, and the types of their numbers, which are floats or 8 bits with a scale."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from ..errors import InputError
from ..schema import Element
from .reader import ActivationBatch, all_finite

_MOST = 127


def to_8bit(x: Float[Tensor, "n d"]) -> tuple[Int8[Tensor, "n d"], Float32[Tensor, "n"]]:
    """Activations in 8 bits, with a scale for each row.

    The scale is the largest magnitude in the row, and a number is stored as the root of its share of that,
    $q = \\operatorname{sign}(x) \\cdot \\operatorname{round}(127 \\sqrt{|x| / s})$. Activations have a few coordinates
    that are tens of times larger than the others. With equal steps, the others would be left with a few of them; the
    steps of a root are fine where numbers are small.

    Example:
        >>> import torch
        >>> from saeforest.activations.shards import from_8bit, to_8bit
        >>> from_8bit(*to_8bit(torch.tensor([[100.0, 1.0, 0.0]])))
        tensor([[100.0000,   1.0483,   0.0000]])
    """
    x = x.float()
    scale = x.abs().amax(dim=1)
    share = x / scale.where(scale > 0, 1)[:, None]
    return (share.sign() * share.abs().sqrt() * _MOST).round().to(torch.int8), scale


def from_8bit(q: Int8[Tensor, "n d"], scale: Float32[Tensor, "n"]) -> Float32[Tensor, "n d"]:
    """The activations that `to_8bit` stored: $x = s \\, q |q| / 127^2$."""
    wide = q.float()
    return wide * wide.abs() * (scale[:, None] / _MOST**2)


def stored(x: Float[Tensor, "n d"], element: Element) -> tuple[Tensor, Float32[Tensor, "n"] | None]:
    """Activations as a shard holds them, and their scales if there are any."""
    if element == "int8":
        return to_8bit(x)
    return (x if element == "auto" else x.to(getattr(torch, element))), None


def tensor_of(site: str) -> str:
    """The name of the tensor for one of the other sites in a shard; the activations at the first site are `x`."""
    return f"x at {site}"


def scale_of(tensor: str) -> str:
    """The name of the scales of a tensor that is stored in 8 bits."""
    return tensor.replace("x", "scale", 1)


def tensors_of(batch: ActivationBatch, element: Element, where: str) -> dict[str, Tensor]:
    """The tensors of a shard. Raises InputError if an activation is too large for the element."""
    sites = {"x": batch.x} | {tensor_of(site): x for site, x in batch.others.items()}
    tensors: dict[str, Tensor] = {}
    for name, x in sites.items():
        tensors[name], scale = stored(x, element)
        if scale is not None:
            tensors[scale_of(name)] = scale
        elif element == "float16" and not all_finite(tensors[name]):
            raise InputError(
                f"{where}: an activation is larger than float16 can hold; choose bfloat16 or float32"
            )
    return {"x": tensors.pop("x"), "rows": batch.rows, **tensors}


def batch_of(tensors: dict[str, Tensor]) -> ActivationBatch:
    """The activations in a shard. Raises KeyError if a tensor is missing."""

    def whole(name: str) -> Tensor:
        x = tensors[name]
        return from_8bit(x, tensors[scale_of(name)]) if x.dtype == torch.int8 else x

    prefix = tensor_of("")
    others = {name.removeprefix(prefix): whole(name) for name in tensors if name.startswith(prefix)}
    return ActivationBatch(whole("x"), tensors["rows"], others)
