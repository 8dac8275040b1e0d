"""The shared fixtures work as documented."""

import pytest
import torch
from jaxtyping import TypeCheckError

from cynosure.loss import reference


def uninitialised(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return one tensor (2, 3) for each way to allocate uninitialized memory."""
    like = torch.zeros(2, 3, dtype=dtype)
    return [
        torch.empty(2, 3, dtype=dtype),
        torch.empty_like(like),
        like.new_empty(2, 3),
        torch.empty_strided((2, 3), (1, 2), dtype=dtype),
        like.new_empty_strided((2, 3), (1, 2)),
        torch.zeros(0, dtype=dtype).resize_(2, 3),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("poison_empty")
def test_empty_floats_are_poisoned(dtype: torch.dtype) -> None:
    for tensor in uninitialised(dtype):
        assert tensor.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.usefixtures("poison_empty")
def test_empty_integers_are_poisoned(dtype: torch.dtype) -> None:
    for tensor in uninitialised(dtype):
        assert (tensor == torch.iinfo(dtype).max).all()


def test_poison_is_gone_after_the_test() -> None:
    assert not torch.are_deterministic_algorithms_enabled()


def test_annotations_are_checked() -> None:
    with pytest.raises(TypeCheckError, match="logits"):
        reference.forward([0.0], reference.Terms(torch.ones(1, 1), torch.ones(1)))  # type: ignore[arg-type]
