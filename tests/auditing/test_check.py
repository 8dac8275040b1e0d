"""The check passes on sound models of every kind of head, and fails when the loss or the model is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cynosure.auditing import check, checks
from cynosure.cli.app import app
from cynosure.cli.check import FILLER, padded_batch
from cynosure.models import LanguageModel
from cynosure.text.words import one_text
from tests.models.test_head import FAMILIES
from tests.tiny import byte_tokenizer, ruling_out, tiny_model

IDS = torch.arange(30, 62)
NAMES = ["logits", "loss", "d hidden", "d weight"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_sound_models_pass(kind: str) -> None:
    checks = check(tiny_model(kind, spread=0.3, **FAMILIES[kind]), IDS)
    assert [item.name for item in checks[:4]] == NAMES
    assert len(checks) == 8
    assert all(item.passed for item in checks)
    assert all(item.difference < 1e-4 and item.ours_from_exact < 1e-5 for item in checks)


@pytest.mark.exhaustive
def test_smollm2_passes(smollm2: LanguageModel) -> None:
    checks = check(smollm2.model, torch.tensor(smollm2.tokenizer(FILLER).input_ids[:48]))
    assert checks[1].difference < 1e-5
    assert all(item.passed for item in checks)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"shift": 0}, {"loss", "d hidden", "d weight", "loss / num_items_in_batch"}),
        ({"scale": 1.0}, {"loss", "d hidden", "d weight"}),
        ({"ignore_index": -1}, set()),
        ({"normalizer": 7.0}, {"loss", "d hidden", "d weight", "loss / num_items_in_batch"}),
        ({"label_smoothing": 0.01}, {"loss", "d hidden", "d weight"}),
    ],
)
def test_a_wrong_loss_is_caught(change: dict[str, Any], failing: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = checks.linear_cross_entropy
    monkeypatch.setattr(checks, "linear_cross_entropy", lambda *args, **options: own(*args, **(options | change)))
    model = tiny_model("Cohere", spread=0.3, logit_scale=0.25)
    if not failing:  # -100 is then out of range
        with pytest.raises((ValueError, IndexError), match="-100"):
            check(model, IDS)
        return
    found = {item.name for item in check(model, IDS) if not item.passed}
    assert failing <= found


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a model in float32, got torch\.float64: call model\.float\(\) first"):
        check(tiny_model().double(), IDS)
    with pytest.raises(ValueError, match=r"at least 32 tokens in one row, got shape \(2,\)"):
        check(tiny_model(), IDS[:2])


def test_a_model_that_rules_out_tokens() -> None:
    model = ruling_out(tiny_model("Phi", spread=0.3, max_position_embeddings=128), 290)
    logits, *others = check(model, IDS)
    assert all(item.passed and 0 < item.ours < 1e3 for item in (logits, *others))
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: own(hidden).masked_fill(torch.arange(300) == 289, -torch.inf)
    with pytest.raises(ValueError, match="cannot be split"):
        check(model, IDS)


def test_a_text_that_a_model_rules_out(tmp_path: Path) -> None:
    ruling_out(tiny_model("Phi", spread=0.3, max_position_embeddings=128), 200).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    values = json.loads(run(tmp_path, "é", "--format", "json").stdout)
    loss = next(item for item in values["checks"] if item["name"] == "loss")
    assert (loss["ours"], loss["theirs"], loss["difference"], loss["passed"]) == (None, None, 0.0, True)
    assert [finding["name"] for finding in values["findings"]] == ["not-finite"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_command_names_what_it_finds(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(max_position_embeddings=128), byte_tokenizer(adds_bos=True)
    tokenizer.add_tokens([f"<{i}>" for i in range(60)])
    tokenizer.pad_token = "<59>"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "Passed: the fused loss" in done.stdout
    assert "tokenizer-too-large: the tokenizer has 322 tokens, the embedding 300 rows" in done.stdout
    assert "The fix: call model.resize_token_embeddings(len(tokenizer))" in done.stdout
    values = json.loads(run(tmp_path, "--format", "json").stdout)
    assert list(values) == ["model", "passed", "head", "checks", "findings", "notes"]
    assert not values["passed"]
    assert [list(finding) for finding in values["findings"]] == [["name", "what", "means", "fix"]] * 2
    assert [finding["name"] for finding in values["findings"]] == ["tokenizer-too-large", "special-tokens-differ"]


def test_the_command_with_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    tiny_model(vocab_size=60, max_position_embeddings=128).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "The losses are not compared" in done.stdout
    assert "tokenizer-too-large: the tokenizer has 262 tokens, the embedding 60 rows; id" in done.stdout
    assert json.loads(run(tmp_path, "--format", "json").stdout)["checks"] == []


def test_the_command_is_quiet_where_nothing_is_found(tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text of a file. " * 400)
    done = run(tiny_folder, text)
    assert done.exit_code == 0
    assert "Audit: no problems in 13 checks" in done.stdout
    assert "Note: bos is 0 in the tokenizer and 1 in model.config" in done.stdout
    assert (
        run(tiny_folder, tmp_path / "text.txt", "--format", "json").stdout
        != run(tiny_folder, "--format", "json").stdout
    )


def test_a_text_or_a_file_of_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("né\n")
    assert one_text(str(text)) == "né\n"
    assert one_text("words " * 1000) == "words " * 1000
    text.write_text("")
    assert one_text(str(text)) == ""


def test_the_batch_is_as_a_collator_makes_it() -> None:
    batch = padded_batch(byte_tokenizer(adds_bos=True), list(range(20, 120)))
    assert {name: tuple(values.shape) for name, values in batch.items()} == dict.fromkeys(batch, (2, 64))
    assert batch["input_ids"][:, 0].tolist() == [0, 0]
    assert batch["input_ids"][1, 40:].tolist() == [1] * 24  # EOS, where there is no pad token
    assert batch["labels"][1, 40:].tolist() == [-100] * 24
    assert batch["attention_mask"].sum(1).tolist() == [64, 40]
    assert padded_batch(byte_tokenizer(), list(range(20, 120)))["input_ids"][0, 0] == 20
