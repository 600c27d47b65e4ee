import pytest
import torch

from saeforest.kernels import embedding_bag, reference, sparse_decode, sparse_encode

N, K, F, D = 7, 3, 11, 5


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(F, generator=g)[:K] for _ in range(N)])
    ids[0] = 0  # unused slots share an id
    values = torch.rand(N, K, generator=g, dtype=torch.float64)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    return values, ids, x, torch.randn(F, D, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fast_equals_reference(dtype: torch.dtype) -> None:
    values, ids, x, weight = inputs()
    values, x, weight = values.to(dtype), x.to(dtype), weight.to(dtype)
    for name, args in {
        "weighted_rows": (values, ids, weight),
        "gather_dot": (x, ids, weight),
        "scatter_outer": (values, ids, x, F),
    }.items():
        torch.testing.assert_close(getattr(embedding_bag, name)(*args), getattr(reference, name)(*args))


def test_gradients_equal_the_dense_formula() -> None:
    values, ids, x, weight = inputs()
    for leaf in (values, x, weight):
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: sparse_decode(v, ids, w), (values, weight))
    assert torch.autograd.gradcheck(lambda u, w: sparse_encode(u, ids, w), (x, weight))
    dense = torch.zeros(N, F, dtype=torch.float64).scatter_add(1, ids, values) @ weight
    torch.testing.assert_close(sparse_decode(values, ids, weight), dense)
    torch.testing.assert_close(sparse_encode(x, ids, weight), (x @ weight.T).gather(1, ids))


def test_known_values_keep_the_gradient() -> None:
    _, ids, x, weight = inputs()
    weight.requires_grad_()
    known = embedding_bag.gather_dot(x, ids, weight).detach()
    for given in (None, known):
        (grad,) = torch.autograd.grad(sparse_encode(x, ids, weight, given).sum(), weight)
        torch.testing.assert_close(grad, reference.scatter_outer(torch.ones(N, K).double(), ids, x, F))


def test_products_repeat_bit_for_bit() -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (4096, 16), generator=g)
    values, x = torch.rand(4096, 16, generator=g), torch.randn(4096, 32, generator=g)
    first, second = (embedding_bag.scatter_outer(values, ids, x, 50) for _ in range(2))
    assert torch.equal(first, second)
