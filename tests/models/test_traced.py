"""What a traced forward tells from the shell: models split without their attributes, NaN, overflow, unknown ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cynosure.auditing import audit, check
from cynosure.cli.app import app
from cynosure.measure import score
from cynosure.measure.prediction import predict
from cynosure.models import LanguageModel, check_apart, read_head
from cynosure.patching import causal_lm_loss
from tests.models.test_head import traced
from tests.tiny import byte_tokenizer, tiny, tiny_model

IDS = torch.arange(30, 62)
TEXT = "the cat sat on the mat. naïve café\n"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # transformers' own, of kernels that are not there
@pytest.mark.parametrize("kind", ["Llama4ForCausalLM", "MambaForCausalLM"])
def test_commands_split_models_whose_attributes_do_not(kind: str, tmp_path: Path) -> None:
    folder, text = saved(traced(kind), tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    common = ("--device", "cpu", "--quiet")
    assert "nats" in run("predict", folder, "the cat", "--truth", " sat", *common).stdout
    assert run("score", folder, text, "--window", "32", "--dtype", "bfloat16", *common).exit_code == 0
    assert "Passed: the fused loss" in run("check", folder, *common).stdout
    options = ("--init", folder, "--tokens", "512", "--row-tokens", "32", "--batch-tokens", "256", "--dtype", "float32")
    done = run("train", text, "--out", tmp_path / "run", *options, *common)
    if kind.startswith("Llama4"):
        assert done.exit_code == 0, done.output
    else:
        assert "does not keep the documents of a packed row apart" in str(done.exception)


def test_decoders_of_encoder_decoders_are_checked_without_a_shift() -> None:
    checks = check(traced("BartForCausalLM"), IDS)
    assert [item.name for item in checks[:3]] == ["logits", "loss, labels not shifted", "d hidden, labels not shifted"]
    assert len(checks) == 7  # not num_items_in_batch, which they take and ignore
    assert all(item.passed for item in checks)


@pytest.mark.parametrize("kind", ["Llama4ForCausalLM", "MambaForCausalLM", "OPTForCausalLM", "BertLMHeadModel"])
def test_models_whose_attributes_lie_are_checked(kind: str) -> None:
    assert all(item.passed for item in check(traced(kind), IDS))


@torch.no_grad()
def broken(what: str) -> Any:
    """A tiny model with a weight that is NaN, or one whose states overflow in float16."""
    model = tiny_model()
    if what == "NaN":
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    else:
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
        model.half()
    return model


REASONS = {
    "NaN": r"has weights that are not finite in float32: model.layers.1.mlp.up_proj.weight \(1 of 512\)\. The",
    "overflow": "has finite weights, but its hidden states, first .*layers.* overflow in float16: load it in float32",
}


@pytest.mark.parametrize("what", REASONS)
def test_numbers_that_are_not_finite_are_diagnosed_everywhere(what: str) -> None:
    model, reason = broken(what), REASONS[what]
    language_model = LanguageModel(model, byte_tokenizer(), "tiny")
    calls: list[Any] = [
        lambda: read_head(model),
        lambda: predict(language_model, "the cat"),
        lambda: score(language_model, [TEXT], window=16),
        lambda: check_apart(model, 300),
    ]
    if what == "NaN":
        calls.append(lambda: check(model, IDS))
    for call in calls:
        with pytest.raises(ValueError, match=reason):
            call()
    found = audit(model, [{"input_ids": IDS[None], "labels": IDS[None]}])
    assert [finding.name for finding in found.findings] == ["not-finite"]
    assert reason.partition("not finite")[0].partition("first")[0] in found.findings[0].what


def test_one_row_of_an_embedding_is_found_where_it_is_met() -> None:
    model = tiny()
    (token,) = model.tokenizer("!")["input_ids"]
    with torch.no_grad():
        model.model.model.embed_tokens.weight[token] = torch.inf
    assert score(model, ["the cat"], window=16).tokens
    for call in (lambda: score(model, ["the ! cat"], window=16), lambda: predict(model, "the !")):
        with pytest.raises(ValueError, match=r"model.embed_tokens.weight \(16 of 4,800\)"):
            call()


def test_states_that_overflow_in_float32() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    with pytest.raises(ValueError, match="finite weights, but its logits overflow in float32: its training diverged,"):
        read_head(model)


def test_the_commands_name_weights_that_are_not_finite(tmp_path: Path) -> None:
    folder, text = saved(broken("NaN"), tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT * 10)
    for arguments in (
        ("predict", folder, "the cat"), ("score", folder, text), ("check", folder), ("compare", folder, folder, text),
        ("train", text, "--init", folder, "--out", tmp_path / "run", "--tokens", "512", "--row-tokens", "32"),
    ):  # fmt: skip
        done = run(*arguments, "--device", "cpu")
        assert done.exit_code == 1
        assert "model.layers.1.mlp.up_proj.weight (1 of 512)" in str(done.exception), arguments


def test_ids_without_an_embedding_are_named(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(60)])
    model = LanguageModel(tiny_model(), tokenizer, "tiny")  # of 300 rows; <40> is 302
    named = r"token 302 \('<40>'\) is beyond the embedding of tiny, which has 300 \(ids 0 to 299\): use the tokenizer"
    for call in (lambda: score(model, ["the<40> cat"], window=16), lambda: predict(model, "the<40> cat")):
        with pytest.raises(ValueError, match=named):
            call()
    for call in (lambda: score(model, ["the<40>"], window=16), lambda: predict(model, "the", truth="<40>")):
        with pytest.raises(ValueError, match=r"token 302 \('<40>'\) is beyond the head of tiny, which has 300"):
            call()
    with pytest.raises(ValueError, match="token 300 is beyond the embedding of LlamaForCausalLM, which has 300"):
        check(model.model, torch.arange(269, 301))
    for ids in (torch.tensor([[5, 300]]), torch.tensor([[5, -100]])):
        with pytest.raises(ValueError, match=f"token {ids[0, 1]} is beyond the embedding of LlamaForCausalLM"):
            causal_lm_loss(model.model, ids)
    model.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the<40> cat " * 100)
    for arguments in (
        ("predict", tmp_path / "model", "the<40> cat"), ("score", tmp_path / "model", text),
        ("train", text, "--init", tmp_path / "model", "--out", tmp_path / "run", "--tokens", "512",
         "--row-tokens", "32"),
    ):  # fmt: skip
        done = run(*arguments, "--device", "cpu")
        assert done.exit_code == 1
        assert "token 302 ('<40>') is beyond" in str(done.exception), arguments
