"""Which kernels are chosen, on a GPU too: the tensors here say that they are on one, and hold nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from saeforest import InputError
from saeforest.kernels import AdamStep, Bytes, plain
from saeforest.kernels import compiled as numba
from saeforest.kernels.backend import VARIABLE, backend
from saeforest.kernels.low_precision import SIGNED, UNSIGNED, narrowed, widened

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from saeforest.kernels import triton_gpu

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def nothing() -> Iterator[None]:
    """Tensors without numbers, on any device."""
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize(
    ("device", "dtype", "weight", "kernels"),
    [
        ("cpu", SINGLE, None, numba),
        ("cpu", DOUBLE, DOUBLE, numba),
        ("cpu", SINGLE, HALF, numba),
        ("cpu", DOUBLE, HALF, plain),
        ("cpu", HALF, None, plain),
        ("cuda", SINGLE, None, triton_gpu),
        ("cuda", SINGLE, SINGLE, triton_gpu),
        ("cuda", SINGLE, HALF, plain),  # --optim.weights bfloat16
        ("cuda", DOUBLE, DOUBLE, plain),
        ("cuda", HALF, None, plain),
    ],
)
def test_the_kernels_for_a_device_and_types(
    device: str,
    dtype: torch.dtype,
    weight: torch.dtype | None,
    kernels: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.empty(3, 4, device=device, dtype=dtype)
    matrix = None if weight is None else torch.empty(5, 4, device=device, dtype=weight)
    assert backend(x, matrix) is kernels
    monkeypatch.setenv(VARIABLE, "plain")
    assert backend(x, matrix) is plain


def test_an_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(InputError, match="SAEFOREST_KERNELS=fast: expected auto or plain"):
        backend(torch.ones(2))


@pytest.mark.parametrize("some", [False, True], ids=["all rows", "active rows"])
def test_moments_in_8_bits_take_plain_steps_on_a_gpu_too(some: bool) -> None:
    """Triton's Adam has no steps for them: it would fail here, where there is no GPU, if it tried."""
    generator = torch.Generator().manual_seed(0)
    weight, grad, step = (
        torch.randn(6, 8, generator=generator),
        torch.randn(6, 8, generator=generator),
        AdamStep(0.1, 0.9, 0.999, 1e-8, 3, unit_rows=False, project=False),
    )

    def stepped(kernels: object) -> list[torch.Tensor]:
        own, first = weight.clone(), narrowed(grad * 0.1, SIGNED, seed=1)
        second = narrowed(grad.square(), UNSIGNED, seed=2)
        if some:
            rows = torch.tensor([1, 4])
            last = torch.full((6,), 2)
            kernels.adam_rows(own, rows, grad[rows], first, second, last, step)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            kernels.adam(own, grad, first, second, step)  # pyright: ignore[reportAttributeAccessIssue]
        return [own, *(widened(Bytes(*each)) for each in (first, second))]

    for found, expected in zip(stepped(triton_gpu), stepped(plain), strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(stepped(triton_gpu)[0], weight)
