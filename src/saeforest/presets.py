"""Named configurations: the demo, and the paper's Tree SAEs."""

from __future__ import annotations

from .config import ActivationConfig, OptimConfig, TextConfig, TrainConfig
from .saes import AllocationConfig, TreeAuxConfig, TreeConfig

_DEMO = TrainConfig(
    tokens=400_000,
    epochs=8,
    sae=TreeConfig(
        layer_sizes=(384, 768, 2304, 2688),
        k_per_layer=(21, 5, 4, 2),
        aux=TreeAuxConfig(layers=None, detach=True, bias=False, rescale=True),
        # Often, since every move of a dead child counts in a short run.
        allocation=AllocationConfig(first=100, cap=100, root_reset_at=0.7),
    ),
    optim=OptimConfig(lr=1e-3, batch_size=2048, warmup=0.02, decay="linear"),
)

# Appendix C, Table 1: features and active features of each layer, by total L0.
_PAPER_SIZES = {"tree-2layer": (6144, 18432), "tree-4layer": (1536, 3072, 9216, 10752)}
_PAPER_K = {
    "tree-2layer": {32: (26, 6), 48: (40, 8), 64: (53, 11), 80: (69, 11)},
    "tree-4layer": {32: (21, 5, 4, 2), 48: (32, 7, 5, 4), 64: (44, 9, 6, 5), 80: (56, 11, 7, 6)},
}


def _paper(name: str, l0: int) -> TrainConfig:
    """GPT-2 small before block 5 on 500M tokens of the Pile, every position included (SPEC 5.1, 9.1)."""
    return TrainConfig(
        model="gpt2",
        site="blocks.5.hook_resid_pre",
        data="monology/pile-uncopyrighted",
        tokens=500_000_000,
        seed=42,
        text=TextConfig(context=1024, held_out=0.01),
        activations=ActivationConfig(exclude_first=False, exclude_special=False, max_norm=0),
        sae=TreeConfig(
            layer_sizes=_PAPER_SIZES[name],
            k_per_layer=_PAPER_K[name][l0],
            allocation=AllocationConfig(first=3_000, cap=10_000, dead_after_tokens=10_000_000),
        ),
        optim=OptimConfig(lr=1e-4, batch_size=5120),
    )


PRESETS: dict[str, TrainConfig] = {"demo": _DEMO}
for _name, _levels in _PAPER_K.items():
    PRESETS |= {_name if l0 == 32 else f"{_name}-l0-{l0}": _paper(_name, l0) for l0 in _levels}
