"""Tiny models and tokenizers, created by code."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from cynosure.models import LanguageModel
from cynosure.text.spelling import byte_alphabet

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_tokenizer(*, adds_bos: bool = False, special: dict[str, str] | None = None) -> Any:
    """Return a tokenizer with one token per byte, spelled as in GPT-2, and a few merges."""
    alphabet = list(byte_alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©")]
    names = [*(special if special is not None else SPECIAL).values(), *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(kinds.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(SPECIAL if special is None else special))


def piece_tokenizer(*, dummy_prefix: bool) -> Any:
    """Return a SentencePiece tokenizer as in Llama 2: `▁` for a space, `<0xNN>` for bytes without a piece."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz.é",
        "▁a",
    ]
    model = kinds.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Prepend("▁")] if dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def word_tokenizer(*, lowercase: bool) -> Any:
    """Return a WordPiece tokenizer as in BERT: spaces are dropped, and only offsets show them."""
    words = ["[UNK]", "the", "The", "cat", "##s", "sat", "."]
    tokenizer = Tokenizer(kinds.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def tiny_model(kind: str = "Llama", seed: int = 0, spread: float = 0.5, **options: Any) -> Any:
    """Return a causal model of a known family with random weights, small enough for any test."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if kind == "GPT2":
        sizes, heads = {"n_embd": 16, "n_layer": 2, "vocab_size": 300}, {"n_head": 2, "n_positions": 64}
    config = getattr(transformers, f"{kind}Config")(**(sizes | heads | options))
    torch.manual_seed(seed)
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, kind + suffix)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=spread)
    return model


def ruling_out(model: Any, first: int) -> Any:
    """A model that never predicts a class from `first` on: its head has a bias, -inf there."""
    head = model.get_output_embeddings()
    bias = torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias.detach().clone()
    bias[first:] = -torch.inf
    head.bias = torch.nn.Parameter(bias)
    return model


def tiny(tokenizer: Any | None = None, **options: Any) -> LanguageModel:
    return LanguageModel(tiny_model(**options), tokenizer if tokenizer is not None else byte_tokenizer(), "tiny")
