"""Scoring's split of a model into backbone and head: refused and why, or its values against the model's own logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import cynosure
from cynosure.auditing import check
from cynosure.models.head import hidden_states, read_head
from cynosure.text.spelling import byte_alphabet
from tests.census.compare import text_of

TOLERANCE_NATS = 2e-4
SCORED = 1e-4  # relative, of a text's nats
TEXTS = ("The cat sat on the mat and looked at the moon.", "A much shorter one.")


def of_split(model: Any) -> dict[str, Any]:
    """Reading the head, `check`, `score` and `predict`."""
    torch.manual_seed(0)
    try:
        read_head(model)
    except ValueError as error:
        return {"status": "refused", "reason": str(error)}
    except Exception as error:
        return {"status": "wrong", "reason": f"reading its head crashes: {text_of(error)}"}
    found: dict[str, str] = {}
    wrong, refused = [], []
    for name, of in (("states", of_states), ("check", of_check), ("score", of_score), ("predict", of_predict)):
        try:
            found[name] = of(model)
        except ValueError as error:
            refused.append(f"{name}: {error}")
            continue
        except Exception as error:
            found[name] = text_of(error)
        wrong += [] if found[name] == "equal" else [f"{name}: {found[name]}"]
    status = "wrong" if wrong else "refused" if refused else "equal"
    return found | {"status": status} | ({"reason": "; ".join(wrong or refused)} if status != "equal" else {})


def own_nll(model: Any, ids: Tensor) -> Tensor:
    """(B, T - 1) losses in nats from the model's own logits, in float64."""
    logits = model(input_ids=ids, use_cache=False).logits.double()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@torch.no_grad()
def of_states(model: Any) -> str:
    """Losses of whole and padded rows from hidden states and head."""
    head = read_head(model)
    ids = torch.randint(4, 259, (2, 64), generator=torch.Generator().manual_seed(1))
    short = ids.clone()
    short[1, 41:] = 0  # as scoring pads
    for rows, kept in ((ids, slice(None)), (short, slice(40))):
        ours = head.stats(hidden_states(model, rows), rows, shift=1).nll
        apart = float((ours - own_nll(model, rows)).abs()[:, kept].max())
        if not apart <= TOLERANCE_NATS:
            return f"losses are off by {apart:.1e} nats"
    return "equal"


def of_check(model: Any) -> str:
    ids = torch.randint(4, 259, (64,), generator=torch.Generator().manual_seed(1))
    failed = [f"{c.name} off by {c.difference:.1e}" for c in check(model, ids) if not c.passed]
    return ", ".join(failed) or "equal"


def of_score(model: Any) -> str:
    tokenizer = byte_tokenizer()
    nats = cynosure.score(model, list(TEXTS), tokenizer=tokenizer, window=64).nats
    with torch.no_grad():
        own = sum(float(own_nll(model, ids_of(tokenizer, text)).sum()) for text in TEXTS)
    return "equal" if abs(nats - own) <= SCORED * own else f"{nats:.4f} nats instead of {own:.4f}"


def of_predict(model: Any) -> str:
    """The loss of a text after its first letter, and the likeliest next token."""
    tokenizer, text = byte_tokenizer(), TEXTS[1]
    found = cynosure.predict(cynosure.LanguageModel(model, tokenizer, "tiny"), text[:1], truth=text[1:], top=1)
    ids = ids_of(tokenizer, text)
    with torch.no_grad():
        own = float(own_nll(model, ids)[:, 1:].sum())
        likeliest = float(model(input_ids=ids[:, :2], use_cache=False).logits[0, -1].double().softmax(-1).max())
    if not abs(found.nll_nats - own) <= SCORED * own:
        return f"{found.nll_nats:.4f} nats instead of {own:.4f}"
    apart = abs(found.top[0].probability - likeliest)
    return "equal" if apart <= TOLERANCE_NATS else f"a probability is off by {apart:.1e}"


def ids_of(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])


def byte_tokenizer() -> Any:
    """One token a byte, spelled as GPT-2 does, after those of the tiny configurations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unused>", "<pad>", "<s>", "</s>", *byte_alphabet()]  # as in `sizes.SMALL`
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
