"""The faster products and attention of a body on a CPU: the same results, to the rounding of the dtype."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cynosure.models.cpu import FastCpu, attention, can_block, linear
from tests.loss.subclasses import LinearAlone

SHAPES = [(1, 2, 2, 300, 16), (2, 6, 3, 129, 8), (1, 4, 1, 128, 32), (3, 2, 1, 5, 8), (1, 1, 1, 1, 8)]


def heads(shape: tuple[int, int, int, int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of B texts, H and K heads, T tokens and D dimensions, as models have them: transposed."""
    n_batch, n_heads, n_kv, n_tokens, size = shape
    torch.manual_seed(seed)
    query = torch.randn(n_batch, n_tokens, n_heads, size, dtype=torch.bfloat16).transpose(1, 2)
    key, value = torch.randn(2, n_batch, n_tokens, n_kv, size, dtype=torch.bfloat16).transpose(2, 3)
    return query, key, value


def band(n_queries: int, n_keys: int, width: int) -> torch.Tensor:
    """Causal, and no further back than `width`."""
    ones = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool)
    return ones.tril(n_keys - n_queries).triu(n_keys - n_queries - width + 1)


def check_close(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> None:
    """No further from float64 than twice torch's own, in the same dtype."""
    truth = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), enable_gqa=True, **options)
    torch_own = F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)
    with torch.no_grad():
        ours = attention(query, key, value, enable_gqa=True, **options)
    errors = [((found.double() - truth).norm() / truth.norm()).item() for found in (ours, torch_own)]
    assert ours.dtype == torch_own.dtype
    assert errors[0] <= 2 * errors[1] + 1e-3, errors


@torch.no_grad()
def test_weights_without_memory_multiply_themselves() -> None:
    x, weight = torch.randn(3, 8), LinearAlone(torch.randn(5, 8))
    torch.testing.assert_close(linear(x, weight), x @ weight.read().t())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torchs(shape: tuple[int, int, int, int, int], scale: float | None) -> None:
    query, key, value = heads(shape)
    assert can_block(query, key, value, None, True)
    check_close(query, key, value, is_causal=True, scale=scale)


@pytest.mark.parametrize("width", [1, 40, 128, 200, 1000])
def test_windows_of_attention(width: int) -> None:
    query, key, value = heads((2, 4, 2, 300, 16))
    mask = band(300, 300, width)
    for given in (mask, mask.expand(2, 4, -1, -1)):
        assert can_block(query, key, value, given, False)
        check_close(query, key, value, attn_mask=given)
    check_close(query[:, :, 170:], key, value, attn_mask=band(130, 300, width))


def test_any_mask_will_do() -> None:
    query, key, value = heads((1, 2, 2, 150, 8))
    mask = torch.rand(1, 1, 150, 150) < 0.5
    mask[..., 0] = True  # everyone sees something
    check_close(query, key, value, attn_mask=mask)


def test_what_does_not_fit_goes_to_torch() -> None:
    query, key, value = heads((2, 2, 2, 20, 8))
    of_each_text = band(20, 20, 3).expand(2, 1, -1, -1).clone()
    assert not can_block(query, key, value, of_each_text, False)
    assert not can_block(query.float(), key.float(), value.float(), None, True)
    assert not can_block(query, key, value, None, False)
    assert not can_block(query, key, value, of_each_text[:1].to(torch.bfloat16), False)
    check_close(query, key, value, attn_mask=of_each_text)


def test_linear_is_torchs() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 7, 16), torch.randn(5, 16), torch.randn(5)
    for given in (None, bias):
        torch.testing.assert_close(linear(x, weight, given), F.linear(x, weight, given))
    torch.testing.assert_close(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))


def test_the_mode_replaces_both_and_only_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        "cynosure.models.cpu.FASTER", {F.linear: lambda *a, **k: calls.append("linear") or F.linear(*a, **k)}
    )
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    with FastCpu():
        layer(x)
        assert calls == []
        with torch.no_grad():
            layer(x)
            torch.relu(x)
    assert calls == ["linear"]
    with torch.no_grad():
        layer(x)
    assert calls == ["linear"]
