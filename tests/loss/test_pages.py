"""Large tensors ask for huge pages, and nothing else changes."""

import sys
from pathlib import Path

import pytest
import torch

from cynosure.loss import linear_cross_entropy, pages
from cynosure.loss.pages import in_huge_pages

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def asked(monkeypatch):
    """The calls of madvise, which are not carried out."""
    calls = []
    monkeypatch.setattr(pages, "madvise", lambda: lambda *arguments: calls.append(arguments) or 0)
    monkeypatch.setattr(pages, "LEAST_BYTES", 2**20)
    return calls


def test_whole_pages_inside_the_tensor_are_named(asked):
    x = torch.empty(2**20 + 100, dtype=torch.uint8)
    assert in_huge_pages(x) is x
    ((start, n_bytes, advice),) = asked
    assert advice == 14
    assert start % 4096 == n_bytes % 4096 == 0
    assert x.data_ptr() <= start < start + n_bytes <= x.data_ptr() + x.nbytes
    assert n_bytes >= x.nbytes - 2 * 4096


def test_small_tensors_are_left_alone(asked):
    in_huge_pages(torch.empty(2**20 - 1, dtype=torch.uint8))
    in_huge_pages(torch.empty(2**30, device="meta"))
    assert not asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_asks_for_its_logits_and_its_gradient(asked, dtype):
    weight = torch.randn(8192, 64).to(dtype).requires_grad_()
    linear_cross_entropy(torch.randn(256, 64).to(dtype), weight, torch.arange(256)).backward()
    sizes = [n_bytes for _, n_bytes, _ in asked]
    for wanted in (weight.nbytes, 256 * 8192 * dtype.itemsize):
        assert any(abs(wanted - n) <= 2 * 4096 for n in sizes) or wanted < 2**20, (wanted, sizes)


def test_without_the_system_call_nothing_changes(monkeypatch):
    monkeypatch.setattr(pages, "madvise", lambda: None)
    monkeypatch.setattr(pages, "LEAST_BYTES", 1)
    x = torch.arange(10)
    assert in_huge_pages(x) is x
    assert x.tolist() == list(range(10))


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not SWITCH.exists() or "[never]" in SWITCH.read_text(),
    reason="this system has no huge pages",
)
def test_the_system_accepts_the_call(monkeypatch):
    answers = []
    real = pages.madvise()
    monkeypatch.setattr(pages, "madvise", lambda: lambda *arguments: answers.append(real(*arguments)))
    in_huge_pages(torch.empty(pages.LEAST_BYTES, dtype=torch.uint8))
    assert answers == [0]
