"""Adam for SAEs: it keeps rows at unit norm, and can keep its state in half the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import AdamStep, backend


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, arXiv 1412.6980) in one pass over the memory of each weight.

    A parameter group with `unit_rows` holds matrices whose rows are scaled to unit norm before each step. With
    `project`, the component of each row's gradient along the row is removed first, since it would only change the
    row's norm (docs/spec/tree-sae.md#adam).

    With `state=torch.bfloat16` the moving averages take half the memory. They use stochastic rounding: if rounded to
    nearest, an average that changes by a thousandth per step would never change.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        state: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "unit_rows": False,
            "project": False,
            "state": state,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight, dtype=kept_in(weight, group))
        state["step"] += 1
        step = AdamStep(
            group["lr"],
            group["betas"][0],
            group["betas"][1],
            group["eps"],
            int(state["step"]),
            unit_rows=group["unit_rows"],
            project=group["project"],
        )
        backend(weight).adam(weight, weight.grad, state["exp_avg"], state["exp_avg_sq"], step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # this casts the state to the data type of the weights
        for group in self.param_groups:
            for weight in group["params"]:
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in (state := self.state[weight]):
                        state[name] = state[name].to(kept_in(weight, group))


def kept_in(weight: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The data type of a weight's moving averages: that of `group["state"]` for matrices, the weight's own for vectors,
    whose state is small."""
    return weight.dtype if group["state"] is None or weight.dim() < 2 else group["state"]
