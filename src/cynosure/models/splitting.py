"""Split a model into a backbone, which gives hidden states, and a head, which computes logits from them."""

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

# Fields of a configuration on which no logits depend.
OF_ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")

Backbone = Callable[[Tensor], Tensor]  # (B, T) token ids -> (B, T, D) hidden states


@dataclass(frozen=True)
class SplitModel:
    """A model as scoring needs it."""

    body: Backbone
    head: Head
    tokenizer: Any
    name: str
    max_positions: int | None
    modules: tuple[nn.Module, ...]  # the modules that hold weights
    notes: tuple[str, ...] = ()  # what a reader of results must know of the model
    code: dict[str, str] = field(default_factory=dict)  # as `LanguageModel` has it
    n_embeddings: int | None = None  # number of ids with an embedding, if known
    regimes: Regimes = field(default_factory=Regimes)  # lengths of texts that may share a batch

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> str:
        """The dtype of the head's weights, for example `float32`."""
        return str(self.head.weight.dtype).removeprefix("torch.")

    def check_ids(self, seen: Tensor, target: Tensor) -> None:
        """Raise ValueError, with the token, for ids without an embedding or without a logit."""
        check_ids(seen, self.n_embeddings, f"the embedding of {self.name}", self.tokenizer)
        check_ids(target, len(self.head.weight), f"the head of {self.name}", self.tokenizer)

    def why_not_finite(self, ids: Tensor) -> str:
        """Say why (B, T) ids give NaN, with the tensors and the way out."""
        return why_not_finite(self.modules[0], self.name, lambda: self.body(ids))

    def weights_sha256(self) -> str:
        """Return a digest of all that logits depend on: parameters, buffers, their names and dtypes, configuration."""
        digest = hashlib.sha256(repr((self.head.scale, self.head.softcap)).encode())
        # Buffers that are not saved, such as the frequencies of rotary positions, also affect the logits.
        parts = [module.state_dict() | dict(module.named_buffers()) for module in self.modules]
        known = {place(tensor) for tensors in parts for tensor in tensors.values()}
        head = {"weight": self.head.weight, "bias": self.head.bias}  # a given head may be in no module
        parts.append({name: x for name, x in head.items() if x is not None and place(x) not in known})
        for i, tensors in enumerate(parts):
            add_tensors(digest, tensors, f"{i} ")
        for module in self.modules:
            digest.update(configuration(module).encode())
        return digest.hexdigest()

    def tokenizer_sha256(self) -> str:
        """Return a digest of the tokenizer's rules for text and chats, and of its BOS and EOS."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        state = rules(fast) if fast is not None else sorted(self.tokenizer.get_vocab().items())
        special = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        template = getattr(self.tokenizer, "chat_template", None)
        return hashlib.sha256(repr((state, special, template)).encode()).hexdigest()


def configuration(module: nn.Module) -> str:
    """Return a transformers model's configuration without the fields that only describe its origin."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return ""
    values = {name: value for name, value in config.to_dict().items() if name not in OF_ORIGIN}
    return json.dumps(values, sort_keys=True, default=str)


def rules(fast: Any) -> str:
    """Return the rules of a fast tokenizer. Truncation and padding are left out: each call sets them."""
    values = {name: value for name, value in json.loads(fast.to_str()).items() if name not in ("truncation", "padding")}
    return json.dumps(values, sort_keys=True)


def split(
    model: Any, *, tokenizer: Any = None, head: nn.Module | Tensor | Head | None = None, compile: bool = False
) -> SplitModel:
    """Split a model for scoring.

    Args:
        model: a name that `load` accepts, a loaded `LanguageModel`, a transformers model, or any module that turns
            (B, T) token ids into (B, T, D) hidden states: a tensor, or an object with `last_hidden_state`.
        tokenizer: the tokenizer of a transformers model or module.
        head: the head of a module: a linear layer, a (V, D) weight or a `Head`.
        compile: run the backbone under torch.compile.

    Returns:
        Backbone, head and tokenizer as a `SplitModel`.

    Raises:
        ValueError: the head cannot be read, or hidden states depend on later tokens.
        TypeError: `model` is not a model, or its tokenizer is missing.
    """
    if isinstance(model, str):
        model = load(model)
    if isinstance(model, LanguageModel):
        parts = of_language_model(model)
    elif not isinstance(model, nn.Module):
        raise TypeError(f"model must be a name, a LanguageModel or a torch module, got {type(model).__name__}")
    elif tokenizer is None:
        raise TypeError("a model in memory needs its tokenizer: call score(model, texts, tokenizer=...)")
    elif head is not None:
        parts = of_parts(model, head, tokenizer)
    else:
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        parts = of_language_model(LanguageModel(model, tokenizer, name))
    if not compile:
        return parts
    from cynosure.models.compiled import compiled

    return replace(parts, body=compiled(parts.body, parts.modules[0]))


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


def of_parts(backbone: nn.Module, head: nn.Module | Tensor | Head, tokenizer: Any) -> SplitModel:
    """Combine any backbone with a given head."""
    modules: tuple[nn.Module, ...] = (backbone,)
    if isinstance(head, nn.Module):
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise ValueError(f"head must be a linear layer, a (V, D) weight or a Head, got {type(head).__name__}")
        modules, head = (backbone, head), Head(weight.detach(), None if bias is None else bias.detach(), 1.0, None)
    elif isinstance(head, Tensor):
        head = Head(head.detach(), None, 1.0, None)
    ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    name = type(backbone).__name__
    forget = Forgetting(backbone)

    def run(ids: Tensor) -> Tensor:
        forget()
        output = backbone(ids)
        states: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        return states

    with torch.no_grad():
        hidden = run(ids)
        if hidden.shape != (1, 8, head.weight.shape[1]):
            raise ValueError(
                f"{name} gives hidden states of shape {tuple(hidden.shape)} for (1, 8) ids, "
                f"but the head needs (1, 8, {head.weight.shape[1]})"
            )
        check_finite(backbone, name, hidden, lambda: run(ids))
        later = torch.cat([ids[:, :4], ids[:, :4].flip(1)], 1)
        check_causal(name, hidden[:, :4], run(later)[:, :4])
    return SplitModel(run, head, tokenizer, name, None, modules, regimes=read_regimes(backbone))
