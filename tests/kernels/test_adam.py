"""The step of Adam, with and without projected gradients, in full and half precision, against its formula."""

import math
from types import ModuleType

import pytest
import torch

from saeforest.kernels import AdamStep, compiled, plain

F, D = 67, 13
BACKENDS = [plain, compiled]


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def adam_by_hand(
    weight: torch.Tensor, grads: list[torch.Tensor], lr: float, eps: float, unit: bool
) -> torch.Tensor:
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for t, g in enumerate(grads, 1):
        if unit:
            w = w / w.norm(dim=1, keepdim=True)
            g = g - (g * w).sum(1, keepdim=True) * w
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + eps)
    return w


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("shape", [(F, D), (D,)])
def test_adam_equals_its_formula(kernels: ModuleType, unit: bool, shape: tuple[int, ...]) -> None:
    if unit and len(shape) == 1:
        return
    weight = rand(*shape)
    grads = [rand(*shape, seed=1 + i) for i in range(5)]
    expected = adam_by_hand(weight, grads, 0.01, 1e-3, unit)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, grad in enumerate(grads, 1):
        kernels.adam(weight, grad, m, v, AdamStep(0.01, 0.9, 0.99, 1e-3, t, unit, unit))
    torch.testing.assert_close(weight, expected)


def test_without_projection_rows_are_only_normalized() -> None:
    for kernels in BACKENDS:
        weight, grad = 3 * rand(F, D), rand(F, D, seed=1)
        expected = adam_by_hand(weight / weight.norm(dim=1, keepdim=True), [grad], 0.01, 1e-3, unit=False)
        kernels.adam(
            weight,
            grad,
            torch.zeros(F, D).double(),
            torch.zeros(F, D).double(),
            AdamStep(0.01, 0.9, 0.99, 1e-3, 1, unit_rows=True, project=False),
        )
        torch.testing.assert_close(weight, expected)


def test_rounding_is_right_on_average() -> None:
    """A number between two bfloat16 becomes the nearer one more often, in proportion; others stay as they are."""
    x = torch.full((40_000,), 1 + 0.25 / 128)
    halves = plain.rounded(x, seed=1)
    assert set(halves.float().unique().tolist()) == {1.0, 1 + 1 / 128}
    share = float((halves > 1).float().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(x))
    assert not torch.equal(halves, plain.rounded(x, seed=2))
    exact = rand(100).bfloat16()
    assert torch.equal(plain.rounded(exact.float(), seed=3), exact)


def test_half_precision_state_rounds_alike_everywhere() -> None:
    states = []
    for kernels in BACKENDS:
        weight, m, v = (
            rand(F, D, dtype=torch.float32),
            *(torch.zeros(F, D, dtype=torch.bfloat16) for _ in "mv"),
        )
        for t in range(1, 4):
            grad = rand(F, D, dtype=torch.float32, seed=t)
            kernels.adam(weight, grad, m, v, AdamStep(0.01, 0.9, 0.999, 1e-8, t))
        states.append((weight, m.float(), v.float()))
    (weight, *averages), (weight2, *averages2) = states
    torch.testing.assert_close(weight, weight2, rtol=0, atol=1e-3)
    for a, b in zip(averages, averages2, strict=True):
        # Arithmetic differs in the last bit of float32, which now and then tips a rounding.
        assert (a != b).float().mean() < 0.02


def test_a_slow_average_moves_in_half_precision() -> None:
    """By a thousandth of the difference a step: rounded to the nearest, 1 would never come to 0.5."""
    weight, m, v = torch.zeros(1, 2000), torch.zeros(1, 2000), torch.ones(1, 2000, dtype=torch.bfloat16)
    m = m.bfloat16()
    grad = torch.full((1, 2000), math.sqrt(0.5))
    for t in range(1, 1501):
        compiled.adam(weight, grad, m, v, AdamStep(0.0, 0.9, 0.999, 1e-8, t))
    assert float(v.float().mean()) == pytest.approx(0.5 + 0.5 * 0.999**1500, abs=0.01)


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("state", [torch.float64, torch.bfloat16])
def test_adam_moves_weights_however_they_lie(kernels: ModuleType, state: torch.dtype) -> None:
    """A transposed matrix is stepped in place, not in a copy."""
    grad, start = rand(F, D, seed=1), rand(D, F)
    moved = []
    for weight in (start.clone().T, start.clone().T.contiguous()):
        m, v = torch.zeros_like(weight, dtype=state), torch.zeros_like(weight, dtype=state)
        for t in (1, 2):
            kernels.adam(weight, grad, m, v, AdamStep(0.01, 0.9, 0.99, 1e-3, t))
        assert m.any()
        moved.append(weight)
    assert not torch.equal(moved[0], start.T)
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-12 if state == torch.float64 else 1e-3)


# Only some rows are updated


def resting_adam_by_hand(
    weight: torch.Tensor, steps: list[tuple[torch.Tensor, torch.Tensor]], unit: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dense Adam, in which a row without a gradient keeps a list of the moves it has not made. The moves of a rest are
    made with the learning rate and the bias corrections of the step that ends it."""
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    due: list[list[torch.Tensor]] = [[] for _ in w]
    for t, (rows, some) in enumerate(steps, 1):
        g = torch.zeros_like(w)
        g[rows] = some
        for f in range(len(w)):
            if f not in rows:
                m[f], v[f] = 0.9 * m[f], 0.99 * v[f]
                # As many times smaller as the root of v has become.
                due[f].append(torch.stack([m[f], torch.full_like(m[f], 0.99 ** ((len(due[f]) + 1) / 2))]))
                continue
            if due[f]:
                root = (v[f] / 0.99 ** len(due[f]) / (1 - 0.99**t)).sqrt() + 1e-3
                w[f] -= sum(0.01 / (1 - 0.9**t) * first / (shrunk * root) for first, shrunk in due[f])
                due[f] = []
            if unit:
                w[f] = w[f] / w[f].norm()
                g[f] -= (g[f] * w[f]).sum() * w[f]
            m[f], v[f] = 0.9 * m[f] + 0.1 * g[f], 0.99 * v[f] + 0.01 * g[f] ** 2
            w[f] -= 0.01 * (m[f] / (1 - 0.9**t)) / ((v[f] / (1 - 0.99**t)).sqrt() + 1e-3)
    return w, m, v


def some_steps(n: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of a few rows in each step. Row 0 has one in every step, row 1 never."""
    generator, steps = torch.Generator().manual_seed(3), []
    for t in range(n):
        rows = torch.cat([torch.tensor([0]), 2 + torch.randperm(F - 2, generator=generator)[: F // 4]])
        steps.append((rows, rand(len(rows), D, dtype=dtype, seed=t)))
    return steps


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("unit", [True, False])
def test_rows_that_rest_make_up_for_it(kernels: ModuleType, unit: bool) -> None:
    weight, steps = 3 * rand(F, D), some_steps(20, torch.float64)
    expected, right_m, right_v = resting_adam_by_hand(weight, steps, unit)
    start, m, v, last = weight.clone(), torch.zeros(F, D).double(), torch.zeros(F, D).double(), torch.zeros(F)
    last = last.long()
    for t, (rows, grad) in enumerate(steps, 1):
        kernels.adam_rows(weight, rows, grad, m, v, last, AdamStep(0.01, 0.9, 0.99, 1e-3, t, unit, unit))
        assert (last[rows] == t).all()
    torch.testing.assert_close(weight, expected)
    assert torch.equal(weight[1], start[1])
    rest = (len(steps) - last)[:, None]
    torch.testing.assert_close((0.9**rest * m, 0.99**rest * v), (right_m, right_v))
    assert rest.max() > 5


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_adam_of_all_rows_is_adam(kernels: ModuleType, state: torch.dtype) -> None:
    """Bit for bit, and with rows in any order."""
    ways = []
    for some in (False, True):
        weight, m, v = rand(F, D, dtype=torch.float32), *(torch.zeros(F, D, dtype=state) for _ in "mv")
        last, rows = torch.zeros(F, dtype=torch.long), torch.arange(F).flip(0)
        for t in range(1, 4):
            grad, step = (
                rand(F, D, dtype=torch.float32, seed=t),
                AdamStep(0.01, 0.9, 0.999, 1e-8, t, True, True),
            )
            if some:
                kernels.adam_rows(weight, rows, grad[rows], m, v, last, step)
            else:
                kernels.adam(weight, grad, m, v, step)
        ways.append((weight, m, v))
    for a, b in zip(*ways, strict=True):
        assert torch.equal(a, b)


def test_resting_rows_round_alike_everywhere() -> None:
    states = []
    for kernels in BACKENDS:
        weight, m, v = rand(F, D, dtype=torch.float32), *(torch.zeros(F, D).bfloat16() for _ in "mv")
        last = torch.zeros(F, dtype=torch.long)
        for t, (rows, grad) in enumerate(some_steps(6, torch.float32), 1):
            kernels.adam_rows(weight, rows, grad, m, v, last, AdamStep(0.01, 0.9, 0.999, 1e-8, t))
        states.append((weight, m.float(), v.float()))
    (weight, *averages), (weight2, *averages2) = states
    torch.testing.assert_close(weight, weight2, rtol=0, atol=1e-3)
    for a, b in zip(averages, averages2, strict=True):
        assert a.any()
        assert (a != b).float().mean() < 0.02


def test_rows_that_rest_end_where_adam_takes_them() -> None:
    """One gradient, then a long rest: the moves are Adam's, but for epsilon and bias corrections."""
    start, grad, lr = rand(F, D), rand(F, D, seed=1), 1e-3
    dense, some = start.clone(), start.clone()
    m, v, late_m, late_v = (torch.zeros(F, D).double() for _ in range(4))
    last, every, rest = torch.zeros(F).long(), torch.arange(F), 30
    warm = 5000  # bias corrections are 1 from here on
    for t in (warm, *range(warm + 1, warm + 1 + rest), warm + rest + 1):
        given = grad if t in (warm, warm + rest + 1) else torch.zeros(F, D).double()
        step = AdamStep(lr, 0.9, 0.999, 1e-12, t)
        plain.adam(dense, given, m, v, step)
        if t in (warm, warm + rest + 1):
            last[:] = last if last.any() else t - 1
            plain.adam_rows(some, every, given, late_m, late_v, last, step)
    torch.testing.assert_close(some - start, dense - start, rtol=1e-2, atol=0)
    torch.testing.assert_close((late_m, late_v), (m, v))
