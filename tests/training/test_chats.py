"""Training on chats: what is predicted of them, what becomes of long ones, and a run on them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import cynosure
from cynosure.text import Document
from cynosure.text.given import as_documents
from cynosure.training.begin import packed_anew, write_to_fit
from cynosure.training.data import Reading, shortened, write_data
from cynosure.training.division import Division
from cynosure.training.packing import Separators
from cynosure.training.whole import WholePacked
from tests.measure.test_chat import CHATML, say
from tests.tiny import byte_tokenizer, tiny_model
from tests.training.runs import SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

SYSTEM = {"role": "system", "content": "be brief"}


def chats(*messages: list[dict[str, Any]]) -> list[Document]:
    return list(as_documents([{"messages": each} for each in messages]))


def chat_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def written(folder: Path, documents: list[Document], how: Reading = Reading(), tokenizer: Any = None) -> Any:  # noqa: B008
    return write_data(folder / "data", Division(documents, 0.0), tokenizer or chat_tokenizer(), how)


@pytest.mark.parametrize("chat", ["assistant", "all"])
def test_what_is_said_and_the_end_of_each_turn_is_predicted(tmp_path: Path, chat: str) -> None:
    tokenizer, messages = chat_tokenizer(), say("what?", "this </s>", "and?", "that")
    texts = written(tmp_path, chats(messages), Reading(chat=chat)).tokenised()
    counted = [m["content"] for m in messages if chat == "all" or m["role"] == "assistant"]
    predicted = texts.ids[texts.predicted]
    end = tokenizer.eos_token_id
    expected = [
        [*tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, end] for text in counted
    ]
    assert predicted.tolist() == [id_ for part in expected for id_ in part]
    assert texts.chats.tolist() == texts.prompted.tolist() == [True]


def test_nothing_is_put_around_a_chat_nor_predicted_behind_it(tmp_path: Path) -> None:
    """Its template opens and ends it, also where one token would end a document and open the next."""
    tokenizer = chat_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    documents = [*chats(say("a", "b")), Document("plain", "xyz")]
    data = written(tmp_path, documents, tokenizer=tokenizer)
    texts = data.tokenised()
    assert Separators.of(tokenizer).shared
    own = tokenizer.apply_chat_template(documents[0].messages, tokenize=True)["input_ids"]
    assert texts.ids[: texts.edges[1]].tolist() == own
    rows = WholePacked(texts, 64, 0, "cut")
    targets = {tuple(row.targets[row.targets >= 0].tolist()) for row in (rows[i] for i in range(rows.n_rows))}
    end = tokenizer.eos_token_id
    xyz = tokenizer("xyz", add_special_tokens=False).input_ids
    b = tokenizer("b", add_special_tokens=False).input_ids
    assert {tuple(sorted(part)) for part in targets} == {tuple(sorted([*b, end, *xyz, end]))}


def test_a_long_chat_loses_its_first_exchanges_and_no_turn_is_cut(tmp_path: Path) -> None:
    long = [SYSTEM, *say(*(f"{word} {i}" for i in range(20) for word in ("asked", "told")))]
    data = written(tmp_path, chats(long, say("a", "b")), Reading(row_tokens=200))
    texts = data.tokenised()
    ids = texts.ids[: texts.edges[1]].tolist()
    assert len(ids) <= 200
    text = chat_tokenizer().decode(ids)
    assert text.startswith("<s>[system] be brief</s>[user] asked ")
    assert text.endswith("[assistant] told 19</s>")
    kept = text.count("asked")
    more = chat_tokenizer().apply_chat_template([SYSTEM, *long[1 + 2 * (19 - kept) :]], tokenize=True)["input_ids"]
    assert len(more) > 200  # one exchange more would not have fitted
    assert "1 chat longer than a row of 200 tokens: the first exchanges are left out" in " ".join(data.facts.notes)
    assert texts.predicted[: texts.edges[1]].sum() == sum(len(f"told {i}") + 1 for i in range(20 - kept, 20))


def test_a_long_chat_is_left_out_or_stops_where_that_is_asked_for(tmp_path: Path) -> None:
    long = say(*(f"{word} {i}" for i in range(20) for word in ("asked", "told")))
    division = Division(chats(say("a", "b"), long), 0.0)
    for overlong in ("drop", "error"):
        settings = cynosure.TrainSettings(init="x", row_tokens=64, overlong=overlong)
        data, row_tokens = write_to_fit(tmp_path / overlong, division, chat_tokenizer(), settings, [64], ())
        if overlong == "drop":
            assert packed_anew(data, division, settings, row_tokens).packing.dropped == 1
        else:
            with pytest.raises(ValueError, match=r"texts\[1\]: it has .* tokens, more than a row of 64"):
                packed_anew(data, division, settings, row_tokens)


def test_chats_are_made_to_fit_the_row_that_is_chosen(tmp_path: Path) -> None:
    """Of many that fit the shorter row, and one that fits none."""
    long = say(*(f"{word} {i}" for i in range(20) for word in ("asked", "told")))
    division = Division(chats(*(say("a" * i, "b") for i in range(200)), long), 0.0)
    settings = cynosure.TrainSettings(init="x")
    data, row_tokens = write_to_fit(tmp_path / "data", division, chat_tokenizer(), settings, [256, 300], ())
    assert row_tokens == 256
    lengths = np.diff(data.tokenised().edges)
    assert 200 < lengths[-1] <= 256
    assert packed_anew(data, division, settings, row_tokens).packing.cut_prompts == 0


def test_a_chat_in_which_nothing_counts_is_left_out_and_counted(tmp_path: Path) -> None:
    data = written(tmp_path, chats(say("only asked"), say("a", "b")))
    assert data.facts.train_documents == 1
    assert "1 chat without a turn to predict: left out" in data.facts.notes


def test_a_chat_is_held_out_and_shortened_by_whole_exchanges(tmp_path: Path) -> None:
    long = say(*(f"{word} {i}" for i in range(20) for word in ("asked", "told")))
    division = Division(chats(long), 0.25)
    (begun,), (end,) = list(division.train()), list(division.valid())
    assert begun.messages is not None
    assert end.messages is not None
    assert begun.messages + end.messages == long
    assert len(end.messages) == 10
    (short,) = shortened(chats(long), 100)
    assert short.messages == long[: len(short.messages or [])]
    assert 100 <= len(short.text) < 130
    data = write_data(tmp_path / "data", division, chat_tokenizer(), Reading())
    assert data.valid() == [end]
    assert list(Division(chats(say("a", "b")), 0.25).valid()) == []


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_model(max_position_embeddings=128).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


ROWS = [{"messages": [SYSTEM, *say(f"what is {i}", f"it is {i}", "sure?", "yes")]} for i in range(40)]


def test_a_run_on_chats(chat_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"preset": None, "vocab_size": None, "init": str(chat_folder), "row_tokens": 128,
                           "batch_tokens": 256, "tokens": 256 * 6, "validate_every": 512, "learning_rate": 1e-2,
                           "spike": 100.0}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = cynosure.train(ROWS, tmp_path / "run", cynosure.TrainSettings(**settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert trained.scores is not None
    assert trained.scores.to_json()["chats"] == trained.scores.documents == 4
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"].endswith("[assistant] ")
    loaded = cynosure.load(str(trained.model_folder))
    assert loaded.tokenizer.chat_template == CHATML


def test_the_first_loss_is_that_of_transformers_on_the_same_labels(chat_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"preset": None, "vocab_size": None, "init": str(chat_folder), "row_tokens": 128,
                           "batch_tokens": 128 * 40, "tokens": 128 * 40, "hold_out": 0.0}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cynosure.train(ROWS, tmp_path / "run", cynosure.TrainSettings(**settings))
    loss = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_folder), chat_tokenizer()
    nats: list[float] = []
    for row in ROWS:
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]
        labels = np.full(len(ids), -100)
        for i in (2, 4):
            opened = tokenizer.apply_chat_template(row["messages"][:i], tokenize=True, add_generation_prompt=True)
            closed = tokenizer.apply_chat_template(row["messages"][: i + 1], tokenize=True)
            span = slice(len(opened["input_ids"]), len(closed["input_ids"]))
            labels[span] = ids[span]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        nats += cross_entropy(logits, torch.from_numpy(labels[1:]), reduction="none")[labels[1:] >= 0].tolist()
    assert loss == pytest.approx(np.mean(nats), rel=1e-5)


def test_a_new_vocabulary_has_no_template(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts\[0\] is a chat, and a new vocabulary has no chat template"):
        cynosure.train(ROWS, tmp_path / "run", cynosure.TrainSettings(preset="tiny", hold_out=0.0, tokens=1000))
