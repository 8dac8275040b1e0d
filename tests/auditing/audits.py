"""Batches, tokenizers, models and losses for the tests of audits: right ones, and losses with one mistake each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import cynosure
from cynosure.auditing import Audit
from cynosure.patching.labelled import IGNORED
from tests.patching.test_patch import V
from tests.patching.test_patch import family as bare_family

PAD, BOS, EOS = 0, 1, 2  # of the tiny families


class Words:
    """A tokenizer as far as an audit looks at one: special tokens and a size."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = BOS, EOS, PAD, None

    def __init__(self, size: int = V, adds_bos: bool = True, **ids: int) -> None:
        self.size, self.adds_bos = size, adds_bos
        vars(self).update(ids)

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str) -> Any:
        ids = [BOS] if self.adds_bos else []
        return transformers.BatchEncoding({"input_ids": [*ids, 5]})

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"<{id_}>" for id_ in ids]


def family(kind: str) -> Any:
    """A tiny model; GPT-2's configuration would name a token that it has not."""
    model = bare_family(kind)
    if kind == "GPT-2":
        for config in (model.config, model.generation_config):
            config.bos_token_id, config.eos_token_id = BOS, EOS
    return model


def rows(*lengths: int, seed: int = 0, side: str = "right", end: int = EOS) -> dict[str, Tensor]:
    """Texts from BOS to EOS, padded; the labels ignore the padding."""
    torch.manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        at = slice(0, n) if side == "right" else slice(-n, None)
        text = torch.randint(3, V, (n,))
        text[0], text[-1] = BOS, end
        ids[i, at], mask[i, at] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def chat(*lengths: int) -> dict[str, Tensor]:
    """The same, each with a prompt of six tokens that labels ignore."""
    found = rows(*lengths)
    found["completion_mask"] = (torch.arange(max(lengths)) >= 6).long() * found["attention_mask"]
    found["labels"] = found["labels"].masked_fill(found["completion_mask"] == 0, IGNORED)
    return found


def names(found: Audit) -> list[str]:
    return [finding.name for finding in found.findings]


def without(batch: dict[str, Tensor], *columns: str) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in columns}


def shifted(labels: Tensor) -> Tensor:
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def no_bos(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:, 1:] for name, value in batch.items()}


def no_pad() -> Any:
    model = family("Llama")
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    return model


def larger_head(kind: str = "Llama, tied") -> Any:
    model = family(kind)
    model.lm_head = nn.Linear(16, V + 3, bias=False)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    model.loss_function = lambda logits, labels, vocab_size, **options: transformers.loss.loss_utils.ForCausalLMLoss(
        logits, labels, V + 3, **options
    )
    return model


# ---- losses: right ones, and each with one mistake


def summed(logits: Tensor, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    """The right loss of full logits."""
    total = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    n = (batch["labels"][:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / n


def unshifted(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    """The right loss where the data set has shifted the labels."""
    total = F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    return total / ((batch["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def logits_of(model: Any, batch: Any, **changes: Any) -> Tensor:
    taken = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    found: Tensor = model(**(taken | changes)).logits
    return found


def right(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    return summed(logits_of(model, batch), batch, num_items_in_batch)


def fused(model: Any, batch: Any, num_items_in_batch: Any = None, **head: Any) -> Tensor:
    """As a training loop would call the fused loss by hand."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = model.base_model(**inputs).last_hidden_state
    return cynosure.linear_cross_entropy(
        hidden, model.get_output_embeddings().weight, batch["labels"], shift=1, normalizer=num_items_in_batch, **head
    )


def by(change: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]) -> Any:
    """The right loss of changed logits or labels."""

    def loss(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        return summed(*change(logits_of(model, batch), dict(batch)), num_items_in_batch)

    return loss


def never_shifted(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten())


def shifted_twice(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    inputs = {"attention_mask": batch["attention_mask"], "labels": shifted(batch["labels"])}
    found: Tensor = model(batch["input_ids"], **inputs).loss
    return found


def every_position(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(
        logits_of(model, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    ).mean()


def counted_before_shift(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    """As transformers' Trainer counted for years (transformers pull request 46204)."""
    return right(model, batch, (batch["labels"] != IGNORED).sum())


def mean_of_rows(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    pairs = zip(logits_of(model, batch), batch["labels"], strict=True)
    return torch.stack([F.cross_entropy(z[:-1], labels[1:]) for z, labels in pairs]).mean()


def smoothed(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    logits = logits_of(model, batch)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1)


def ids_as_labels(batch: Any) -> dict[str, Tensor]:
    return dict(batch) | {"labels": batch["input_ids"]}


def half_detached(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    logits = logits_of(model, batch)
    logits = torch.cat([logits[..., : V // 2].detach(), logits[..., V // 2 :]], -1)
    return summed(logits, batch, num_items_in_batch)


class Fivefold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 5 * grad


def frozen_head(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return summed(F.linear(hidden, model.lm_head.weight.detach()), batch, num_items_in_batch)
