"""Every planted bug is named, by its own name alone, and where nothing can be said, why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import cynosure
from cynosure import audit
from cynosure.auditing.findings import FAULTS
from cynosure.models import LanguageModel
from cynosure.patching.labelled import IGNORED
from tests.auditing.audits import (
    BOS,
    EOS,
    Fivefold,
    Words,
    by,
    chat,
    counted_before_shift,
    every_position,
    family,
    frozen_head,
    fused,
    half_detached,
    ids_as_labels,
    larger_head,
    logits_of,
    mean_of_rows,
    names,
    never_shifted,
    no_bos,
    no_pad,
    right,
    rows,
    shifted,
    shifted_twice,
    smoothed,
    summed,
    unshifted,
    without,
)
from tests.patching.test_patch import SIZES, V

ROOT = Path(__file__).parents[2]


LOSSES: dict[str, tuple[str, str, Any]] = {
    # bug: (the name it must be given, the family it is planted in, the loss)
    "never shifted": ("never-shifted", "Llama", never_shifted),
    "never shifted, a token less": ("never-shifted", "Llama", by(
        lambda z, batch: (z, batch | {"labels": F.pad(batch["labels"][:, :-1], (1, 0), value=IGNORED)}))),
    "both sliced": ("never-shifted", "Llama", lambda model, batch, num_items_in_batch=None: F.cross_entropy(
        logits_of(model, batch)[:, 1:].flatten(0, 1), batch["labels"][:, 1:].flatten())),
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
    "divided by the labels before the shift": ("counted-before-shift", "Llama", counted_before_shift),
    "divided by the mask": ("ignored-counted", "Llama", lambda model, batch, num_items_in_batch=None: right(
        model, batch, int(batch["attention_mask"].sum()))),
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


# These show where the first token has a label.
FROM_THE_FIRST = ("shifted by two", "both sliced", "divided by the labels before the shift")


@pytest.mark.parametrize("bug", LOSSES)
def test_a_wrong_loss_is_named(bug: str) -> None:
    name, kind, loss_fn = LOSSES[bug]
    model, batch = family(kind), rows(20, 13, 16) if bug in FROM_THE_FIRST else chat(20, 13, 16)
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
    loss_fn: Any = None


def changed(batch: dict[str, Tensor], **columns: Tensor) -> dict[str, Tensor]:
    return batch | columns


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
    packed = without(rows(20), "attention_mask")
    starts = changed(packed, position_ids=torch.cat([torch.arange(8), torch.arange(12)])[None])
    yield "documents crossed, by positions", Planted("label-crosses-documents", starts)
    yield "documents crossed, by numbers", Planted("label-crosses-documents", changed(
        packed, seq_idx=(torch.arange(20) >= 8).int()[None]))  # fmt: skip
    yield "documents crossed, by the mask", Planted("label-crosses-documents", changed(
        packed, attention_mask=1 + (torch.arange(20) >= 8).long()[None]))  # fmt: skip
    yield "documents crossed, by lengths", Planted("label-crosses-documents", changed(
        packed, cu_seq_lens_q=torch.tensor([0, 8, 20], dtype=torch.int32)))  # fmt: skip
    yield "documents crossed, shifted by the data set", Planted("label-crosses-documents", starts | {
        "labels": shifted(packed["labels"])}, loss_fn=unshifted)  # fmt: skip
    pictured = changed(plain, input_ids=put(ids, 50), labels=put(plain["labels"], 50))
    for config_name in ("image_token_id", "video_token_index", "audio_token_id"):
        model = family("Llama")
        setattr(model.config, config_name, 50)
        yield f"{config_name} labelled", Planted("placeholder-labelled", pictured, model)
    yield "image token labelled", Planted("placeholder-labelled", pictured, tokenizer=Words(image_token_id=50))
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
    found = audit(model, [planted.batch], loss_fn=planted.loss_fn, tokenizer=planted.tokenizer, fresh=planted.fresh)
    assert names(found) == [planted.name], found
    assert all(finding.what and finding.means and finding.fix for finding in found.findings)


def test_every_fault_is_planted() -> None:
    planted = {name for name, *_ in LOSSES.values()} | {planted.name for planted in BATCHES.values()}
    assert planted | {"fused-loss"} == set(FAULTS)


def test_a_wrong_fused_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cynosure.linear_cross_entropy
    monkeypatch.setattr("cynosure.auditing.loss.linear_cross_entropy", lambda *a, **o: own(*a, **o) * 1.0001)
    assert names(audit(family("Llama"), [rows(20, 13)])) == ["fused-loss"]


@pytest.mark.exhaustive
def test_a_real_model_with_another_tokenizers_ids(smollm2: LanguageModel) -> None:
    ids = torch.randint(0, 49_152, (1, 30), generator=torch.Generator().manual_seed(0))
    assert names(audit(smollm2.model, [{"input_ids": ids, "labels": ids}])) == ["above-ln-v"]


def test_a_row_without_labels_that_makes_nan() -> None:
    """Which the batch does not show, but a part of it does."""
    batch = {name: values[:1].expand(2, -1).clone() for name, values in chat(20).items()}
    found = audit(family("Llama"), [batch], loss_fn=LOSSES["mean of rows"][2])
    assert names(found) == ["not-finite"]
    assert "where a row has no label" in found.findings[0].what


def test_a_bug_is_named_once_whatever_the_number_of_batches() -> None:
    loss_fn = LOSSES["never shifted"][2]
    assert names(audit(family("Llama"), [chat(20, 13), chat(16, 11)], loss_fn=loss_fn)) == ["never-shifted"]


def test_where_it_is_not_finite_is_told() -> None:
    (finding,) = audit(broken(), [chat(20, 13)]).findings
    assert finding.what.startswith(
        "the model's own logits give a loss of nan at batch 0, row 0, position 5: LlamaForCausalLM has weights that "
        "are not finite in float32: lm_head.weight (16 of 1,552)."
    )


@pytest.mark.parametrize(
    "bug", ["never shifted", "softcap dropped", "num_items_in_batch not taken", "divided twice", "head detached"]
)
def test_bugs_are_named_in_bfloat16(bug: str) -> None:
    name, kind, loss_fn = LOSSES[bug]
    assert names(audit(family(kind).bfloat16(), [chat(20, 13, 16)], loss_fn=loss_fn)) == [name]


def test_bugs_in_a_later_batch_are_found() -> None:
    plain, broken = rows(20, 13), rows(20, 13)
    broken["labels"] = broken["input_ids"]
    found = audit(family("Llama"), [plain, broken])
    assert names(found) == ["padding-labelled"]
    assert "batch 1, row 1, position 13" in found.findings[0].what
    empty = plain | {"labels": torch.full_like(plain["labels"], IGNORED)}
    assert names(audit(family("Llama"), [plain, empty])) == ["no-labels"]


PLAIN = rows(9)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batches": []}, ValueError,
     "batches is empty: an audit needs at least one. Pass a DataLoader or a list of batches"),
    ({"batches": PLAIN}, TypeError,
     r"batches is a single batch, expected an iterable of batches: call audit\(model, \[batch\]\)"),
    ({"batches": [[PLAIN]]}, TypeError, "batch 0 is a list, expected a dict of tensors: pass model inputs by name"),
    ({"batches": [PLAIN, without(PLAIN, "labels")]}, ValueError,
     "batch 1 has no 'labels', only input_ids, attention_mask: DataCollatorForLanguageModeling"),
    ({"batches": [PLAIN | {"labels": PLAIN["labels"][:, 1:]}]}, ValueError,
     r"batch 0: labels must be integers with the shape of input_ids, \(1, 9\), got torch.int64 of shape \(1, 8\)"),
    ({"batches": [PLAIN | {"completion_mask": [1]}]}, ValueError, "completion_mask must be integers .* got a list"),
    ({"batches": [PLAIN | {"input_ids": PLAIN["input_ids"][0]}]}, ValueError,
     r"batch 0: input_ids must be a \(B, T\) tensor of ids, got torch.int64 of shape \(9,\)"),
    ({"loss_fn": lambda model, batch: model(**batch)}, TypeError,
     "loss_fn gives CausalLMOutputWithPast as the loss of a batch: return the 0-d tensor"),
    ({"loss_fn": lambda model, batch: model(**batch).logits[0, 0]}, TypeError, r"torch.float32 of shape \(97,\)"),
    ({"loss_fn": 3}, TypeError, "loss_fn must be a function of"),
    ({"model": nn.Linear(2, 2)}, TypeError, "an audit needs a transformers causal language model, got Linear"),
    ({"model": "smollm2"}, TypeError, "an audit needs a transformers causal language model, got str"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_gets_one_sentence(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": family("Llama"), "batches": [PLAIN]} | change
    with pytest.raises(error, match=message):
        audit(given.pop("model"), given.pop("batches"), **given)


def test_every_fault_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "findings.md").read_text()
    assert [name for name in FAULTS if f"`{name}`" not in page] == []
