"""Every planted bug is named, by its own name alone; right set-ups have no finding; nothing is left behind."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

import cynosure
from cynosure import audit
from cynosure.models import LanguageModel
from cynosure.models.audit import Audit
from cynosure.models.audit.batch import IGNORED, N_BATCHES
from cynosure.models.audit.findings import FAULTS
from cynosure.train import patch
from tests.lm.conftest import byte_tokenizer, tiny_model
from tests.lm.test_patch import FAMILIES, SIZES, V
from tests.lm.test_patch import family as bare_family

ROOT = Path(__file__).parents[2]
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


# ---- losses: right ones, and each with one mistake


def summed(logits: Tensor, batch: Any, num_items_in_batch: Any = None) -> Tensor:
    """The right loss of full logits."""
    total = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    n = (batch["labels"][:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / n


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


LOSSES: dict[str, tuple[str, str, Any]] = {
    # bug: (the name it must be given, the family it is planted in, the loss)
    "never shifted": ("never-shifted", "Llama", never_shifted),
    "never shifted, a token less": ("never-shifted", "Llama", by(
        lambda z, batch: (z, batch | {"labels": F.pad(batch["labels"][:, :-1], (1, 0), value=IGNORED)}))),
    "shifted by the loss and by the model": ("shifted-twice", "Llama", shifted_twice),
    "shifted by two": ("shifted-twice", "GPT-2", by(
        lambda z, batch: (z, batch | {"labels": batch["labels"].roll(-1, 1)}))),
    "scale dropped": ("scale-dropped", "Cohere", fused),
    "dividing scale dropped": ("scale-dropped", "Granite", fused),
    "softcap dropped": ("softcap-dropped", "Gemma 2", fused),
    "bias dropped": ("bias-dropped", "Phi, biased", fused),
    "padding and prompt trained on": ("labels-unused", "Llama", by(lambda z, batch: (z, ids_as_labels(batch)))),
    "prompt trained on": ("labels-unused", "Llama", by(
        lambda z, batch: (z, {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}))),
    "ignored tokens in the mean": ("ignored-counted", "Llama", every_position),
    "mean of rows": ("mean-of-rows", "Llama", mean_of_rows),
    "never divided": ("not-divided", "Llama", lambda model, batch, num_items_in_batch=None: right(model, batch, 1)),
    "positions dropped": ("input-dropped", "Llama", lambda model, batch, num_items_in_batch=None: summed(
        model(batch["input_ids"]).logits, batch, num_items_in_batch)),
    "times the steps": ("loss-multiplied", "Llama", lambda model, batch, num_items_in_batch=None: 8 * right(
        model, batch, num_items_in_batch)),
    "divided by the steps": ("loss-divided", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch, num_items_in_batch) / 4),
    "label smoothing": ("loss-differs", "Llama", smoothed),
    "NaN": ("not-finite", "Llama", lambda model, batch, num_items_in_batch=None: right(model, batch) * torch.nan),
    # accumulation alone
    "num_items_in_batch not used": ("mean-of-means", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch)),
    "num_items_in_batch not taken": ("mean-of-means", "Llama", lambda model, batch: right(model, batch)),
    "divided twice": ("loss-divided", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch) / (1 if num_items_in_batch is None else num_items_in_batch)),
    "sum where items are given": ("not-divided", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch, None if num_items_in_batch is None else 1)),
    "times the steps where items are given": ("loss-multiplied", "Llama", lambda model, batch, num_items_in_batch=None:
        right(model, batch, num_items_in_batch) * (1 if num_items_in_batch is None else 4)),
    "divided by the steps where items are given": ("loss-divided", "Llama",
        lambda model, batch, num_items_in_batch=None: right(model, batch, num_items_in_batch) / (
            1 if num_items_in_batch is None else 2)),
    "items of another count": ("accumulation-differs", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch, None if num_items_in_batch is None else num_items_in_batch + 9)),
    # gradients alone
    "no graph": ("gradient-missing", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch, num_items_in_batch).detach()),
    "head detached": ("gradient-missing", "Llama", frozen_head),
    "gradient times five": ("gradient-scaled", "Llama", lambda model, batch, num_items_in_batch=None: Fivefold.apply(
        right(model, batch, num_items_in_batch))),
    "half of the logits detached": ("gradient-differs", "Llama", half_detached),
}  # fmt: skip


@pytest.mark.parametrize("bug", LOSSES)
def test_a_wrong_loss_is_named(bug: str) -> None:
    name, kind, loss_fn = LOSSES[bug]
    # With a label on its first token a row that is rolled ends in it.
    model, batch = family(kind), rows(20, 13, 16) if bug == "shifted by two" else chat(20, 13, 16)
    if bug == "positions dropped":
        batch["position_ids"] = (torch.arange(20) * 3)[None].expand(3, 20)
    found = audit(model, [batch], loss_fn=loss_fn)
    assert names(found) == [name], found


# ---- batches, each with one mistake


class Planted(NamedTuple):
    name: str  # what it must be called
    batch: dict[str, Tensor]
    model: Any = "Llama"
    tokenizer: Any = None
    fresh: bool | None = None


def changed(batch: dict[str, Tensor], **columns: Tensor) -> dict[str, Tensor]:
    return batch | columns


def shifted(labels: Tensor) -> Tensor:
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def without(batch: dict[str, Tensor], *columns: str) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in columns}


def eos_is_pad() -> dict[str, Tensor]:
    """Trainer's collator where the pad token is EOS: it ignores the EOS of the texts as well."""
    batch = rows(20, 13)
    ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, EOS)
    return batch | {"input_ids": ids, "labels": ids.masked_fill(ids == EOS, IGNORED)}


def batches() -> Iterator[tuple[str, Planted]]:
    plain, left, talk = rows(20, 13), rows(20, 13, side="left"), chat(20, 13)
    ids, padded = plain["input_ids"], plain["attention_mask"] == 0
    words = Words()
    yield "shifted by the data set", Planted("shifted-twice", changed(plain, labels=shifted(plain["labels"])))
    yield (
        "rolled by the data set",
        Planted("shifted-twice", changed(plain, labels=ids.roll(-1, 1).masked_fill(padded, IGNORED))),
    )
    yield (
        "shifted the wrong way",
        Planted("never-shifted", changed(plain, labels=ids.roll(1, 1).masked_fill(padded, IGNORED))),
    )
    yield "padding labelled", Planted("padding-labelled", changed(plain, labels=ids))
    yield "padding labelled 0", Planted("padding-labelled", changed(plain, labels=plain["labels"].clamp(min=0)))
    yield (
        "padding labelled, no mask",
        Planted("padding-labelled", without(changed(plain, labels=ids), "attention_mask")),
    )
    yield "padding labelled, mask of ones", Planted("padding-labelled", changed(plain, labels=ids,
                                                    attention_mask=torch.ones_like(ids)))  # fmt: skip
    yield "padded on the left, no mask", Planted("padding-attended", without(left, "attention_mask"))
    yield "padded on the left, mask of ones", Planted("padding-attended", changed(left,
          attention_mask=torch.ones_like(ids)))  # fmt: skip
    yield "prompt labelled", Planted("prompt-labelled", changed(talk, labels=plain["labels"]))
    mask = talk["completion_mask"]
    yield "mask inverted", Planted("completion-unlabelled", changed(talk, labels=plain["labels"].masked_fill(
                                   mask == 1, IGNORED)))  # fmt: skip
    assistant = without(talk, "completion_mask") | {"assistant_masks": mask}
    yield "prompt labelled, in turns", Planted("prompt-labelled", changed(assistant, labels=plain["labels"]))
    yield "nothing labelled", Planted("no-labels", changed(talk, labels=torch.full_like(ids, IGNORED)))
    yield "BOS twice", Planted("bos-twice", double_bos(plain), tokenizer=words)
    yield "no BOS", Planted("bos-missing", no_bos(plain), tokenizer=words)
    yield "EOS is pad", Planted("eos-unlabelled", eos_is_pad(), tokenizer=Words(pad_token_id=EOS), model=no_pad())
    yield "EOS is pad, no mask", Planted("eos-unlabelled", without(eos_is_pad(), "attention_mask"),
                                         tokenizer=Words(pad_token_id=EOS), model=no_pad())  # fmt: skip
    yield "id too large", Planted("ids-out-of-range", changed(plain, input_ids=put(ids, 99)))
    yield "id negative", Planted("ids-out-of-range", changed(plain, input_ids=put(ids, -1)))
    yield "label too large", Planted("labels-out-of-range", changed(plain, labels=put(plain["labels"], V)))
    yield "label of -1", Planted("labels-out-of-range", changed(plain, labels=put(plain["labels"], -1)))
    grown = put(ids, V)
    yield "token added", Planted("tokenizer-too-large", changed(plain, input_ids=grown, labels=grown.masked_fill(
                                 padded, IGNORED)), tokenizer=Words(V + 1))  # fmt: skip
    yield "pad token added", Planted("tokenizer-too-large", rows(20, 20), tokenizer=Words(V + 1, pad_token_id=V),
                                     model=no_pad())  # fmt: skip
    yield "head of other rows", Planted("embedding-and-head-differ", rows(20, 13), model=larger_head())
    for special in ("pad", "eos", "bos"):
        model = family("Llama")
        setattr(model.config, f"{special}_token_id", 50)
        yield f"another {special} in config", Planted("special-tokens-differ", plain, model, words)
    model = family("Llama")
    model.generation_config.eos_token_id = [50, 51]
    yield "another EOS in generation", Planted("special-tokens-differ", plain, model, words)
    yield "too wide a start", Planted("fresh-loss-off", plain, wide_start())
    yield "said to be fresh", Planted("fresh-loss-off", plain, wide_start(norms=0.9), fresh=True)
    yield "broken weights", Planted("above-ln-v", plain, wide_start(norms=0.9))
    yield "NaN in weights", Planted("not-finite", plain, broken())


def put(values: Tensor, value: int) -> Tensor:
    values = values.clone()
    values[1, 4] = value
    return values


def double_bos(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
    ids[:, 1] = labels[:, 1] = BOS
    return batch | {"input_ids": ids, "labels": labels}


def no_bos(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:, 1:] for name, value in batch.items()}


def no_pad() -> Any:
    model = family("Llama")
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    return model


def larger_head() -> Any:
    model = family("Llama, tied")
    model.lm_head = nn.Linear(16, V + 3, bias=False)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    model.loss_function = lambda logits, labels, vocab_size, **options: transformers.loss.loss_utils.ForCausalLMLoss(
        logits, labels, V + 3, **options
    )
    return model


def wide_start(norms: float | None = None) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    with torch.no_grad():
        model.lm_head.weight.normal_(std=2.0)
        if norms is not None:
            model.model.norm.weight[0] = norms
    return model


def broken() -> Any:
    model = family("Llama")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    return model


BATCHES = dict(batches())


@pytest.mark.parametrize("bug", BATCHES)
def test_a_wrong_batch_or_model_is_named(bug: str) -> None:
    planted = BATCHES[bug]
    model = family(planted.model) if isinstance(planted.model, str) else planted.model
    found = audit(model, [planted.batch], tokenizer=planted.tokenizer, fresh=planted.fresh)
    assert names(found) == [planted.name], found
    assert all(finding.what and finding.means and finding.fix for finding in found.findings)


def test_every_fault_is_planted() -> None:
    planted = {name for name, *_ in LOSSES.values()} | {planted.name for planted in BATCHES.values()}
    assert planted | {"fused-loss"} == set(FAULTS)


def test_a_wrong_fused_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cynosure.linear_cross_entropy
    module = sys.modules["cynosure.models.audit.loss"]  # the package's attribute `audit` is the function
    monkeypatch.setattr(module, "linear_cross_entropy", lambda *a, **o: own(*a, **o) * 1.0001)
    assert names(audit(family("Llama"), [rows(20, 13)])) == ["fused-loss"]


@pytest.mark.parametrize(
    "bug", ["never shifted", "softcap dropped", "num_items_in_batch not taken", "divided twice", "head detached"]
)
def test_bugs_are_named_in_bfloat16(bug: str) -> None:
    name, kind, loss_fn = LOSSES[bug]
    assert names(audit(family(kind).bfloat16(), [chat(20, 13, 16)], loss_fn=loss_fn)) == [name]


# ---- right set-ups


TEXTS = (
    "The loss of a language model is its surprise at the text it reads.",
    "A sure and right guess costs almost nothing.",
    "In 1948 Claude Shannon measured the entropy of English with nothing but patient readers, who guessed letters.",
)


def silent(found: Audit) -> bool:
    assert found.passed, found
    assert str(found)
    return not found.findings


def test_a_real_model_on_padded_text(smollm2: LanguageModel) -> None:
    """Padding is EOS here, of which these texts have none."""
    tokenizer = smollm2.tokenizer
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loader = DataLoader([tokenizer(text) for text in TEXTS], batch_size=3, collate_fn=collate)
    found = audit(smollm2.model, loader, tokenizer=tokenizer)
    assert silent(found)
    assert not found.notes
    assert len([check for check in found.checks if not check.result.startswith("not made")]) == 11


def test_a_real_model_with_another_tokenizers_ids(smollm2: LanguageModel) -> None:
    ids = torch.randint(0, 49_152, (1, 30), generator=torch.Generator().manual_seed(0))
    assert names(audit(smollm2.model, [{"input_ids": ids, "labels": ids}])) == ["above-ln-v"]


def test_trainers_collator_with_a_pad_token_of_its_own() -> None:
    tokenizer = byte_tokenizer(special={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, adds_bos=True)
    specials = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    model = tiny_model(spread=0.1, max_position_embeddings=128, **specials)
    encoded = [tokenizer(text + "</s>") for text in TEXTS]
    loader = DataLoader(encoded, batch_size=2, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    found = audit(model, loader, tokenizer=tokenizer)
    assert silent(found)
    assert found.notes == ("37 rows of the embedding are beyond the tokenizer's 263 tokens, as where a vocabulary is "
                           "padded",)  # fmt: skip
    tokenizer.pad_token = "</s>"
    model.config.pad_token_id = model.generation_config.pad_token_id = 1
    assert names(audit(model, loader, tokenizer=tokenizer)) == ["eos-unlabelled"]


def test_trls_collator_and_completions() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as Collator

    examples = []
    for row, inside in zip(chat(20, 13, 16)["input_ids"].tolist(), chat(20, 13, 16)["completion_mask"], strict=True):
        n = len(row) - row[::-1].index(EOS)
        labels = [id_ if i else IGNORED for id_, i in zip(row[:n], inside.tolist(), strict=False)]
        examples.append({"input_ids": row[:n], "labels": labels, "completion_mask": inside[:n]})
    for padding_free in (False, True):
        batch = Collator(pad_token_id=PAD, padding_free=padding_free)(examples)
        masks = [example["completion_mask"] for example in examples]
        batch["completion_mask"] = (
            torch.cat(masks)[None] if padding_free else nn.utils.rnn.pad_sequence(masks, batch_first=True)
        )
        found = audit(family("Llama"), [batch], tokenizer=Words())
        assert silent(found)
        assert not found.notes
        assert ("prompt", "31 of the completion's 31 tokens are labelled") in found.checks


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_with_its_own_loss_and_a_right_one(kind: str) -> None:
    batch = rows(20, 13, 16)
    found = audit(family(kind), [batch])
    assert silent(found)
    assert bool(found.notes) == (kind == "Mixtral")  # its auxiliary loss
    for loss_fn in (right, lambda model, batch, **more: model(**batch, **more).loss):
        assert silent(audit(family(kind), [batch], loss_fn=loss_fn, tokenizer=Words()))


@pytest.mark.parametrize(
    ("kind", "head"), [("Gemma 2", {"softcap": 3.0}), ("Cohere", {"scale": 0.25}), ("Granite", {"scale": 1 / 3})]
)
def test_the_fused_loss_by_hand(kind: str, head: dict[str, float]) -> None:
    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        return fused(model, batch, num_items_in_batch, **head)

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert silent(audit(family(kind).to(dtype), [chat(20, 13)], loss_fn=loss_fn, tokenizer=Words()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_patched_model(dtype: torch.dtype) -> None:
    model = family("Gemma 2").to(dtype)
    with patch(model) as patched:
        before = dict(vars(model))
        assert silent(audit(model, [chat(20, 13)]))
        assert patched.fused > 0
        assert vars(model) == before


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("patching", [False, True])
def test_a_model_wrapped_by_peft(targets: list[str], patching: bool) -> None:
    config = peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(family("Llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.train()
    undo = patch(model) if patching else None
    for loss_fn in (None, right):
        found = audit(model, [chat(20, 13)], loss_fn=loss_fn, tokenizer=Words())
        assert silent(found)
        assert any(check.check.startswith("gradient of ") and "lora" in check.check for check in found.checks)
    assert names(audit(model, [chat(20, 13)], loss_fn=shifted_twice)) == ["shifted-twice"]
    if undo:
        undo.undo()


def test_autocast_inside_of_the_loss() -> None:
    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return right(model, batch, num_items_in_batch)

    assert silent(audit(family("Llama"), [rows(20, 13)], loss_fn=loss_fn))


def test_a_loss_in_bfloat16_is_told() -> None:
    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        return right(model, batch, num_items_in_batch).bfloat16()

    found = audit(family("Llama"), [rows(20, 13)], loss_fn=loss_fn)
    assert silent(found)
    assert "rounded to torch.bfloat16" in found.notes[0]


def test_labels_shifted_by_the_data_set_and_not_by_the_loss() -> None:
    text = rows(21, 21)["input_ids"]
    batch = {"input_ids": text[:, :-1], "labels": text[:, 1:]}

    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        logits, labels = model(batch["input_ids"]).logits, batch["labels"]
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    found = audit(family("GPT-2"), [batch], loss_fn=loss_fn)
    assert silent(found)
    assert found.notes == ("the data set shifts the labels, and the loss does not: once, as it should be",)


@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
@pytest.mark.parametrize("loss_fn", [None, right])
def test_awkward_batches_that_are_right(kind: str, loss_fn: Any) -> None:
    model = family(kind)
    ignored = rows(20, 13, 16)
    ignored["labels"][1] = IGNORED
    packed = without(rows(20), "attention_mask")
    packed["position_ids"] = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed["input_ids"][0, 7], packed["input_ids"][0, 8] = EOS, BOS
    packed["labels"] = packed["input_ids"].masked_fill(packed["position_ids"] == 0, IGNORED)
    chunks = without(rows(20, 20, end=7), "attention_mask")
    chunks["input_ids"][:, 0] = EOS  # parts of a longer text, one beginning with the end of another
    one = rows(20)
    one["labels"][:, :-1] = IGNORED
    constant = torch.full((2, 9), 5)
    one_mask = rows(20, 13, side="left")
    one_mask["attention_mask"] = one_mask["attention_mask"][:, None, None].bool() & torch.ones(20, 20).tril().bool()
    one_mask["attention_mask"][1, 0, :7, 0] = True  # a row of attention to nothing would be NaN
    for batch in (rows(20), rows(20, 13, side="left"), packed, ignored, chunks, rows(2), one, one_mask,
                  {"input_ids": constant, "labels": constant}):  # fmt: skip
        assert silent(audit(model, [batch, batch], loss_fn=loss_fn, tokenizer=Words()))
    assert audit(model, [ignored]).notes == ("rows without any label, which only cost time: batch 0, row 1",)


def test_fresh_models_as_transformers_makes_them() -> None:
    for name, (config, model, options) in FAMILIES.items():
        if name not in ("GPT-2", "Phi, biased"):
            torch.manual_seed(0)
            fresh = getattr(transformers, model)(getattr(transformers, config)(**(SIZES | options)))
            for said in (None, True):
                assert silent(audit(fresh, [rows(20, 13)], fresh=said))


def test_a_loss_without_items_on_equal_rows_is_no_fault() -> None:
    found = audit(family("Llama"), [rows(20, 20)], loss_fn=lambda model, batch: right(model, batch))
    assert silent(found)
    assert "exact only while all have as many labels" in found.notes[0]
    batches = [rows(20), rows(9)]
    assert names(audit(family("Llama"), batches, loss_fn=lambda model, batch: right(model, batch))) == ["mean-of-means"]


def test_a_model_that_takes_no_mask() -> None:
    class Narrow(transformers.LlamaForCausalLM):
        accepts_loss_kwargs = False

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
            return super().forward(input_ids, labels=labels)

    torch.manual_seed(0)
    model = Narrow(transformers.LlamaConfig(**SIZES))
    assert silent(audit(model, [rows(20, 20)]))
    assert names(audit(model, [rows(20, 13)])) == ["mean-of-means"]


def test_what_might_be_a_fault_but_is_not_shown_is_a_note() -> None:
    found = audit(family("Llama"), [rows(20, 13)], tokenizer=Words(V + 2))  # as Gemma 3's has for images
    assert silent(found)
    assert found.notes == ("2 tokens of the tokenizer have no row in the embedding; none is used here: <97>, <98>",)
    model = family("Llama")
    model.config.eos_token_id = 50
    found = audit(model, [rows(20, 13, end=7)], tokenizer=Words())
    assert silent(found)
    assert found.notes == ("eos is 2 in the tokenizer and 50 in model.config; these batches do not show it",)
    model = family("Llama")
    model.generation_config.pad_token_id = 50
    assert silent(audit(model, [rows(20, 13)], tokenizer=Words()))
    batch = no_bos(rows(20, 20))
    found = audit(family("Llama"), [batch], tokenizer=Words())
    assert silent(found)
    assert "right if they are parts of longer texts" in found.notes[0]


# ---- the audit itself


def test_the_model_is_left_as_it_was() -> None:
    model = family("Llama").train()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    model(**rows(20, 13)).loss.backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    kept = {name: p.grad for name, p in model.named_parameters()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loader = DataLoader([0, 1], collate_fn=lambda _: rows(20, 13), shuffle=True)
    assert silent(audit(model, loader, loss_fn=right))
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.modules()]
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is kept[name]
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad == ("embed" not in name)
    with pytest.raises(ZeroDivisionError):
        audit(model, [rows(20, 13)], loss_fn=lambda model, batch: 1 / 0)
    assert modes == [module.training for module in model.modules()]


def test_an_endless_loader_is_not_exhausted() -> None:
    taken = []

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            taken.append(1)
            yield rows(9)

    assert silent(audit(family("Llama"), endless()))
    assert len(taken) == N_BATCHES


def test_bugs_in_a_later_batch_are_found() -> None:
    plain, broken = rows(20, 13), rows(20, 13)
    broken["labels"] = broken["input_ids"]
    found = audit(family("Llama"), [plain, broken])
    assert names(found) == ["padding-labelled"]
    assert "batch 1, row 1, position 13" in found.findings[0].what
    empty = plain | {"labels": torch.full_like(plain["labels"], IGNORED)}
    assert names(audit(family("Llama"), [plain, empty])) == ["no-labels"]


def test_a_loss_function_may_change_its_batch() -> None:
    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        labels = batch.pop("labels")
        loss = summed(logits_of(model, batch), {"labels": labels}, num_items_in_batch)
        labels.fill_(0)
        return loss

    batch = rows(20, 13)
    assert silent(audit(family("Llama"), [batch], loss_fn=loss_fn))
    assert "labels" in batch
    assert (batch["labels"] == IGNORED).sum() == 7


PLAIN = rows(9)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batches": []}, ValueError, "batches is empty: an audit needs at least one, such as a DataLoader gives"),
    ({"batches": PLAIN}, TypeError, r"batches is one batch, not an iterable of them: audit\(model, \[batch\]\)"),
    ({"batches": [[PLAIN]]}, TypeError, "batch 0 is a list, not a dict of tensors: give the model's inputs by name"),
    ({"batches": [PLAIN, without(PLAIN, "labels")]}, ValueError,
     "batch 1 has no 'labels', only input_ids, attention_mask: DataCollatorForLanguageModeling"),
    ({"batches": [PLAIN | {"labels": PLAIN["labels"][:, 1:]}]}, ValueError,
     r"batch 0: labels must be integers of the shape of input_ids, \(1, 9\), got torch.int64 of shape \(1, 8\)"),
    ({"batches": [PLAIN | {"completion_mask": [1]}]}, ValueError, "completion_mask must be integers .* got a list"),
    ({"batches": [PLAIN | {"input_ids": PLAIN["input_ids"][0]}]}, ValueError,
     r"batch 0: input_ids must be a \(B, T\) tensor of ids, got torch.int64 of shape \(9,\)"),
    ({"loss_fn": lambda model, batch: model(**batch)}, TypeError,
     "loss_fn gives CausalLMOutputWithPast as the loss of a batch: return the 0-d tensor"),
    ({"loss_fn": lambda model, batch: model(**batch).logits[0, 0]}, TypeError, r"torch.float32 of shape \(97,\)"),
    ({"loss_fn": 3}, TypeError, "loss_fn must be a function of"),
    ({"model": nn.Linear(2, 2)}, TypeError, "an audit needs a causal language model of transformers, got Linear"),
    ({"model": "smollm2"}, TypeError, "an audit needs a causal language model of transformers, got str"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_gets_one_sentence(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": family("Llama"), "batches": [PLAIN]} | change
    with pytest.raises(error, match=message):
        audit(given.pop("model"), given.pop("batches"), **given)


def test_every_fault_is_documented() -> None:
    page = (ROOT / "docs" / "checking.md").read_text()
    assert [name for name in FAULTS if f"`{name}`" not in page] == []
