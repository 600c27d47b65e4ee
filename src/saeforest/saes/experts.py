"""The rows of an H-SAE (`expert_hsae.py`) as products: the places of children in the subspace of their parent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .base import SAE

# Parents whose children are multiplied with each other in float64 at a time.
_FACTORED = 1024


class Experts(nn.Module):
    """The parameters that are trained in place of an H-SAE's rows.

    sae: P parents and then the A children of each, in order, whose rows lie in a subspace of few dimensions.
    n, subspace: P, and the number s of these dimensions.

    `encoder` and `decoder` `[P + P s, d_in]` hold the rows of the P parents, then the s rows that span the subspace of
    each; `places_in` and `places_out` `[P A, s]` are the places of its A children in it.
    """

    def __init__(self, sae: SAE, n: int, subspace: int) -> None:
        super().__init__()
        self.n, self.s, self.atoms = n, subspace, sae.d_sae // n - 1
        self.encoder, self.places_in = self._factored(sae.encoder.detach())
        self.decoder, self.places_out = self._factored(sae.decoder.detach())

    def _factored(self, rows: Float[Tensor, "d_sae d_in"]) -> tuple[nn.Parameter, nn.Parameter]:
        """The children's rows as places in the nearest subspace of s dimensions, and orthonormal rows that span it."""
        parents, children = rows[: self.n], self.by_parent(rows[self.n :])
        gram = torch.cat([part.double() @ part.double().mT for part in children.split(_FACTORED)])
        squares, axes = (found[..., -self.s :] for found in torch.linalg.eigh(gram))
        lengths = squares.clamp(min=1e-24).sqrt()[:, None]
        places, across = (axes * lengths).to(rows.dtype), (axes / lengths).to(rows.dtype)
        spans = (across.mT @ children).flatten(0, 1)
        return nn.Parameter(torch.cat([parents, spans])), nn.Parameter(places.flatten(0, 1))

    def by_parent(self, rows: Tensor) -> Tensor:
        """Rows that each parent has equally many of, as `[P, ...]`."""
        return rows.unflatten(0, (self.n, -1))

    def slots(self, parents: Int[Tensor, "n k"]) -> Int[Tensor, "n k_s"]:
        """The indices of the rows that span the subspaces of parents."""
        first = self.n + parents[:, :, None] * self.s
        return (first + torch.arange(self.s, device=parents.device)).flatten(1)

    def unit_places(self) -> Float[Tensor, "PA s"]:
        """`places_out`, scaled so that the children's decoder rows have unit norm."""
        spans, places = self.by_parent(self.decoder[self.n :]), self.by_parent(self.places_out)
        squares = ((places @ (spans @ spans.mT)) * places).sum(2, keepdim=True)
        return (places / squares.clamp(min=1e-24).sqrt()).flatten(0, 1)

    @torch.no_grad()
    def write(self, sae: SAE) -> None:
        """Fills in the rows of the SAE."""
        both = (sae.encoder, self.encoder, self.places_in), (sae.decoder, self.decoder, self.unit_places())
        for rows, own, places in both:
            rows[: self.n] = own[: self.n]
            rows[self.n :] = (self.by_parent(places) @ self.by_parent(own[self.n :])).flatten(0, 1)
