"""Right set-ups have no finding, rounding stays within its bound, and an audit leaves nothing behind."""

from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

from cynosure import audit, patch
from cynosure.auditing import Audit
from cynosure.auditing.batch import N_BATCHES, take_batches
from cynosure.auditing.loss import rounding_of
from cynosure.auditing.truth import OwnLogits, nll_of
from cynosure.models import LanguageModel
from cynosure.patching.labelled import IGNORED
from tests.auditing.audits import (
    BOS,
    EOS,
    PAD,
    Words,
    chat,
    family,
    fused,
    larger_head,
    logits_of,
    names,
    no_bos,
    no_pad,
    right,
    rows,
    shifted_twice,
    summed,
    without,
)
from tests.patching.test_patch import FAMILIES, SIZES, V
from tests.tiny import byte_tokenizer, ruling_out, tiny_model

TEXTS = (
    "The loss of a language model is its surprise at the text it reads.",
    "A sure and right guess costs almost nothing.",
    "In 1948 Claude Shannon measured the entropy of English with nothing but patient readers, who guessed letters.",
)


def silent(found: Audit) -> bool:
    assert found.passed, found
    assert str(found)
    return not found.findings


@pytest.mark.exhaustive
def test_a_real_model_on_padded_text(smollm2: LanguageModel) -> None:
    """Padding is EOS here, of which these texts have none."""
    tokenizer = smollm2.tokenizer
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loader = DataLoader([tokenizer(text) for text in TEXTS], batch_size=3, collate_fn=collate)
    found = audit(smollm2.model, loader, tokenizer=tokenizer)
    assert silent(found)
    assert not found.notes
    assert len([check for check in found.checks if not check.result.startswith("not made")]) == 12


def test_trainers_collator_with_a_pad_token_of_its_own() -> None:
    tokenizer = byte_tokenizer(special={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, adds_bos=True)
    specials = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    model = tiny_model(spread=0.1, max_position_embeddings=128, **specials)
    encoded = [tokenizer(text + "</s>") for text in TEXTS]
    loader = DataLoader(encoded, batch_size=2, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    found = audit(model, loader, tokenizer=tokenizer)
    assert silent(found)
    (note,) = found.notes
    assert note == "the embedding has 37 rows more than the tokenizer's 263 tokens, as in a padded vocabulary"
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


def test_the_fused_loss_of_a_head_that_rules_out_classes() -> None:
    found = audit(ruling_out(family("Llama"), V - 9), [{name: x % (V - 9) for name, x in rows(20).items()}])
    assert silent(found)
    assert "rounding allows" in dict(found.checks)["fused loss"]


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
    assert found.notes == ("the data set shifts the labels and the loss does not, which is correct",)


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
    assert audit(model, [ignored]).notes == ("rows without any label only cost time: batch 0, row 1",)


def test_padding_without_a_mask_that_is_right() -> None:
    plain = without(rows(20, 13), "attention_mask")
    found = audit(family("Llama"), [plain], tokenizer=Words())
    assert silent(found)
    assert found.notes == ("7 pad tokens after the text are not masked; in a causal model they cost time but do not "
                           "change the loss",)  # fmt: skip
    words = Words(pad_token_id=EOS)
    without_eos = rows(20, 13, end=7)
    without_eos["input_ids"][1, 13:] = EOS
    assert silent(audit(no_pad(), [without(without_eos, "attention_mask")], tokenizer=words))
    chunks = without(rows(20, 20, end=7), "attention_mask")
    chunks["input_ids"][:, 0] = chunks["labels"][:, 0] = EOS  # of a text that ended in the chunk before
    assert not audit(no_pad(), [chunks], tokenizer=Words(pad_token_id=EOS, adds_bos=False)).notes


def test_one_token_for_bos_and_eos_and_padding() -> None:
    """As in GPT-2: texts are led by EOS, in packed rows each after the end of another."""
    model, words = family("GPT-2"), Words(bos_token_id=EOS, pad_token_id=EOS)
    model.config.bos_token_id = model.generation_config.bos_token_id = EOS
    packed = without(rows(20, end=7), "attention_mask")
    packed["position_ids"] = torch.cat([torch.arange(7), torch.arange(1), torch.arange(12)])[None]
    packed["input_ids"][0, [0, 7, 8]] = EOS  # the second text is empty
    packed["labels"] = packed["input_ids"].masked_fill(packed["position_ids"] == 0, IGNORED)
    assert silent(audit(model, [packed], tokenizer=words))


def test_bos_twice_in_a_packed_row() -> None:
    packed = without(rows(20), "attention_mask")
    packed["position_ids"] = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed["input_ids"][0, 8:10] = packed["labels"][0, 8:10] = BOS
    packed["labels"][0, 8] = IGNORED
    (finding,) = audit(family("Llama"), [packed], tokenizer=Words()).findings
    assert finding.name == "bos-twice"
    assert "batch 0, row 0, position 8" in finding.what


@pytest.mark.parametrize("n_classes", [97, 50_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_stays_within_its_bound(n_classes: int, dtype: torch.dtype) -> None:
    """Of the products and of torch's own loss, which sums as many terms as there are classes."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 16).to(dtype), torch.randn(n_classes, 16).to(dtype)
    target = torch.randint(n_classes, (1, 8))
    for scale in (0.01, 1.0, 3.0):
        logits = F.linear(hidden * scale, weight)[None]
        exact = F.cross_entropy(F.linear((hidden * scale).double(), weight.double()), target[0])
        theirs = F.cross_entropy(logits[0].float(), target[0])
        nll = nll_of(OwnLogits(logits, None, None, None), target)
        slack = nll.slack / nll.n + rounding_of(theirs)
        assert max(abs(theirs - nll.mean), abs(exact - nll.mean)) <= slack
        if n_classes < 1e6:  # nor is it boundless
            assert slack <= (1e-4 if dtype == torch.float32 else 0.1) * max(1.0, float(exact))


def test_padding_says_nothing_about_the_level() -> None:
    batch, model = rows(20, 4), family("Phi, biased")
    with torch.no_grad():
        model.lm_head.bias[PAD] = -200
    assert names(audit(model, [batch | {"labels": batch["input_ids"]}])) == ["padding-labelled"]


def test_labels_that_are_other_tokens_are_told() -> None:
    batch = rows(20, 13)
    batch["labels"][1, 4] += 1
    found = audit(family("Llama"), [batch])
    assert silent(found)
    assert found.notes == ("1 labels differ from the token at their position; the first is batch 0, row 1, position 4",)


def test_the_gradient_of_an_auxiliary_loss_counts() -> None:
    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **experts)).requires_grad_(False)
    model.model.layers[1].mlp.gate.weight.requires_grad_(True)
    found = audit(model, [rows(20, 13)])
    assert silent(found)
    assert found.checks[-1].check == "gradient of model.layers.1.mlp.gate.weight"


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
    assert "exact only if all have the same number of labels" in found.notes[0]
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
    assert silent(audit(larger_head("Llama"), [rows(20, 13)]))
    model = family("Llama")
    model.config.eos_token_id = 50
    found = audit(model, [rows(20, 13, end=7)], tokenizer=Words())
    assert silent(found)
    assert found.notes == (
        "eos is 2 in the tokenizer and 50 in model.config; these batches do not contain the tokenizer's",
    )
    model = family("Llama")
    model.generation_config.pad_token_id = 50
    assert silent(audit(model, [rows(20, 13)], tokenizer=Words()))
    batch = no_bos(rows(20, 20))
    found = audit(family("Llama"), [batch], tokenizer=Words())
    assert silent(found)
    assert "correct if they are parts of longer texts" in found.notes[0]


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

    def loss_fn(model: Any, batch: Any, num_items_in_batch: Any = None) -> Tensor:
        model.zero_grad()
        torch.rand(3)
        return right(model, batch, num_items_in_batch)

    assert silent(audit(model, loader, loss_fn=loss_fn))
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


def test_columns_that_mark_the_completion_are_not_the_models() -> None:
    model, seen = family("Llama"), set()
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    assert silent(audit(model, [chat(20, 13)]))
    assert seen == {"input_ids", "attention_mask", "labels", "num_items_in_batch"}


def test_an_endless_loader_is_not_exhausted() -> None:
    taken = []

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            taken.append(1)
            yield rows(9)

    assert silent(audit(family("Llama"), endless()))
    assert len(taken) == N_BATCHES


@pytest.mark.parametrize("ahead", [1, -1])
def test_labels_that_name_other_tokens_are_not_taken_for_shifted_ones(ahead: int) -> None:
    """Though one of them names the token after it, or before."""
    ids = torch.arange(3, 23)[None]
    labels = ids + 20
    labels[0, 5] = ids[0, 5 + ahead]
    (batch,) = take_batches([{"input_ids": ids, "labels": labels}], torch.device("cpu"))
    assert batch.ahead == 0


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
