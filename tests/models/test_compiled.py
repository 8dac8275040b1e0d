"""A compiled body gives the same figures, and leaves the model as it was."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from cynosure.measure import score
from cynosure.models import LanguageModel, split
from cynosure.models.compiled import compiled, longest_list
from cynosure.text import Document
from tests.tiny import byte_tokenizer, tiny

DOCUMENTS = [Document("a", "the cat sat on the mat. naïve café 猫\n" * 5), Document("b", "the end")]


@pytest.fixture
def _by_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are what is tested here; what Inductor makes of them takes longer."""
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: own(model, backend="eager"))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny()


@pytest.mark.usefixtures("_by_eager")
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_the_figures_are_the_same(kind: str) -> None:
    model = tiny(kind=kind)
    plain, fast = (score(model, DOCUMENTS, window=16, compile=compile) for compile in (False, True))
    assert fast.tokens == plain.tokens
    assert fast.nats == pytest.approx(plain.nats, rel=1e-6)


def test_the_model_is_left_as_it_was(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recording(call: Any) -> Any:
        return lambda *args, **options: calls.append("compiled") or call(*args, **options)

    monkeypatch.setattr(torch, "compile", recording)
    layers = list(model.model.model.layers)
    own = split(model)
    fast = replace(own, body=compiled(own.body, own.modules[0]))
    assert longest_list(model.model) == layers
    fast.body(torch.arange(5)[None])
    assert len(calls) == len(layers)
    own.body(torch.arange(5)[None])
    assert len(calls) == len(layers)
    assert all(layer._compiled_call_impl is None for layer in layers)


@pytest.mark.usefixtures("_by_eager")
def test_a_body_without_layers_is_compiled_whole() -> None:
    torch.manual_seed(0)
    body, head = torch.nn.Embedding(300, 8), torch.randn(300, 8)
    plain, fast = (
        score(body, ["the end"], tokenizer=byte_tokenizer(), head=head, window=8, compile=compile)
        for compile in (False, True)
    )
    assert fast.nats == pytest.approx(plain.nats, rel=1e-6)


@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inductor_compiles_the_faster_functions_too(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cynosure.models.cpu.torch_is_slow", torch.backends.mkldnn.is_available)
    model = tiny(num_hidden_layers=1)
    model.model.to(getattr(torch, dtype))
    plain, fast = (score(model, DOCUMENTS, window=16, compile=compile) for compile in (False, True))
    assert fast.nats == pytest.approx(plain.nats, rel=1e-6 if dtype == "float32" else 1e-2)
