"""Every implementation of the kernels against the slow reference, the dense formula or the plain one."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from saeforest.errors import InputError
from saeforest.kernels import (
    backend,
    compiled,
    jagged_decode,
    jagged_encode,
    layer_errors,
    plain,
    reference,
    scatter_outer,
    sparse_decode,
    sparse_encode,
)
from saeforest.kernels.backend import VARIABLE

N, K, F, D = 41, 5, 67, 13
STARTS = (0, 8, 30, F)
BACKENDS = [plain, compiled]
DTYPES = [torch.float64, torch.float32]


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def code(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids: a row without features, and one with unused slots."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(F, generator=g)[:K] for _ in range(N)])
    values = torch.rand(N, K, generator=g, dtype=torch.float64) + 0.1
    ids[0], values[0] = 0, 0
    ids[1, 2:], values[1, 2:] = 0, 0
    return values.to(dtype), ids


def entries(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(len(ids)).repeat_interleave(ids.shape[1]), torch.arange(len(ids) + 1) * ids.shape[1]


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_the_reference(kernels: ModuleType, dtype: torch.dtype) -> None:
    values, ids = code(dtype=dtype)
    x, weight = rand(N, D, dtype=dtype), rand(F, D, dtype=dtype, seed=1)
    rows, first = entries(ids)
    flat, which = values.flatten(), ids.flatten()
    torch.testing.assert_close(
        kernels.weighted_rows(flat, which, first, weight), reference.weighted_rows(values, ids, weight)
    )
    torch.testing.assert_close(
        kernels.gather_dot(x, rows, which, weight).view(N, K), reference.gather_dot(x, ids, weight)
    )
    torch.testing.assert_close(
        kernels.scatter_outer(flat, rows, which, x, F), reference.scatter_outer(values, ids, x, F)
    )


@pytest.mark.parametrize("kernels", BACKENDS)
def test_products_of_rows_of_any_length(kernels: ModuleType) -> None:
    rows = torch.tensor([1, 1, 1, 1, 1, 1, 3])
    first = torch.tensor([0, 0, 6, 6, 7, 7])
    ids = torch.tensor([4, 0, 2, 3, 1, 5, 2])
    values, x, weight = rand(7), rand(5, D, seed=1), rand(6, D, seed=2)
    dense = torch.zeros(5, 6, dtype=torch.float64).index_put((rows, ids), values)
    torch.testing.assert_close(kernels.weighted_rows(values, ids, first, weight), dense @ weight)
    torch.testing.assert_close(kernels.scatter_outer(values, rows, ids, x, 6), dense.T @ x)
    torch.testing.assert_close(kernels.gather_dot(x, rows, ids, weight), (x @ weight.T)[rows, ids])
    none = torch.zeros(0, dtype=torch.int64)
    assert not kernels.weighted_rows(values[:0], none, torch.zeros(4, dtype=torch.int64), weight).any()
    assert not kernels.scatter_outer(values[:0], none, none, x, 6).any()


def test_gradients_equal_the_dense_formula() -> None:
    values, ids = code()
    x, weight, center = rand(N, D), rand(F, D, seed=1), rand(D, seed=2)
    for leaf in (values, x, weight, center):
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: sparse_decode(v, ids, w), (values, weight))
    assert torch.autograd.gradcheck(lambda u, w: sparse_encode(u, ids, w), (x, weight))
    dense = torch.zeros(N, F, dtype=torch.float64).scatter_add(1, ids, values) @ weight
    torch.testing.assert_close(sparse_decode(values, ids, weight), dense)
    torch.testing.assert_close(sparse_encode(x, ids, weight), (x @ weight.T).gather(1, ids))


def test_what_was_taken_off_gets_its_gradient() -> None:
    _, ids = code()
    x, weight, center, pull = rand(N, D), rand(F, D, seed=1), rand(D, seed=2), rand(N, K, seed=3)
    center.requires_grad_()
    weight.requires_grad_()
    ((x - center) @ weight.T).gather(1, ids).backward(pull)
    expected = center.grad, weight.grad
    center.grad = weight.grad = None
    sparse_encode(x - center.detach(), ids, weight, center).backward(pull)
    torch.testing.assert_close((center.grad, weight.grad), expected)


def test_known_values_keep_the_gradient() -> None:
    _, ids = code()
    x, weight = rand(N, D), rand(F, D, seed=1).requires_grad_()
    known = reference.gather_dot(x, ids, weight).detach()
    expected = reference.scatter_outer(torch.ones(N, K).double(), ids, x, F)
    for given in (None, known):
        h = sparse_encode(x, ids, weight, known=given)
        torch.testing.assert_close(h, known)
        torch.testing.assert_close(torch.autograd.grad(h.sum(), weight)[0], expected)


def test_an_empty_code_is_a_zero_without_gradient() -> None:
    values, ids, weight = torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.int64), torch.ones(F, D)
    assert torch.equal(sparse_decode(values, ids, weight.requires_grad_()), torch.zeros(3, D))
    assert sparse_encode(torch.ones(3, D), ids, weight).shape == (3, 0)


# -- selection


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "k"), [(1, 1), (7, 7), (40, 3), (500, 32), (5000, 1), (5000, 20), (900, 256)]
)
def test_top_positive_equals_sorting(kernels: ModuleType, dtype: torch.dtype, width: int, k: int) -> None:
    h = rand(N, width, dtype=dtype)
    h[3], h[4], h[5, 1:] = -1, 0, -2  # none positive, and at most one
    values, ids = kernels.top_positive(h, k)
    expected = h.sort(dim=1, descending=True).values[:, :k].relu()
    torch.testing.assert_close(values.sort(dim=1, descending=True).values, expected)
    torch.testing.assert_close(torch.where(values > 0, h.gather(1, ids), 0), values)
    assert (ids[values == 0] == 0).all()
    assert all(len(i[v > 0].unique()) == int((v > 0).sum()) for i, v in zip(ids, values, strict=True))
    assert ((values > 0).int().diff(dim=1) <= 0).all(), "unused slots come last"


@pytest.mark.parametrize("kernels", BACKENDS)
def test_top_positive_of_equals_takes_no_more_than_k(kernels: ModuleType) -> None:
    h = torch.ones(2, 1000)
    h[1, 700:703] = 2
    values, ids = kernels.top_positive(h, 5)
    assert values[0].tolist() == [1] * 5
    assert sorted(values[1].tolist()) == [1, 1, 2, 2, 2]
    assert len(ids[0].unique()) == len(ids[1].unique()) == 5


def families(n_parents: int, n_children: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Children of features 0 to n_parents, the first of which has most and the last none."""
    g = torch.Generator().manual_seed(seed)
    parent = (torch.rand(n_children, generator=g) ** 2 * (n_parents - 1)).long()
    order = parent.argsort(stable=True)
    first = torch.searchsorted(parent[order], torch.arange(n_parents + n_children + 1))
    return first, n_parents + order


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("parents", "children", "k"), [(6, 60, 4), (30, 37, 2), (2, 5, 9), (9, 200, 40)])
@pytest.mark.parametrize("kernel", ["top_children", "best_children"])
def test_top_children_equals_the_dense_gate(
    kernels: ModuleType, kernel: str, dtype: torch.dtype, parents: int, children: int, k: int
) -> None:
    first, below = families(parents, children)
    u, encoder = rand(N, D, dtype=dtype), rand(parents + children, D, dtype=dtype, seed=1)
    g = torch.Generator().manual_seed(2)
    slots = min(parents, 5)
    active = torch.stack([torch.randperm(parents, generator=g)[:slots] for _ in range(N)])
    active[::4, 1] = -1
    active[7] = -1
    precision = [dtype] if kernel == "top_children" else []
    values, ids = getattr(kernels, kernel)(u, encoder, active, first, below, k, *precision)

    parent = torch.repeat_interleave(torch.arange(parents + children), first.diff())
    slots = torch.where(active < 0, parents + children, active)
    on = torch.zeros(N, parents + children + 1, dtype=torch.bool).scatter_(1, slots, True)[:, :-1]
    h = (u.double() @ encoder[below].T.double() * on[:, parent]).relu()
    expected = h.sort(dim=1, descending=True).values[:, :k]
    got = values.sort(dim=1, descending=True).values
    torch.testing.assert_close(got[:, : expected.shape[1]].double(), expected, atol=1e-5, rtol=1e-5)
    assert not got[:, expected.shape[1] :].any()
    used = values > 0
    assert used.any()
    own = torch.einsum("nd,nkd->nk", u, encoder[ids])
    torch.testing.assert_close(values[used], own[used])
    assert (ids[~used] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_children_are_as_many_as_fit(dtype: torch.dtype) -> None:
    """Also where many are equal."""
    first, below = families(9, 200)
    u, encoder = rand(N, D, dtype=dtype), rand(209, D, dtype=dtype, seed=1).sign()
    u, active = u.sign(), torch.arange(N * 3).view(N, 3) % 9
    for k in (1, 5, 40, 300):
        a, b = (torch.sort(m.best_children(u, encoder, active, first, below, k)[0]).values for m in BACKENDS)
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 6, 30, 50])
def test_the_best_of_a_closed_selection(dtype: torch.dtype, k: int) -> None:
    """With few different numbers, so that scores, layers and values are equal in turn."""
    ids = torch.stack([torch.randperm(F, generator=torch.Generator().manual_seed(t))[:40] for t in range(N)])
    scores, values = (rand(N, 40, seed=i, dtype=dtype).mul(2).round().relu() for i in (1, 2))
    found = [m.closed_best(scores, values, ids, STARTS, k) for m in BACKENDS]
    for t in range(N):
        slots = [j for j in range(40) if scores[t, j] > 0]
        layer = [sum(int(ids[t, j]) >= start for start in STARTS) for j in range(40)]
        slots.sort(key=lambda j: (-scores[t, j], layer[j], -values[t, j], ids[t, j]))
        for chosen, used in found:
            assert int(used[t]) == min(k, len(slots))
            assert sorted(chosen[t, : used[t]].tolist()) == sorted(slots[:k])


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_kth_largest(kernels: ModuleType, dtype: torch.dtype) -> None:
    values = rand(N, 40, dtype=dtype).relu()
    ordered = sorted(values.flatten().tolist(), reverse=True)
    for k in (1, 7, 300, N * 40, N * 40 + 1):
        assert kernels.kth_largest(values, k) == [*ordered, 0.0][k - 1]


@pytest.mark.parametrize("kernels", BACKENDS)
def test_kept_slots_keep_their_order(kernels: ModuleType) -> None:
    values, ids = code()
    for least in (0.4, 2.0):  # the second keeps none
        kept = values > least
        found_values, found_ids = kernels.kept_slots(values, ids, kept)
        assert found_ids.shape == found_values.shape == (N, max(int(kept.sum(1).max()), 1))
        for t in range(N):
            n = int(kept[t].sum())
            assert found_values[t, :n].tolist() == values[t, kept[t]].tolist()
            assert found_ids[t, :n].tolist() == ids[t, kept[t]].tolist()
            assert not found_values[t, n:].any()
            assert not found_ids[t, n:].any()


def test_children_of_nobody() -> None:
    first, below = torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for kernels in BACKENDS:
        values, _ = kernels.top_children(
            rand(2, D), rand(3, D), torch.tensor([[0], [-1]]), first, below, 2, torch.float64
        )
        assert torch.equal(values, torch.zeros(2, 2, dtype=torch.float64))


# -- the errors of all layers


def dense_errors(
    values: torch.Tensor,
    ids: torch.Tensor,
    decoder: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> list[torch.Tensor]:
    every = torch.zeros(N, F, dtype=values.dtype).scatter_add(1, ids, values)
    return [std * (every[:, :end] @ decoder[:end] + bias) + mean - x for end in STARTS[1:]]


@pytest.mark.parametrize("name", ["plain", "auto"])
@pytest.mark.parametrize(("pulled", "padded"), [((), False), ((1,), True), ((0, 2), False), ((0, 2), True)])
def test_layer_errors_equal_the_dense_formula(
    name: str, pulled: tuple[int, ...], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients through the squares alone, and through some of the errors too."""
    monkeypatch.setenv(VARIABLE, name)
    values, ids = code()
    decoder, bias, x = rand(F, D, seed=1), rand(D, seed=2), rand(N, D, seed=3)
    mean, std = rand(N, 1, seed=4), rand(N, 1, seed=5).abs() + 0.1
    weights = torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (values, decoder, bias)]

    def loss(squared: torch.Tensor, errors: list[torch.Tensor]) -> torch.Tensor:
        pull = sum(((errors[i] * rand(N, D, seed=9 + i)).sum() for i in pulled), torch.zeros(()).double())
        return (weights * squared).sum() + pull

    errors = dense_errors(values, ids, decoder, bias, x, mean, std)
    squared = torch.stack([e.square().sum() for e in errors])
    expected = torch.autograd.grad(loss(squared, errors), leaves)
    got_squared, got = layer_errors(values, ids, decoder, bias, x, mean, std, STARTS, padded=padded)
    torch.testing.assert_close(got_squared, squared)
    torch.testing.assert_close(torch.stack(got), torch.stack(errors))
    gradients = torch.autograd.grad(loss(got_squared, got), leaves)
    used = values.detach() > 0
    torch.testing.assert_close(gradients[0][used], expected[0][used])
    torch.testing.assert_close(gradients[1:], expected[1:])


# -- bad input


@pytest.mark.parametrize("wrong", [-1, F, 10**9])
def test_an_id_that_is_no_feature_is_an_error(wrong: int) -> None:
    values, ids = torch.ones(2, 3), torch.tensor([[0, 1, 2], [3, wrong, 4]])
    weight, x, rows = torch.ones(F, D), torch.ones(2, D), torch.tensor([0, 0, 0, 1, 1, 1])
    ones = torch.ones(2, 1)
    for call in (
        lambda: sparse_decode(values, ids, weight),
        lambda: sparse_encode(x, ids, weight),
        lambda: scatter_outer(values, ids, x, F),
        lambda: jagged_decode(values.flatten(), ids.flatten(), rows, 2, weight),
        lambda: jagged_encode(x, ids.flatten(), rows, weight),
        lambda: layer_errors(values, ids, weight, x[0], x, ones, ones, STARTS),
    ):
        with pytest.raises(InputError, match=f"feature id {wrong}: expected 0 to {F - 1}"):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_is_never_chosen(dtype: torch.dtype) -> None:
    """Nor does it take the place of a number, whatever its bits."""
    h = rand(N, 300, dtype=dtype)
    expected = compiled.top_positive(torch.where(torch.arange(300) % 3 == 0, 0, h), 8)
    bits = h.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[h.element_size()])
    bits[:, ::3] = torch.iinfo(bits.dtype).max
    assert h.isnan().any()
    got = compiled.top_positive(h, 8)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    h[0, 1] = torch.inf
    assert torch.isinf(compiled.top_positive(h, 8)[0][0]).sum() == 1


def test_crowds_of_children_are_met_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, below = families(9, 200)
    u, encoder = rand(N, D), rand(209, D, seed=1)
    active = torch.arange(N)[:, None] % 9
    whole = compiled.top_children(u, encoder, active, first, below, 7, torch.float64)
    monkeypatch.setattr(compiled, "_SCORES", 40)
    parts = compiled.top_children(u, encoder, active, first, below, 7, torch.float64)
    torch.testing.assert_close(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_children_of_a_wide_parent_take_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with scores as good as that; children of other parents have exact scores as before."""
    first, below = families(9, 200)
    u, encoder = rand(N, D, dtype=torch.float32), rand(209, D, dtype=torch.float32, seed=1)
    active = torch.stack([torch.arange(N) % 9, (torch.arange(N) + 4) % 9], dim=1)
    args = (u, encoder, active, first, below, 7)
    exact = compiled.top_children(*args, torch.float32)[0].sort(dim=1).values
    monkeypatch.setattr(compiled, "_WIDE_TOKENS", 2)
    monkeypatch.setattr(compiled, "_WIDE_CHILDREN", 25)
    monkeypatch.setattr(compiled, "_WIDE_SCORES", 60)
    values, ids = compiled.top_children(*args, torch.bfloat16)
    own = torch.einsum("nd,nkd->nk", u, encoder[ids])
    used = values > 0
    assert used.any()
    torch.testing.assert_close(values[used], own[used], rtol=2**-6, atol=2**-5)
    torch.testing.assert_close(values.sort(dim=1).values, exact, rtol=2**-6, atol=2**-5)
    parent = torch.repeat_interleave(torch.arange(209), first.diff())[
        (below == ids[..., None]).int().argmax(2)
    ]
    many = first.diff()[parent] >= 25
    inexact = (values - own).abs() > 1e-5
    assert inexact[used & many].any()
    assert not inexact[used & ~many].any()
    best = compiled.best_children(*args)[0].sort(dim=1).values  # whose values are taken as they are
    torch.testing.assert_close(best, exact, rtol=1e-5, atol=1e-6)


def test_a_forked_process_has_threads_of_its_own() -> None:
    script = """
import os, signal, torch
from saeforest.kernels import compiled
torch.set_num_threads(2)
h = torch.rand(64, 64)
expected = compiled.top_positive(h, 3)
child = os.fork()
if child == 0:
    signal.alarm(20)  # instead of waiting for ever
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(compiled.top_positive(h, 3)[0], expected[0]) else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False, timeout=120)
    assert done.returncode == 0


# -- which kernels serve


def test_the_compiled_kernels_serve_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("numba"), "Numba belongs to the development environment"
    assert backend(torch.zeros(1)) is compiled
    assert backend(torch.zeros(1, dtype=torch.bfloat16)) is plain
    monkeypatch.setenv(VARIABLE, "plain")
    assert backend(torch.zeros(1)) is plain


@pytest.mark.parametrize("kernels", BACKENDS)
def test_products_repeat_bit_for_bit(kernels: ModuleType) -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (4096, 16), generator=g)
    values, x = torch.rand(4096, 16, generator=g), torch.randn(4096, 32, generator=g)
    rows, first = entries(ids)
    weight = torch.randn(50, 32, generator=g)

    def everything() -> list[torch.Tensor]:
        flat, which = values.flatten(), ids.flatten()
        return [
            kernels.scatter_outer(flat, rows, which, x, 50),
            kernels.weighted_rows(flat, which, first, weight),
            kernels.gather_dot(x, rows, which, weight),
        ]

    threads = torch.get_num_threads()
    first_time = everything()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        second_time = everything()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first_time, second_time, strict=True))
