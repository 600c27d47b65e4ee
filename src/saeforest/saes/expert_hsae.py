"""H-SAE (Muchane, Richardson, Park & Veitch, arXiv 2506.01197): every feature of a TopK SAE has a small SAE below it.

A parent owns a subspace of few dimensions and a small dictionary in it. Where the parent is active, the best entry of
its dictionary is active too: one child under each active parent, as one expert of a mixture. The forest is fixed from
the start. Not to be confused with the HSAE of arXiv 2602.11881 (`hsae.py`), which links levels of growing size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import sparse_encode
from ..seeds import seeded
from ..sparse_code import SparseCode, concat_rows, concat_slots
from ..structure.forest import ROOT
from .auxiliary import AuxConfig, auxiliary_loss, select_dead
from .base import SAE
from .checks import check_dead_after, check_sizes
from .encode import DENSE_ENTRIES, PreActivations
from .normalizer import Normalization
from .reconstruct import Prefixes
from .select import TopK
from .training import Setup, Step, Training, scalars

# So many parents' children are multiplied in float64 at a time.
_FACTORED = 1024


@dataclass(frozen=True)
class ExpertHSAEConfig:
    """An H-SAE and its training. Sizes, k, subspace and the weight of the top level are the paper's by default."""

    layer_sizes: tuple[int, ...] = (16_384, 262_144)
    """Parents, and children: the same number for each parent, 16 in the paper."""
    k_per_layer: tuple[int, ...] = (32, 32)
    """Active parents, and children: at most one under each active parent."""
    subspace: int = 4
    """Dimensions of the subspace that each parent's children share."""
    top_level: float = 0.1
    """Weight in the loss of the reconstruction from the parents alone."""
    l1: float = 0.01
    """Weight of the sum of a token's activations, beside its squared error in normalized units."""
    orthogonality: float = 1e-3
    """Weight of the squared products of each parent's encoder row with the other parents' decoder rows."""
    normalize_activations: Normalization = "layer_norm"
    """layer_norm: every activation to mean 0 and deviation 1; dataset_scale: a factor that makes the mean norm
    sqrt(d_in); none; or the factor itself."""
    activation_threshold: float = 1e-3
    """A feature is active above this value."""
    encoder_bias: bool = True
    """A trained bias of every pre-activation."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """b_dec starts at the geometric median of the first batch, normalized or not."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: 10M of 500M, in proportion to the run."""
    aux: AuxConfig = field(default_factory=lambda: AuxConfig(detach=True, bias=False, rescale=True))
    """The auxiliary loss: dead parents reconstruct the residual."""
    architecture: Literal["expert_hsae"] = "expert_hsae"

    @property
    def atoms(self) -> int:
        """Children of each parent."""
        return self.layer_sizes[1] // self.layer_sizes[0]

    def __post_init__(self) -> None:
        check_sizes(sizes := self.layer_sizes, k := self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        if len(sizes) != 2 or sizes[1] % sizes[0]:
            wanted = "two layers, the second a multiple of the first, such as 512 8192 for 16 children of each parent"
            raise InputError(f"sae.layer_sizes {list(sizes)}: expected {wanted}")
        if k[0] != k[1]:
            raise InputError(
                f"sae.k_per_layer {list(k)}: expected the same twice, for a child of each active parent"
            )
        if not 1 <= self.subspace <= self.atoms:
            raise InputError(
                f"sae.subspace = {self.subspace}: expected 1 to {self.atoms}, the children of a parent"
            )
        for name in ("top_level", "l1", "orthogonality"):
            if getattr(self, name) < 0:
                raise InputError(f"sae.{name} = {getattr(self, name)}: expected 0 or more")


class ExpertHSAE(SAE):
    """The trained H-SAE: parents 0 to P - 1, then the children of parent 0, those of parent 1, and so on.

    `x_hat = std (sum_p z_p d_p + sum_p z_c(p) d_c(p) + b_dec) + mean` over the k active parents p and the best child
    c(p) of each. A child's rows of `encoder` and `decoder` `[d_sae, d_in]` are products of its place in its parent's
    subspace (`subspace` numbers) with the projections of that subspace from and to the space of activations
    (`Pi_down` and `Pi_up` in the paper), so that all tools read them as they read those of any other feature.

        >>> config = ExpertHSAEConfig(layer_sizes=(64, 512), k_per_layer=(4, 4), subspace=2)
        >>> code = ExpertHSAE(config, d_in=32).encode(torch.randn(10, 32))  # ids and values [10, 8]

    Source: arXiv 2506.01197. Where its text leaves a choice, this is the plainest reading: children read the
    activation itself, not what parents leave of it; a child's value does not depend on its parent's; the L1 term counts
    parents and children; the orthogonality term is about parents. The weights of these two terms, and an auxiliary
    loss of dead parents, are ours.
    """

    config_class = ExpertHSAEConfig
    title, color, marker = "H-SAE (experts)", "#7A4FBF", "P"
    at_most_k = True
    gated = True
    inference_keys = (*SAE.inference_keys, "subspace")

    config: ExpertHSAEConfig

    def __init__(
        self, config: ExpertHSAEConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        n, atoms, s = config.layer_sizes[0], config.atoms, config.subspace
        generator = seeded(seed, "subspaces")
        places = torch.randn(n, atoms, s, generator=generator) / s**0.5
        basis = (torch.rand(n, s, d_in, generator=generator) * 2 - 1) / d_in**0.5
        with torch.no_grad():
            self.encoder[n:] = (places @ basis).flatten(0, 1)
            self.decoder[n:] = F.normalize(self.encoder[n:])

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        n = self.config.layer_sizes[0]
        return torch.cat([torch.full((n,), ROOT), torch.arange(n).repeat_interleave(self.config.atoms)])

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        h, u = self.pre_activations(precision), self.centered(u)
        rows = max(DENSE_ENTRIES // (self.config.k_per_layer[1] * self.config.atoms), 1)
        return h.exact(u, concat_rows([self._select(h, part) for part in u.split(rows)]))

    @torch.no_grad()
    def _select(self, h: PreActivations, u: Float[Tensor, "m d_in"]) -> SparseCode:
        """The k best parents, and the best child of each; nothing is computed for the children of other parents."""
        n, atoms = self.config.layer_sizes[0], self.config.atoms
        top = replace(h, encoder=self.encoder[:n], bias=self.b_enc[:n])
        parents = top.exact(u, TopK(self.config.k_per_layer[0])(top, u))
        ids = n + parents.ids[:, :, None] * atoms + torch.arange(atoms, device=u.device)
        every = sparse_encode(u, ids.flatten(1), self.encoder).view(ids.shape) + self.b_enc[ids]
        value, best = every.max(2)
        on = parents.active(self.config.activation_threshold) & (value > 0)
        child = ids.gather(2, best[:, :, None]).squeeze(2)
        return concat_slots([parents, SparseCode(torch.where(on, value, 0), torch.where(on, child, 0))])


class Experts(nn.Module):
    """What is trained in place of the SAE's rows: the parents' rows, and each parent's subspace and dictionary.

    `encoder` and `decoder` `[P + P s, d_in]` hold the rows of the P parents, then the s rows that span the subspace of
    each; `places_in` and `places_out` `[P A, s]` say where its A children lie in it.
    """

    def __init__(self, sae: ExpertHSAE) -> None:
        super().__init__()
        self.n, self.s, self.atoms = sae.config.layer_sizes[0], sae.config.subspace, sae.config.atoms
        self.encoder, self.places_in = self._factored(sae.encoder.detach())
        self.decoder, self.places_out = self._factored(sae.decoder.detach())

    def _factored(self, rows: Float[Tensor, "d_sae d_in"]) -> tuple[nn.Parameter, nn.Parameter]:
        """The rows of children as places in the subspace of s dimensions nearest to them, spanned by unit rows."""
        parents, children = rows[: self.n], self.by_parent(rows[self.n :])
        gram = torch.cat([part.double() @ part.double().mT for part in children.split(_FACTORED)])
        squares, axes = (found[..., -self.s :] for found in torch.linalg.eigh(gram))
        lengths = squares.clamp(min=1e-24).sqrt()[:, None]
        places, across = (axes * lengths).to(rows.dtype), (axes / lengths).to(rows.dtype)
        spanning = (across.mT @ children).flatten(0, 1)
        return nn.Parameter(torch.cat([parents, spanning])), nn.Parameter(places.flatten(0, 1))

    def by_parent(self, rows: Tensor) -> Tensor:
        """What the children have, or the rows that span the subspaces, as `[P, ...]`."""
        return rows.unflatten(0, (self.n, -1))

    def slots(self, parents: Int[Tensor, "n k"]) -> Int[Tensor, "n k_s"]:
        """The rows that span the subspaces of parents."""
        first = self.n + parents[:, :, None] * self.s
        return (first + torch.arange(self.s, device=parents.device)).flatten(1)

    def spanned(self, children: SparseCode, slots: Int[Tensor, "n k_s"]) -> SparseCode:
        """The children's part of a reconstruction in terms of the rows in `slots`; values of either sign."""
        places = F.embedding((children.ids - self.n).clamp(min=0), self.unit_places())
        return SparseCode((children.values[:, :, None] * places).flatten(1), slots)

    def unit_places(self) -> Float[Tensor, "PA s"]:
        """`places_out`, scaled so that the children's decoder rows have unit norm."""
        basis, places = self.by_parent(self.decoder[self.n :]), self.by_parent(self.places_out)
        squares = ((places @ (basis @ basis.mT)) * places).sum(2, keepdim=True)
        return (places / squares.clamp(min=1e-24).sqrt()).flatten(0, 1)

    @torch.no_grad()
    def write(self, sae: ExpertHSAE) -> None:
        """Fills in the SAE's rows."""
        both = (sae.encoder, self.encoder, self.places_in), (sae.decoder, self.decoder, self.unit_places())
        for rows, own, places in both:
            rows[: self.n] = own[: self.n]
            rows[self.n :] = (self.by_parent(places) @ self.by_parent(own[self.n :])).flatten(0, 1)


class ExpertHSAETraining(Training):
    """Reconstruction, a tenth of that from the parents alone, L1 and orthogonality; dead parents learn the residual.

    A child's decoder row is divided by its norm within the loss: its gradient has no part along the row. Dead children
    have no loss of their own, for one on the residual would turn the subspace that they share with the living.
    """

    sae: ExpertHSAE

    def __init__(self, sae: ExpertHSAE, setup: Setup) -> None:
        experts, dead_after = Experts(sae), sae.config.dead_after_tokens
        weights = [w for w in (*experts.parameters(), sae.b_dec, sae.b_enc) if w.requires_grad]
        super().__init__(sae, setup, dead_after_tokens=dead_after, weights=weights, unit_rows=experts.decoder)
        self.experts = experts

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_in"]) -> Step:
        sae, config, experts, n = self.sae, self.sae.config, self.experts, self.experts.n
        target = target.to(sae.encoder.dtype)
        normalized, stats = sae.normalize(x)
        u = sae.centered(normalized)
        h = PreActivations(experts.encoder[:n], sae.b_enc[:n], sae.b_dec, self.precision)
        parents = h.exact(u, TopK(config.k_per_layer[0])(h, u))
        slots = experts.slots(parents.ids)
        y = sparse_encode(u, slots, experts.encoder, center=sae.b_dec).unflatten(1, (-1, experts.s))
        children = self.best(y, parents)
        code = concat_slots([parents, children]).detach()
        fired = self.fired(code)

        rows = concat_slots([parents, experts.spanned(children, slots)])
        layers = Prefixes((0, n, len(experts.decoder)))
        reconstruction, errors = layers.losses(rows, experts.decoder, sae.b_dec, target, stats)
        l1 = (parents.values.sum() + children.values.sum()) / u.numel()
        crossing = cross_products(experts.encoder[:n], experts.decoder[:n])
        loss = reconstruction[1] + config.top_level * reconstruction[0]
        loss = loss + config.l1 * l1 + config.orthogonality * crossing
        terms = {
            "reconstruction": scalars(reconstruction),
            "l1": scalars([l1]),
            "orthogonality": scalars([crossing]),
        }
        if config.aux.coefficient:
            dead = h.exact(u, select_dead(h, u, self.dead_after(fired)[:n], config.aux.k))
            auxiliary = auxiliary_loss(dead, experts.decoder, sae.b_dec, -errors[1], stats, config.aux)
            loss = loss + config.aux.coefficient * auxiliary
            terms["auxiliary"] = scalars([auxiliary])
        return Step(loss, terms, code, target + errors[1].detach(), fired, len(x))

    def best(self, y: Float[Tensor, "n k s"], parents: SparseCode) -> SparseCode:
        """The best child of each active parent, by the activations in the parents' subspaces."""
        experts, bias = self.experts, self.sae.b_enc[self.experts.n :]
        with torch.no_grad():
            h = (experts.by_parent(experts.places_in)[parents.ids] @ y[..., None]).squeeze(3)
            most, local = (h + experts.by_parent(bias)[parents.ids]).max(2)
            on = parents.active(self.sae.config.activation_threshold) & (most > 0)
            child = parents.ids * experts.atoms + local
        value = (y * F.embedding(child, experts.places_in)).sum(2)
        value = (value + F.embedding(child, bias[:, None]).squeeze(2)).relu()
        return SparseCode(torch.where(on, value, 0), torch.where(on, experts.n + child, 0))

    def update(self, loss: Float[Tensor, ""]) -> None:
        super().update(loss)
        self.experts.write(self.sae)


def cross_products(encoder: Float[Tensor, "P d"], decoder: Float[Tensor, "P d"]) -> Float[Tensor, ""]:
    """`1/P sum_{i != j} (e_i . d_j)^2`: how far the parents' vectors set off each other's pre-activations.

    The sum over all pairs is the trace of `(E^T E) (D^T D)`, so that nothing of size P x P is formed.
    """
    every = ((encoder.T @ encoder) * (decoder.T @ decoder)).sum()
    return (every - (encoder * decoder).sum(1).square().sum()) / len(encoder)
