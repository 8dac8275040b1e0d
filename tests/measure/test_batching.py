"""Batches change no number: what a model does to one row because of the others is found, and such rows go apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cynosure.measure import open_run, score
from cynosure.measure.scoring.batching import APART
from cynosure.models import LanguageModel, SplitModel, split
from cynosure.models.regimes import Regimes, read_regimes
from cynosure.training.begin import regimes_note
from tests.tiny import byte_tokenizer, tiny, tiny_model

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
LENGTHS = [100, 37, 63, 64, 65, 80, 12, 100, 31]
TEXTS = ["".join(ALPHABET[(i * i + 7 * k) % 27] for i in range(n)) for k, n in enumerate(LENGTHS)]
ROPE = {
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 6.0, 9.0, 15.0], "original_max_position_embeddings": 64,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}  # fmt: skip


def longrope() -> Any:
    return tiny_model("Llama", spread=0.3, max_position_embeddings=256, rope_parameters=dict(ROPE["longrope"]))


def dynamic() -> Any:
    """A backbone whose windows may be longer than its configuration says."""
    return tiny_model("Llama", spread=0.3, max_position_embeddings=64, rope_parameters=dict(ROPE["dynamic"]))


@torch.no_grad()
def alone(model: Any, text: str) -> float:
    """A document's nats by the model itself, after a short text, for what an earlier one has left behind."""
    tokenizer = byte_tokenizer()
    ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False).input_ids]])
    model(ids[:, :2])
    logits = model(ids[:, :-1]).logits[0]
    return cross_entropy(logits.double(), ids[0, 1:], reduction="sum").item()


def nats(model: Any, batch_tokens: int, texts: list[str] = TEXTS, **options: Any) -> list[float]:
    frame = score(model, texts, batch_tokens=batch_tokens, window=128, **options).to_pandas()
    found: list[float] = frame.groupby("document")["nll"].sum().tolist()
    return found


@pytest.mark.parametrize("batch_tokens", [1, 128, 300, 4096])
@pytest.mark.parametrize("order", [1, -1])
def test_longrope(batch_tokens: int, order: int) -> None:
    model, texts = longrope(), TEXTS[::order]
    reference = [alone(model.double(), text) for text in texts]
    named = LanguageModel(model.float(), byte_tokenizer(), "long")
    assert nats(named, batch_tokens, texts) == pytest.approx(reference, rel=1e-5)


def test_longrope_is_told() -> None:
    model = LanguageModel(longrope(), byte_tokenizer(), "long")
    (note,) = score(model, TEXTS, window=128).notes[:1]
    assert note.endswith("depend on the longest row of a batch: windows up to 64 tokens go apart")
    assert not any("rotary" in note for note in score(model, TEXTS, window=64).notes)


@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
@pytest.mark.parametrize("order", [1, -1])
def test_dynamic_ntk(batch_tokens: int, order: int) -> None:
    """Its frequencies grow with the longest row, and stay until a short one comes."""
    model, texts = dynamic(), TEXTS[::order]
    reference = [alone(model.double(), text) for text in texts]
    model.float()
    found = nats(model.model, batch_tokens, texts, tokenizer=byte_tokenizer(), head=model.lm_head)
    assert found == pytest.approx(reference, rel=1e-5)


def sparse() -> Any:
    """Its indexer takes the 8 keys that matter most, also of those filled up."""
    config = transformers.DeepseekV32Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        index_topk=8, index_head_dim=16, index_n_heads=2, first_k_dense_replace=1, max_position_embeddings=256,
    )  # fmt: skip
    return transformers.DeepseekV32ForCausalLM(config)


def hashing() -> Any:
    """Its attention sorts keys into buckets, chunk by chunk of what is filled up."""
    config = transformers.ReformerConfig(
        vocab_size=300, hidden_size=32, attention_head_size=16, num_attention_heads=2, feed_forward_size=32,
        attn_layers=["local", "lsh"], axial_pos_embds=False, max_position_embeddings=256, is_decoder=True,
        lsh_attn_chunk_length=16, local_attn_chunk_length=16, num_buckets=4, num_hashes=1, hash_seed=1,
    )  # fmt: skip
    return transformers.ReformerModelWithLMHead(config)


@pytest.mark.parametrize("make", [sparse, hashing])
@pytest.mark.parametrize("batch_tokens", [300, 4096])
def test_attention_that_looks_at_what_is_filled_up(make: Any, batch_tokens: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    named = split(LanguageModel(model, byte_tokenizer(), "odd"))
    one_by_one = [nats(named, 1, [text])[0] for text in TEXTS]
    assert nats(named, batch_tokens) == pytest.approx(one_by_one, rel=1e-6)
    assert APART[1] in score(named, TEXTS, batch_tokens=batch_tokens, window=128).notes


def test_regimes() -> None:
    assert read_regimes(longrope()) == Regimes((64,))
    assert read_regimes(dynamic()) == Regimes((64,), grows=True)
    assert read_regimes(tiny_model()) == Regimes()


def test_what_training_says_of_them() -> None:
    """Packed rows hold documents of all lengths."""
    assert regimes_note(Regimes((64,)), 64) is None
    note = regimes_note(Regimes((64,)), 65)
    assert note is not None
    assert "a document of more than 64 tokens changes the rotary positions of all others in its batch" in note


# ---- what no configuration tells


class Odd(nn.Module):
    """A causal model of ids in which rows that go together change each other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.embedding = kind, nn.Embedding(300, 16)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.calls.append(tuple(ids.shape))
        hidden = self.embedding(ids).cumsum(1) / 4
        if self.kind == "batch norm":  # over the rows
            return hidden - hidden.mean(0, keepdim=True) / 2
        if self.kind == "capacity":  # the first row that asks is served
            return hidden * torch.arange(1, len(ids) + 1)[:, None, None].reciprocal()
        if self.kind == "length" and ids.shape[1] > 48:  # padded
            return hidden * 1.5
        return hidden


ODD = {"batch norm": 2, "capacity": 2, "length": 1, "plain": 0}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("batch_tokens", [300, 4096])
def test_what_only_shows_in_a_batch(kind: str, batch_tokens: int) -> None:
    body = Odd(kind)
    given: dict[str, Any] = {"tokenizer": byte_tokenizer(), "head": nn.Linear(16, 300, bias=False)}
    one_by_one = [nats(body, 1, [text], **given)[0] for text in TEXTS]
    assert nats(body, batch_tokens, **given) == pytest.approx(one_by_one, rel=1e-6)
    scores = score(body, TEXTS, batch_tokens=batch_tokens, window=128, **given)
    assert scores.notes[: len(scores.setting.notes)] == ((APART[ODD[kind]],) if ODD[kind] else ())


def test_a_stored_run_keeps_what_was_found(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tokenizer": byte_tokenizer(), "head": nn.Linear(16, 300, bias=False)}
    for _ in range(2):  # the second has nothing left to score
        score(Odd("length"), TEXTS, batch_tokens=4096, window=128, out=tmp_path / "run", **given)
        assert APART[1] in open_run(tmp_path / "run").notes


def counted(model: SplitModel, texts: list[str], batch_tokens: int) -> list[tuple[int, ...]]:
    from dataclasses import replace

    calls: list[tuple[int, ...]] = []

    def body(ids: Tensor) -> Tensor:
        calls.append(tuple(ids.shape))
        return model.body(ids)

    score(replace(model, body=body), texts, batch_tokens=batch_tokens, window=32)
    return calls


def test_a_llama_goes_on_in_batches() -> None:
    """A few more rows for each pair of lengths, to a power of two, and none where a batch is a row."""
    model = split(tiny())
    assert all(rows == 1 for rows, _ in counted(model, [TEXTS[0] * 20], 32))
    n_windows = len(counted(model, [TEXTS[0] * 20], 32))
    together = counted(model, [TEXTS[0] * 20], 320)
    assert [shape for shape in together if shape[0] == 1] in ([(1, 32)], [(1, 32), (1, 32)])
    assert len(together) <= n_windows // 10 + 2
