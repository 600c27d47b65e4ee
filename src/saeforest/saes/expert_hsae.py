"""H-SAE (Muchane, Richardson, Park & Veitch, arXiv 2506.01197): a small SAE below every feature of a TopK SAE.

Each parent has a low-dimensional subspace and a small dictionary in it. Where the parent is active, so is the best
entry of its dictionary: its child. Parents are the experts of a mixture, and the forest is fixed from the start. The
HSAE of arXiv 2602.11881 (`hsae.py`), which links levels of growing size, is another system.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..kernels import sparse_encode
from ..seeds import seeded
from ..sparse_code import SparseCode, concat_rows, concat_slots
from ..structure.forest import ROOT
from .auxiliary import AuxConfig, auxiliary_loss, reconstructed, select_dead
from .base import SAE
from .checks import check_dead_after, check_sizes
from .encode import DENSE_ENTRIES, PreActivations
from .experts import Experts
from .normalizer import Normalization
from .reconstruct import Prefixes
from .select import TopK
from .training import Setup, Step, Training, scalars


@dataclass(frozen=True)
class ExpertHSAEConfig:
    """An H-SAE and its training. Sizes, k, subspace and the weight of the top level are the paper's by default."""

    layer_sizes: tuple[int, ...] = (16_384, 262_144)
    """Number of parents, and of children: a multiple of it, 16 per parent in the paper."""
    k_per_layer: tuple[int, ...] = (32, 32)
    """Largest number of active parents on a token, and the same number again for their children."""
    subspace: int = 4
    """Number of dimensions of the subspace that the children of a parent share."""
    top_level: float = 0.1
    """Weight of the reconstruction loss of the parents alone."""
    l1: float = 0.01
    """Weight of the sum of a token's activations, relative to its squared error in normalized units."""
    orthogonality: float = 1e-3
    """Weight of the squared products of a parent's encoder row with the other parents' decoder rows."""
    normalize_activations: Normalization = "layer_norm"
    """How activations are normalized. layer_norm: each to mean 0 and standard deviation 1; dataset_scale: all by one
    factor that makes their mean norm sqrt(d_in); none; or that factor as a number."""
    activation_threshold: float = 1e-3
    """Value above which a feature counts as active."""
    encoder_bias: bool = True
    """Train a bias for every pre-activation."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """Initial b_dec: the geometric median of the first batch, after normalization or before it."""
    dead_after_tokens: int | None = None
    """Number of tokens without firing after which a feature is dead. None: 2% of the run, at least 100,000."""
    aux: AuxConfig = field(default_factory=lambda: AuxConfig(detach=True, bias=False, rescale=True))
    """The auxiliary loss of dead parents."""
    architecture: Literal["expert_hsae"] = "expert_hsae"

    @property
    def atoms(self) -> int:
        """Number of children of each parent."""
        return self.layer_sizes[1] // self.layer_sizes[0]

    def __post_init__(self) -> None:
        check_sizes(sizes := self.layer_sizes, k := self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        if len(sizes) != 2 or sizes[1] % sizes[0]:
            wanted = (
                "two layers, the second a multiple of the first, such as 512 8192: 16 children per parent"
            )
            raise InputError(f"sae.layer_sizes {list(sizes)}: expected {wanted}")
        if k[0] != k[1]:
            wanted = "the same number twice, since each active parent has one child"
            raise InputError(f"sae.k_per_layer {list(k)}: expected {wanted}")
        if not 1 <= self.subspace <= self.atoms:
            wanted = f"1 to {self.atoms}, the number of children of a parent"
            raise InputError(f"sae.subspace = {self.subspace}: expected {wanted}")
        for name in ("top_level", "l1", "orthogonality"):
            if getattr(self, name) < 0:
                raise InputError(f"sae.{name} = {getattr(self, name)}: expected 0 or more")


class ExpertHSAE(SAE):
    """A trained H-SAE: first the P parents, then the children of parent 0, those of parent 1, and so on.

    `x_hat = std (sum_p z_p d_p + sum_p z_c(p) d_c(p) + b_dec) + mean`, summed over the k active parents p and the best
    child c(p) of each. The rows of the children in `encoder` and `decoder` `[d_sae, d_in]` are products: a place in the
    parent's subspace (`subspace` numbers) times the projection into that subspace or out of it (Pi_down and Pi_up in
    the paper). So a child has rows like those of any other feature.

        >>> config = ExpertHSAEConfig(layer_sizes=(64, 512), k_per_layer=(4, 4), subspace=2)
        >>> code = ExpertHSAE(config, d_in=32).encode(torch.randn(10, 32))  # ids and values: [10, 8]

    Source: arXiv 2506.01197. Where its text leaves a choice, this is the plainest reading: children read the activation
    itself, not what their parents leave of it; a child's value does not depend on its parent's; the L1 term counts
    parents and children; the orthogonality term is about parents. The weights of these two terms and the auxiliary
    loss of dead parents are our choice.
    """

    config_class = ExpertHSAEConfig
    title, color, marker = "H-SAE (experts)", "#7A4FBF", "h"
    at_most_k = gated = True
    inference_keys = (*SAE.inference_keys, "subspace")

    config: ExpertHSAEConfig

    def __init__(
        self, config: ExpertHSAEConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        n, atoms, s = config.layer_sizes[0], config.atoms, config.subspace
        generator = seeded(seed, "subspaces")
        places = torch.randn(n, atoms, s, generator=generator) / s**0.5
        spans = (torch.rand(n, s, d_in, generator=generator) * 2 - 1) / d_in**0.5
        with torch.no_grad():
            self.encoder[n:] = (places @ spans).flatten(0, 1)
            self.decoder[n:] = F.normalize(self.encoder[n:])

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        n = self.config.layer_sizes[0]
        return torch.cat([torch.full((n,), ROOT), torch.arange(n).repeat_interleave(self.config.atoms)])

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        h, u = self.pre_activations(precision), self.centered(u)
        n, atoms = self.config.layer_sizes[0], self.config.atoms
        children = n + self.parent[n:].argsort(stable=True).unflatten(0, (n, atoms))
        rows = max(DENSE_ENTRIES // (self.config.k_per_layer[1] * atoms), 1)
        return h.exact(u, concat_rows([self._select(h, part, children) for part in u.split(rows)]))

    @torch.no_grad()
    def _select(
        self, h: PreActivations, u: Float[Tensor, "m d_in"], children: Int[Tensor, "P A"]
    ) -> SparseCode:
        """The k best parents, and the best child of each. Children of other parents are not computed."""
        n = len(children)
        top = replace(h, encoder=self.encoder[:n], bias=self.b_enc[:n])
        parents = top.exact(u, TopK(self.config.k_per_layer[0])(top, u))
        ids = children[parents.ids]
        every = sparse_encode(u, ids.flatten(1), self.encoder).view(ids.shape) + self.b_enc[ids]
        value, best = every.max(2)
        on = parents.active(self.config.activation_threshold) & (value > 0)
        child = ids.gather(2, best[:, :, None]).squeeze(2)
        return concat_slots([parents, SparseCode(torch.where(on, value, 0), torch.where(on, child, 0))])


class ExpertHSAETraining(Training):
    """The training of an H-SAE.

    A child's decoder row is divided by its norm within the loss, so its gradient has no part along the row. Dead
    children have no auxiliary loss: it would turn the subspace that they share with living ones.
    """

    sae: ExpertHSAE

    def __init__(self, sae: ExpertHSAE, setup: Setup) -> None:
        config = sae.config
        experts, dead_after = Experts(sae, config.layer_sizes[0], config.subspace), config.dead_after_tokens
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
        children = self._best(y, parents)
        code = concat_slots([parents, children]).detach()
        fired = self.fired(code)

        # A child's part of the reconstruction, as a sum of the rows that span its subspace; values of either sign.
        places = F.embedding((children.ids - n).clamp(min=0), experts.unit_places())
        spanned = SparseCode((children.values[:, :, None] * places).flatten(1), slots)
        layers, rows = Prefixes((0, n, len(experts.decoder))), concat_slots([parents, spanned])
        (top, whole), errors = layers.losses(rows, experts.decoder, sae.b_dec, target, stats, padded=False)
        l1 = (parents.values.sum() + children.values.sum()) / u.numel()
        crossing = cross_products(experts.encoder[:n], experts.decoder[:n])
        loss = whole + config.top_level * top + config.l1 * l1 + config.orthogonality * crossing
        terms = {
            "reconstruction": scalars([top, whole]),
            "l1": scalars([l1]),
            "orthogonality": scalars([crossing]),
        }
        if config.aux.coefficient:
            u = u[config.aux.rows]
            dead = select_dead(h, u, self.dead_after(fired)[:n], config.aux.k)
            (e_hat,) = reconstructed(h, [u], [dead], experts.decoder)
            auxiliary = auxiliary_loss(e_hat, sae.b_dec, errors[1], stats, config.aux)
            loss = loss + config.aux.coefficient * auxiliary
            terms["auxiliary"] = scalars([auxiliary])
        return Step(loss, terms, code, target + errors[1].detach(), fired, len(x))

    def _best(self, y: Float[Tensor, "n k s"], parents: SparseCode) -> SparseCode:
        """The best child of each active parent, given the activations in the parents' subspaces."""
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
    """`1/P sum_{i != j} (e_i . d_j)^2`, by which parents' vectors set off other parents.

    The sum over all pairs is the trace of `(E^T E) (D^T D)`: no matrix of P x P is formed.
    """
    every = ((encoder.T @ encoder) * (decoder.T @ decoder)).sum()
    return (every - (encoder * decoder).sum(1).square().sum()) / len(encoder)
