"""Matrices in 8 bits: what their codes stand for, how numbers are rounded to them, and Adam's steps with them, against
float64. Weights in bfloat16: their steps, and the products with them."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saeforest.kernels import AdamStep, Bytes, compiled, plain
from saeforest.kernels.low_precision import SIGNED, UNSIGNED, Format, narrowed, widened

BACKENDS = [plain, compiled]
FORMATS = [SIGNED, UNSIGNED]


def grid(form: Format, exponent: int) -> NDArray[np.float64]:
    """All numbers that are not negative which a row with this exponent can hold, by their code."""
    steps = 2**form.mantissa
    low = [i / steps * 2.0 ** (exponent - 127 - form.top + 1) for i in range(steps)]
    return np.array(
        low
        + [
            (1 + i / steps) * 2.0 ** (exponent - 127 - form.top + own)
            for own in range(1, form.top + 1)
            for i in range(steps)
        ]
    )


def wide(rows: int, d: int, form: Format) -> torch.Tensor:
    """Numbers over many powers of two, some of them 0, in rows of different size; the last row is 0."""
    generator = torch.Generator().manual_seed(5)
    size = 2.0 ** (-50 * torch.rand(rows, d, generator=generator) ** 2)
    x = size * (1 + torch.rand(rows, d, generator=generator)) * 10.0 ** torch.arange(-rows, 0)[:, None]
    if form.dtype == torch.int8:
        x *= torch.randn(rows, d, generator=generator).sign()
    x[:, ::7] = 0
    x[-1] = 0
    return x


@pytest.mark.parametrize("form", FORMATS)
def test_codes_stand_for_numbers(form: Format) -> None:
    exponents = [form.lowest, 100, 127, 200]
    top = 127 if form.dtype == torch.int8 else 255
    codes = torch.arange(-top if form.dtype == torch.int8 else 0, top + 1).to(form.dtype)
    found = widened(Bytes(codes.expand(4, -1), torch.tensor(exponents, dtype=torch.uint8)))
    for row, exponent in zip(found.double().numpy(), exponents, strict=True):
        right = grid(form, exponent)
        assert len(right) == top + 1
        assert np.array_equal(row[codes >= 0], right)
        assert np.array_equal(row[codes <= 0], -right[::-1][-(codes <= 0).sum() :])


@pytest.mark.parametrize("form", FORMATS)
def test_numbers_become_one_of_their_neighbors(form: Format) -> None:
    x = wide(9, 400, form)
    found = narrowed(x, form, seed=3)
    again = widened(found).double().numpy()
    for row, one, exponent in zip(x.double().numpy(), again, found.exponents.tolist(), strict=True):
        every = grid(form, exponent)
        size, rounded = np.abs(row), np.abs(one)
        above = np.searchsorted(every, size)
        near = (rounded == every[above]) | (rounded == every[np.maximum(above - (every[above] != size), 0)])
        assert near.all()
        assert (np.sign(one) * np.sign(row) >= 0).all()
        if row.any():
            assert size.max() > 0.49 * every[-1]  # the scale is no larger than it has to be
    if form.least:
        assert torch.equal(found.codes == 0, x == 0)
    assert torch.equal(found.codes, narrowed(x, form, seed=3).codes)
    assert not torch.equal(found.codes, narrowed(x, form, seed=4).codes)
    kept = widened(found)
    assert torch.equal(widened(narrowed(kept, form, seed=9)), kept)  # numbers on the grid are not rounded


@pytest.mark.parametrize("form", FORMATS)
def test_rounding_is_unbiased(form: Format) -> None:
    """Also among the evenly spaced numbers near 0, and beside a larger number that sets the scale."""
    n, unit = 40_000, grid(form, 127)[1]
    for x in (1.03, 0.3, 0.0071, 1.7 * unit, *([0.2 * unit] if not form.least else [])):
        row = torch.full((1, n), x)
        row[0, 0] = 1
        found = widened(narrowed(row, form, seed=1))[0, 1:].double()
        low, high = float(found.min()), float(found.max())
        assert low < x < high
        deviation = math.sqrt((x - low) * (high - x) / n)
        assert float(found.mean()) == pytest.approx(x, abs=4 * deviation)


def moments(shape: tuple[int, int]) -> tuple[Bytes, Bytes]:
    m, v = (
        Bytes(torch.zeros(shape, dtype=form.dtype), torch.zeros(shape[0], dtype=torch.uint8))
        for form in FORMATS
    )
    return m, v


def test_compiled_loops_round_alike() -> None:
    """With decays of 0 the moments are the gradient and its square, which have the same bits everywhere."""
    grad, found = 1e-3 * wide(9, 400, SIGNED), []
    for kernels in BACKENDS:
        m, v = moments((9, 400))
        kernels.adam(torch.zeros(9, 400), grad, m, v, AdamStep(0.0, 0.0, 0.0, 1e-8, 3))
        found.append((*m, *v))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(found[0][0], narrowed(grad, SIGNED, seed=6).codes)


class Oracle:
    """Adam in float64, whose moments are rounded up or down to its grids as the kernel has rounded them."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.w = weight.double().numpy()
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)

    def step(
        self, t: int, rows: NDArray[np.int64], g: NDArray[np.float64], found: tuple[Bytes, Bytes]
    ) -> None:
        w = self.w[rows] / np.linalg.norm(self.w[rows], axis=1, keepdims=True)
        g = g - (g * w).sum(1, keepdims=True) * w
        m, v = 0.9 * self.m[rows] + 0.1 * g, 0.99 * self.v[rows] + 0.01 * g**2
        self.w[rows] = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
        for exact, kept, form, own in zip((m, v), found, FORMATS, (self.m, self.v), strict=True):
            numbers = widened(kept).double().numpy()[rows]
            for row, one, exponent in zip(exact, numbers, kept.exponents[rows].tolist(), strict=True):
                every = grid(form, exponent)
                place = np.searchsorted(every, np.abs(row)).clip(1)
                step = every[place] - every[place - 1]
                assert (np.abs(row - one) <= step * (1 + 1e-4)).all()
            own[rows] = numbers


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("some", [False, True])
def test_steps_are_those_of_adam_in_float64(kernels: ModuleType, some: bool) -> None:
    """Every step is Adam's from the moments as they are kept, and these are rounded to one of their neighbors."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, 30, generator=generator)
    m, v = moments((20, 30))
    oracle, last, every = Oracle(weight.clone()), torch.zeros(20, dtype=torch.int64), torch.arange(20)
    for t in range(1, 8):
        grad = torch.randn(20, 30, generator=generator) * 10.0 ** -torch.arange(20)[:, None].div(4)
        step = AdamStep(0.01, 0.9, 0.99, 1e-3, t, unit_rows=True, project=True)
        if some:
            kernels.adam_rows(weight, every, grad, m, v, last, step)
        else:
            kernels.adam(weight, grad, m, v, step)
        oracle.step(t, every.numpy(), grad.double().numpy(), (m, v))
        np.testing.assert_allclose(weight.double().numpy(), oracle.w, rtol=0, atol=2e-5)
        oracle.w = weight.double().numpy()


def test_rows_that_rest_decay_in_8_bits() -> None:
    found = []
    for kernels in BACKENDS:
        weight = torch.ones(4, 300)
        m, v = moments((4, 300))
        last, rows = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 2])
        kernels.adam_rows(weight, rows, torch.ones(2, 300), m, v, last, AdamStep(0.01, 0.9, 0.99, 1e-3, 1))
        before = weight.clone()
        kernels.adam_rows(weight, rows, torch.zeros(2, 300), m, v, last, AdamStep(0.01, 0.9, 0.99, 1e-3, 9))
        assert not m.codes[1::2].any()
        assert float(widened(m)[0].mean()) == pytest.approx(0.1 * 0.9**8, rel=5e-3)
        assert float(widened(v)[2].mean()) == pytest.approx(0.01 * 0.99**8, rel=1e-2)
        assert bool((weight[rows] < before[rows]).all())
        assert torch.equal(weight[1], before[1])
        found.append(weight)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_slow_average_moves_in_8_bits() -> None:
    """As in bfloat16; and since its grid does not move, only its changes are rounded: it is not far off anywhere."""
    weight, (m, v) = torch.zeros(1, 2000), moments((1, 2000))
    v = narrowed(torch.ones(1, 2000), UNSIGNED, seed=0)
    grad = torch.full((1, 2000), math.sqrt(0.5))
    for t in range(1, 1501):
        compiled.adam(weight, grad, m, v, AdamStep(0.0, 0.9, 0.999, 1e-8, t))
    end = 0.5 + 0.5 * 0.999**1500
    assert float(widened(v).mean()) == pytest.approx(end, abs=0.01)
    assert float(widened(v).std()) < 0.15 * end


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("state", [torch.int8, torch.bfloat16])
def test_shards_round_as_the_whole_matrix(kernels: ModuleType, some: bool, state: torch.dtype) -> None:
    """Every third row, stepped by itself, gets the bits that it gets among all others."""
    generator, half = torch.Generator().manual_seed(4), state == torch.bfloat16
    shape, size = (13, 40), 3

    def begun(rows: int) -> tuple[torch.Tensor | Bytes, torch.Tensor | Bytes, torch.Tensor]:
        m, v = moments((rows, 40))
        if half:
            return torch.zeros(rows, 40).to(state), torch.zeros(rows, 40).to(state), torch.zeros(rows).long()
        return m, v, torch.zeros(rows).long()

    weight = torch.randn(shape, generator=generator).bfloat16()
    parts = [weight[rank::size].clone() for rank in range(size)]
    (m, v, last), ours = begun(len(weight)), [begun(len(part)) for part in parts]
    for t in range(1, 5):
        step = AdamStep(0.01, 0.9, 0.99, 1e-3, t, unit_rows=True, project=True)
        grad = torch.randn(shape, generator=generator)
        on = torch.rand(13, generator=generator) < 0.7
        if some:
            kernels.adam_rows(weight, on.nonzero().flatten(), grad[on], m, v, last, step)
        else:
            kernels.adam(weight, grad, m, v, step)
        for rank, part in enumerate(parts):
            own, share = on[rank::size], grad[rank::size].contiguous()
            step = step._replace(shard=(rank, size))
            if some:
                kernels.adam_rows(part, own.nonzero().flatten(), share[own], *ours[rank], step)
            else:
                kernels.adam(part, share, *ours[rank][:2], step)
    for rank, part in enumerate(parts):
        assert torch.equal(part, weight[rank::size])
        for own, whole in zip(ours[rank], (m, v, last), strict=True):
            for x, every in zip(*(t if isinstance(t, Bytes) else (t,) for t in (own, whole)), strict=True):
                assert torch.equal(x, every[rank::size])


@pytest.mark.parametrize("some", [False, True])
def test_steps_of_weights_in_bfloat16_are_right_on_average(some: bool) -> None:
    """Each step is a quarter of the way to the next number: rounded to the nearest, nothing would ever move."""
    n, size, moved = 40_000, 2.0**-10, []
    for kernels in BACKENDS:
        weight, last = torch.ones(1, n).bfloat16(), torch.zeros(1, dtype=torch.int64)
        m, v, grad = torch.zeros(1, n), torch.zeros(1, n), torch.ones(1, n)
        step = AdamStep(size, 0.9, 0.999, 1e-12, 1)
        if some:
            kernels.adam_rows(weight, torch.tensor([0]), grad, m, v, last, step)
        else:
            kernels.adam(weight, grad, m, v, step)
        assert weight.unique().tolist() == [1 - 2.0**-8, 1]
        assert float(weight.double().mean()) == pytest.approx(
            1 - size, abs=4 * 2.0**-8 * math.sqrt(0.25 * 0.75 / n)
        )
        moved.append(weight)
    assert float((moved[0] != moved[1]).double().mean()) < 1e-3  # where arithmetic differs in the last bit


def test_products_with_weights_in_bfloat16_are_those_with_their_numbers() -> None:
    generator = torch.Generator().manual_seed(2)
    n, k, d, starts = 50, 6, 40, (0, 100, 400)
    half = torch.randn(starts[-1], d, generator=generator).bfloat16()
    ids = torch.randint(0, starts[-1], (n, k), generator=generator)
    values, x = torch.rand(n, k, generator=generator), torch.randn(n, d, generator=generator)
    rows, first = torch.arange(n).repeat_interleave(k), torch.arange(n + 1) * k
    stats = torch.zeros(n, 1), torch.ones(n, 1)
    below = torch.arange(starts[-1] + 1).clamp(max=100) * 3
    children, active = torch.arange(100, 400), torch.randint(0, 100, (n, 2), generator=generator)
    active[:, 1] = -1
    for kernels in BACKENDS:

        def products(
            weight: torch.Tensor, kernels: ModuleType = kernels
        ) -> list[torch.Tensor | tuple[torch.Tensor, ...]]:
            errors, squared = kernels.layer_errors(values, ids, starts, weight, x[0], x, *stats)
            grads = kernels.layer_gradients(
                errors, torch.ones(2), [None, x], stats[1], values, ids, starts, weight, padded=False
            )
            return [
                kernels.weighted_rows(values.flatten(), ids.flatten(), first, weight),
                kernels.gather_dot(x, rows, ids.flatten(), weight),
                (errors, squared),
                grads,
                kernels.top_children(x, weight, active, below, children, 2, torch.float32),
                kernels.best_children(x, weight, active, below, children, 2),
            ]

        for ours, exact in zip(products(half), products(half.float()), strict=True):
            torch.testing.assert_close(ours, exact, rtol=0, atol=0)
