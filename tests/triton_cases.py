"""The Triton kernels against the plain ones. `test_triton.py` runs this in a process of its own.

On a GPU the kernels are compiled, elsewhere interpreted (which takes `TRITON_INTERPRET=1`). By itself:

    pytest tests/triton_cases.py
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from saeforest.kernels import AdamStep, plain, triton_gpu
from saeforest.kernels.triton_gpu import select

# What Triton 3.9 says about a default that will change.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
WIDTHS = (37, 200, 520)  # part of a block of columns, not a power of two, several blocks
INTERPRETED = not torch.cuda.is_available()
PRECISIONS = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    """Where all tensors of a test are made."""
    name = "cpu" if INTERPRETED else "cuda"
    torch.manual_seed(0)
    with torch.device(name):
        yield name


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


# -- the sparse products


@pytest.mark.parametrize("d", WIDTHS)
def test_weighted_rows(d: int) -> None:
    weight, values, ids = torch.randn(11, d), torch.randn(29), torch.randint(0, 11, (29,))
    # One row, rows without entries, rows of one tile of entries and of several.
    for first in ([0, 29], [0, 0, 3, 3, 11, 28, 29, 29]):
        args = values, ids, torch.tensor(first), weight
        close(triton_gpu.weighted_rows(*args), plain.weighted_rows(*args))
    nothing = triton_gpu.weighted_rows(values[:0], ids[:0], torch.zeros(4, dtype=torch.long), weight)
    close(nothing, torch.zeros(3, d))


@pytest.mark.parametrize("d", WIDTHS)
def test_gather_dot(d: int) -> None:
    x, weight = torch.randn(5, d), torch.randn(d, 11).T  # of any strides
    for m in (0, 1, 23):
        rows, ids = torch.randint(0, 5, (m,)), torch.randint(0, 11, (m,))
        expected = (x[rows] * weight[ids]).sum(1)
        close(triton_gpu.gather_dot(x, rows, ids, weight), expected)
        close(
            triton_gpu.gather_dot(x, rows, ids, weight), plain.gather_dot(x, rows, ids, weight.contiguous())
        )


@pytest.mark.parametrize("d", WIDTHS)
def test_scatter_outer(d: int) -> None:
    # Features 0, 3 and 7 have no entries; 4 fills one chunk, 5 is just too long for one, 6 takes three.
    counts = torch.tensor([0, 1, 7, 0, 256, 257, 600, 0])
    ids = torch.arange(8).repeat_interleave(counts)
    ids = ids[torch.randperm(len(ids))]
    x, values, rows = torch.randn(5, d), torch.randn(len(ids)), torch.randint(0, 5, (len(ids),))
    found = triton_gpu.scatter_outer(values, rows, ids, x, 8)
    torch.testing.assert_close(found, plain.scatter_outer(values, rows, ids, x, 8), rtol=1e-5, atol=1e-4)
    assert torch.equal(found, triton_gpu.scatter_outer(values, rows, ids, x, 8))


def test_scatter_of_nothing() -> None:
    empty, no_ids = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    close(triton_gpu.scatter_outer(empty, no_ids, no_ids, torch.randn(3, 9), 4), torch.zeros(4, 9))


# -- which features act


def check_top_positive(h: Tensor, k: int) -> None:
    values, ids = triton_gpu.top_positive(h, k)
    close(values, plain.top_positive(h, k)[0])
    assert values.dtype == h.dtype
    order = h.sort(dim=1, descending=True, stable=True).indices[:, :k]  # of equal entries the first
    assert torch.equal(ids, torch.where(values > 0, order, 0))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("n", "m", "k"),
    [
        (1, 1, 1),
        (3, 37, 1),
        (4, 200, 16),
        (3, 50, 50),
        (2, 5001, 7),  # groups
        (2, 20000, 1),
        (1, 20001, 3000),  # groups of groups
    ],
)
def test_top_positive(n: int, m: int, k: int, dtype: torch.dtype) -> None:
    check_top_positive(torch.randn(n, m).to(dtype), k)


def test_more_than_a_search_finds() -> None:
    h = torch.randn(1, 5000)
    close(triton_gpu.top_positive(h, 4097), plain.top_positive(h, 4097))


@pytest.mark.parametrize("m", [60, 6000])
def test_equal_entries_and_too_few_positive_ones(m: int) -> None:
    ties = torch.randn(4, m).mul(2).round().div(2)
    few = torch.where(torch.arange(m) % (m // 5) == 3, torch.rand(4, m), -torch.rand(4, m))
    few[0] = -1
    few[1] = -0.0
    for k in (1, 13):
        check_top_positive(ties, k)
        check_top_positive(few, k)


class Tree:
    """Parents of very different numbers of children: none, few, and more than a tile holds."""

    def __init__(self, d: int) -> None:
        sizes = torch.tensor([3, 45, 0, 7, 0, 33, 1, 32])
        self.first = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        self.children = torch.randperm(130)[: int(sizes.sum())]
        self.encoder = torch.randn(130, d)

    def rows(self, n: int, n_active: int) -> Tensor:
        """Activations of all kinds: -1 in unused slots anywhere."""
        active = torch.stack([torch.randperm(8)[:n_active] for _ in range(n)])
        return torch.where(torch.rand(n, n_active) < 0.3, -1, active)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("d", "k"), [(37, 1), (37, 12), (200, 5), (37, 200)])
def test_top_children(d: int, k: int, precision: torch.dtype) -> None:
    tree = Tree(d)
    active = torch.cat([tree.rows(45, 3), torch.tensor([[-1, -1, -1], [2, 4, -1], [-1, 0, -1]])])
    active[:40, 0] = torch.where((active[:40] == 1).any(1), active[:40, 0], 1)  # more rows than a tile holds
    u = torch.randn(len(active), d)
    check_top_children(u, tree, active, k, precision)


def check_top_children(u: Tensor, tree: Tree, active: Tensor, k: int, precision: torch.dtype) -> None:
    if INTERPRETED:  # which rounds towards zero
        tree.encoder = tree.encoder.to(precision).float()
    found = triton_gpu.top_children(u, tree.encoder, active, tree.first, tree.children, k, precision)
    # The products of numbers in bfloat16 are exact in float32.
    u, encoder = u.to(precision).float(), tree.encoder.to(precision).float()
    expected = plain.top_children(u, encoder, active, tree.first, tree.children, k, torch.float32)
    close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_rows_with_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_DIRECT", 16)
    tree = Tree(37)
    for k in (1, 6):
        check_top_children(torch.randn(9, 37), tree, tree.rows(9, 5), k, torch.float32)


def test_no_candidates_at_all() -> None:
    tree = Tree(37)
    for active in (
        torch.tensor([[2, -1], [4, 2]]),
        torch.tensor([[-1, -1]]),
        tree.rows(2, 0),
        tree.rows(2, 3)[:0],
    ):
        values, ids = triton_gpu.top_children(
            torch.randn(len(active), 37), tree.encoder, active, tree.first, tree.children, 3, torch.float32
        )
        close((values, ids), (torch.zeros(len(active), 3), torch.zeros(len(active), 3, dtype=torch.long)))


# -- errors


@pytest.mark.parametrize("starts", [(0, 30), (0, 4, 30), (0, 4, 9, 9, 20, 30)])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 37, 1), (6, 200, 7), (3, 600, 9)])
def test_layers(n: int, d: int, k: int, starts: tuple[int, ...]) -> None:
    ids = torch.randint(0, 30, (n, k))
    values = torch.where(torch.rand(n, k) < 0.2, 0, torch.rand(n, k))
    decoder, bias, x = torch.randn(30, d), torch.randn(d), torch.randn(n, d)
    mean, std = torch.randn(n, 1), torch.rand(n, 1) + 0.5
    args = values, ids, starts, decoder, bias, x, mean, std
    expected = plain.layer_errors(*args)
    close(triton_gpu.layer_errors(*args), expected)

    factors = torch.randn(len(starts) - 1)
    some: list[Tensor | None] = [torch.randn(n, d) if i % 2 else None for i in range(len(factors))]
    none: list[Tensor | None] = [None] * len(factors)
    for extra in (some, none):
        args = expected[0], factors, extra, std, values, ids, starts, decoder
        found, correct = (m.layer_gradients(*args, padded=False) for m in (triton_gpu, plain))
        torch.testing.assert_close(found, correct, rtol=1e-5, atol=1e-4)


# -- the optimizer


@pytest.mark.parametrize("state", PRECISIONS)
@pytest.mark.parametrize(("unit_rows", "project"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(1, 37), (5, 200), (3, 1100)])
def test_adam(shape: tuple[int, int], unit_rows: bool, project: bool, state: torch.dtype) -> None:
    weight = torch.randn(shape)
    m, v = torch.zeros(shape, dtype=state), torch.zeros(shape, dtype=state)
    expected = weight.clone(), m.clone(), v.clone()
    for count in range(1, 5):
        # Tensors start equal every time: where one was rounded otherwise, the others would follow it.
        for t, right in zip((weight, m, v), expected, strict=True):
            t.copy_(right)
        grad = torch.randn(shape)
        step = AdamStep(0.01, 0.9, 0.99, 1e-8, count, unit_rows=unit_rows, project=project)
        triton_gpu.adam(weight, grad, m, v, step)
        plain.adam(expected[0], grad, expected[1], expected[2], step)
        torch.testing.assert_close(weight, expected[0], rtol=1e-5, atol=1e-6)
        for found, right in ((m, expected[1]), (v, expected[2])):
            if state == torch.bfloat16:
                torch.testing.assert_close(found, right, rtol=2**-7, atol=1e-7)
                # Rounded by the same draw: to differ, a last bit of float32 must decide.
                assert (found != right).float().mean() < 0.01
            else:
                torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("some", "unit_rows"), [(False, False), (False, True), (True, True)])
def test_shards_round_as_the_whole_matrix(some: bool, unit_rows: bool) -> None:
    """Every other row, stepped by itself, gets the bits that it gets among all others."""
    weight = torch.randn(5, 600)
    m, v = torch.zeros(5, 600).bfloat16(), torch.zeros(5, 600).bfloat16()
    last = torch.zeros(5).long()
    parts = [[t[rank::2].clone() for t in (weight, m, v, last)] for rank in range(2)]
    for count in (1, 2):
        grad = torch.randn(5, 600)
        step = AdamStep(0.01, 0.9, 0.99, 1e-8, count, unit_rows=unit_rows, project=unit_rows)
        for rank, (own, own_m, own_v, own_last) in enumerate(parts):
            part, rows, share = step._replace(shard=(rank, 2)), torch.arange(len(own)), grad[rank::2]
            if some:
                triton_gpu.adam_rows(own, rows, share, own_m, own_v, own_last, part)
            else:
                triton_gpu.adam(own, share, own_m, own_v, part)
        if some:
            triton_gpu.adam_rows(weight, torch.arange(5), grad, m, v, last, step)
        else:
            triton_gpu.adam(weight, grad, m, v, step)
        for rank, own in enumerate(parts):
            assert all(torch.equal(t, x[rank::2]) for t, x in zip(own, (weight, m, v, last), strict=True))


def test_adam_of_a_vector() -> None:
    weight, m, v = torch.randn(2100), torch.zeros(2100), torch.zeros(2100)
    expected, right_m, right_v = (t.clone()[None] for t in (weight, m, v))
    for count in (1, 2):
        grad, step = torch.randn(2100), AdamStep(0.01, 0.9, 0.99, 1e-8, count)
        triton_gpu.adam(weight, grad, m, v, step)
        plain.adam(expected, grad[None], right_m, right_v, step)
    close((weight, m, v), (expected[0], right_m[0], right_v[0]))


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "unit_rows"), [(37, True), (1100, False), (1100, True)])
def test_adam_of_some_rows(d: int, unit_rows: bool, state: torch.dtype) -> None:
    weight = torch.randn(7, d)
    m, v, last = torch.zeros(7, d, dtype=state), torch.zeros(7, d, dtype=state), torch.zeros(7).long()
    expected = weight.clone(), m.clone(), v.clone(), last.clone()
    for count, rows in enumerate(([0, 3, 6], [3], [0, 1, 3], [6, 2]), 1):
        for t, right in zip((weight, m, v, last), expected, strict=True):
            t.copy_(right)
        grad = torch.randn(len(rows), d)
        step = AdamStep(0.01, 0.9, 0.99, 1e-8, count, unit_rows=unit_rows, project=unit_rows)
        triton_gpu.adam_rows(weight, torch.tensor(rows), grad, m, v, last, step)
        plain.adam_rows(expected[0], torch.tensor(rows), grad, *expected[1:], step)
        torch.testing.assert_close(weight, expected[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(last, expected[3])
        for found, right in ((m, expected[1]), (v, expected[2])):
            if state == torch.bfloat16:
                torch.testing.assert_close(found, right, rtol=2**-7, atol=1e-7)
                assert (found != right).float().mean() < 0.01
            else:
                torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-7)
