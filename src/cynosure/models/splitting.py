"""A model split where the loss begins: a body that gives hidden states, and the head that makes logits of them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.loss import place
from cynosure.models.digest import add_tensors
from cynosure.models.finite import check_finite, why_not_finite
from cynosure.models.head import Head, check_causal, hidden_states, read_head
from cynosure.models.loading import LanguageModel, load
from cynosure.models.regimes import Forgetting, Regimes, read_regimes
from cynosure.patching import check_ids, embedding_rows

OF_ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")  # no logit hangs on it

Body = Callable[[Tensor], Tensor]  # (B, T) token ids -> (B, T, D) hidden states


@dataclass(frozen=True)
class SplitModel:
    """What scoring needs to know of a model."""

    body: Body
    head: Head
    tokenizer: Any
    name: str
    max_positions: int | None
    modules: tuple[nn.Module, ...]  # all that holds weights
    notes: tuple[str, ...] = ()  # what a reader of the figures must know of the model
    code: dict[str, str] = field(default_factory=dict)  # as `LanguageModel` has it
    n_embeddings: int | None = None  # ids that it has an embedding of, where that is known
    regimes: Regimes = field(default_factory=Regimes)  # lengths of texts that may go through it together

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> str:
        """The dtype of the head's weights, such as `float32`."""
        return str(self.head.weight.dtype).removeprefix("torch.")

    def check_ids(self, seen: Tensor, target: Tensor) -> None:
        """ValueError, naming the token, for ids that the model has no embedding of, or no logits of."""
        check_ids(seen, self.n_embeddings, f"the embedding of {self.name}", self.tokenizer)
        check_ids(target, len(self.head.weight), f"the head of {self.name}", self.tokenizer)

    def why_not_finite(self, ids: Tensor) -> str:
        """Why (B, T) ids give NaN: a sentence that names the tensors and what helps."""
        return why_not_finite(self.modules[0], self.name, lambda: self.body(ids))

    def weights_sha256(self) -> str:
        """A digest of all that logits depend on: parameters and buffers, their names, dtypes, shapes; configuration."""
        digest = hashlib.sha256(repr((self.head.scale, self.head.softcap)).encode())
        # Buffers that are not saved, such as the frequencies of rotary positions, are computed with all the same.
        parts = [module.state_dict() | dict(module.named_buffers()) for module in self.modules]
        known = {place(tensor) for tensors in parts for tensor in tensors.values()}
        head = {"weight": self.head.weight, "bias": self.head.bias}  # one that is given may be in no module
        parts.append({name: x for name, x in head.items() if x is not None and place(x) not in known})
        for i, tensors in enumerate(parts):
            add_tensors(digest, tensors, f"{i} ")
        for module in self.modules:
            digest.update(configuration(module).encode())
        return digest.hexdigest()

    def tokenizer_sha256(self) -> str:
        """A digest of how the tokenizer reads text and chats, and of its BOS and EOS."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        state = rules(fast) if fast is not None else sorted(self.tokenizer.get_vocab().items())
        special = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        template = getattr(self.tokenizer, "chat_template", None)
        return hashlib.sha256(repr((state, special, template)).encode()).hexdigest()


def configuration(module: nn.Module) -> str:
    """What a transformers model was made with, but for where it came from."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return ""
    values = {name: value for name, value in config.to_dict().items() if name not in OF_ORIGIN}
    return json.dumps(values, sort_keys=True, default=str)


def rules(fast: Any) -> str:
    """How a tokenizer of tokenizers reads text; how calls cut and fill is set anew by each of them."""
    values = {name: value for name, value in json.loads(fast.to_str()).items() if name not in ("truncation", "padding")}
    return json.dumps(values, sort_keys=True)


def split(
    model: Any, *, tokenizer: Any = None, head: nn.Module | Tensor | Head | None = None, compile: bool = False
) -> SplitModel:
    """Split a model for scoring.

    `model` is what `load` takes, a loaded `LanguageModel`, a transformers model with its `tokenizer`, or any module
    that turns (B, T) token ids into (B, T, D) hidden states (a tensor, or an object with `last_hidden_state`) with its
    `head`: a linear layer, a (V, D) weight, or a `Head`. With `compile` the body runs under torch.compile.

    Raises ValueError when the head cannot be read or the model sees later tokens, TypeError for what is no model.
    """
    if isinstance(model, str):
        model = load(model)
    if isinstance(model, LanguageModel):
        found = of_language_model(model)
    elif not isinstance(model, nn.Module):
        raise TypeError(f"model must be a name, a LanguageModel or a torch module, got {type(model).__name__}")
    elif tokenizer is None:
        raise TypeError("a model in memory needs its tokenizer: score(model, texts, tokenizer=...)")
    elif head is not None:
        found = of_parts(model, head, tokenizer)
    else:
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        found = of_language_model(LanguageModel(model, tokenizer, name))
    if not compile:
        return found
    from cynosure.models.compiled import compiled

    return replace(found, body=compiled(found.body, found.modules[0]))


def of_language_model(model: LanguageModel) -> SplitModel:
    head, forget = read_head(model.model, model.name), Forgetting(model.model)

    def run(ids: Tensor) -> Tensor:
        forget()
        return hidden_states(model.model, ids)

    return SplitModel(
        run,
        head,
        model.tokenizer,
        model.name,
        model.max_positions,
        (model.model,),
        model.notes,
        model.code,
        embedding_rows(model.model),
        read_regimes(model.model),
    )


def of_parts(body: nn.Module, head: nn.Module | Tensor | Head, tokenizer: Any) -> SplitModel:
    """A body of any kind and a head that is said to follow it."""
    own: tuple[nn.Module, ...] = (body,)
    if isinstance(head, nn.Module):
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise ValueError(
                f"head must be a linear layer, a (V, D) weight or a Head: {type(head).__name__} is neither"
            )
        own, head = (body, head), Head(weight.detach(), None if bias is None else bias.detach(), 1.0, None)
    elif isinstance(head, Tensor):
        head = Head(head.detach(), None, 1.0, None)
    ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]

    forget = Forgetting(body)

    def run(ids: Tensor) -> Tensor:
        forget()
        found = body(ids)
        states: Tensor = found if isinstance(found, Tensor) else found.last_hidden_state
        return states

    with torch.no_grad():
        hidden = run(ids)
        if hidden.shape != (1, 8, head.weight.shape[1]):
            raise ValueError(
                f"{type(body).__name__} gives hidden states of shape {tuple(hidden.shape)} for (1, 8) ids, "
                f"and the head needs (1, 8, {head.weight.shape[1]})"
            )
        check_finite(body, type(body).__name__, hidden, lambda: run(ids))
        later = torch.cat([ids[:, :4], ids[:, :4].flip(1)], 1)
        check_causal(type(body).__name__, hidden[:, :4], run(later)[:, :4])
    return SplitModel(run, head, tokenizer, type(body).__name__, None, own, regimes=read_regimes(body))
