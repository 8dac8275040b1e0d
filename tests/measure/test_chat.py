"""Chats: which tokens of a template's writing are whose, against transformers, and what is scored of them."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import Metaspace
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from cynosure.cli.app import app
from cynosure.measure import compare, score
from cynosure.models import LanguageModel
from cynosure.text import COUNTED, find_sources, read_documents
from cynosure.text.chat import OTHER_TURN, TEMPLATE, Turns, turns
from tests.tiny import byte_tokenizer, piece_tokenizer, tiny, word_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Of families that write turns in ways of their own. Theirs that say which tokens the assistant generates end so.
FAMILIES = ("qwen3", "qwen2_5", "llama3", "gemma", "phi3", "cohere", "lfm2", "gptoss", "glm4moe")
CHATML = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def say(*texts: str) -> list[dict[str, Any]]:
    """A chat in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHAT = say("What is the capital of France?", "The capital of France is Paris.", "And of Spain?", "Madrid, 2 + 2 = 4.\n")


def of(found: Turns, kind: int) -> str:
    """The bytes of the tokens of one kind, end to end."""
    return b"".join(p for p, k in zip(found.tokens.pieces, found.kinds, strict=True) if k == kind).decode()


@pytest.fixture(scope="module")
def reader(smollm2: LanguageModel) -> Any:
    """A tokenizer that has the special tokens of all families."""
    tokenizer = deepcopy(smollm2.tokenizer)
    texts = "".join(path.read_text() for path in TEMPLATES.glob("*.jinja"))
    found = re.findall(r"<[|\uff5c][^|\uff5c<>{}]+[|\uff5c]>|<(?:start|end)_of_turn>", texts)
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(set(found))})
    return tokenizer


def family(reader: Any, name: str) -> Any:
    """The same with a family's template."""
    reader.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return reader


@pytest.mark.parametrize("chat", ["assistant", "all"])
def test_the_tokens_of_a_chat_are_those_of_transformers_and_its_bytes_what_is_said(
    smollm2: LanguageModel, chat: str
) -> None:
    found = turns(smollm2.tokenizer, CHAT, chat=chat)
    own = smollm2.tokenizer.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    assert found.tokens.ids.tolist() == own
    assert b"".join(found.tokens.pieces).decode() == found.text == "".join(message["content"] for message in CHAT)
    counted = [message["content"] for message in CHAT if chat == "all" or message["role"] == "assistant"]
    assert of(found, COUNTED) == "".join(counted)
    assert of(found, TEMPLATE) == ""
    ends = found.tokens.ids[found.ends].tolist()
    assert ends == [smollm2.tokenizer.eos_token_id] * len(counted)


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_are_those_that_a_template_itself_marks(reader: Any, name: str) -> None:
    """Templates made for training mark what the assistant generates, which transformers turns into a mask."""
    tokenizer = family(reader, f"{name}_training")
    own = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    found = turns(tokenizer, CHAT)
    if name == "gptoss":  # writes the day, which is held still here
        assert "2024-07-26" in tokenizer.decode(found.tokens.ids)
        return
    assert found.tokens.ids.tolist() == own["input_ids"]
    generated = np.array(own["assistant_masks"], bool)
    ours = (found.kinds == COUNTED) | found.ends
    said = tokenizer.decode(found.tokens.ids[ours])
    theirs = tokenizer.decode(found.tokens.ids[generated])
    # What they mark besides is white space or empty reasoning around the turn; of what is said they miss nothing.
    assert "".join(said.split()) in "".join(theirs.replace("<think>", "").replace("</think>", "").split())
    assert (generated[found.kinds == COUNTED]).all()
    assert not generated[found.kinds == OTHER_TURN].any()


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_every_family_s_turns_are_told_apart(reader: Any, name: str) -> None:
    tokenizer = family(reader, name)
    if name.startswith(("idefics3", "smolvlm", "llava_next")):  # for messages whose content is a list of parts
        with pytest.raises(ValueError, match=r"shows none of what these messages say|refuses these messages"):
            turns(tokenizer, CHAT)
        return
    found = turns(tokenizer, CHAT)
    assert of(found, COUNTED).strip() == "The capital of France is Paris.Madrid, 2 + 2 = 4."
    assert of(found, OTHER_TURN) == "What is the capital of France?And of Spain?"


def test_reasoning_and_calls_of_tools_are_said_by_the_assistant(reader: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "2"},
        {"role": "assistant", "reasoning_content": "So it is.", "content": "Two."},
    ]
    found = turns(family(reader, "qwen3"), chat, [{"type": "function", "function": {"name": "add", "parameters": {}}}])
    assert of(found, COUNTED) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><think>\nSo it is.\n</think>\n\nTwo.'
    )
    assert of(found, OTHER_TURN) == "Add.2"
    assert found.ends.sum() == 2


def test_reasoning_that_a_template_drops_is_not_said(reader: Any) -> None:
    chat = say("Hi", "<think>\nhm\n</think>\n\nHello", "And?", "<think>\nwell\n</think>\n\nBye")
    found = turns(family(reader, "qwen3"), chat)
    assert of(found, COUNTED) == "Hello<think>\nwell\n</think>\n\nBye"


def test_a_message_of_weight_zero_does_not_count(smollm2: LanguageModel) -> None:
    chat = say("Hi", "Hello", "And?", "Bye")
    chat[1]["weight"] = 0
    found = turns(smollm2.tokenizer, chat)
    assert (of(found, COUNTED), of(found, OTHER_TURN)) == ("Bye", "HiHelloAnd?")


def test_a_template_that_writes_the_day_is_given_the_same_one_always(reader: Any) -> None:
    tokenizer = family(reader, "llama3_2")
    assert "strftime_now(" in tokenizer.chat_template
    assert "26 Jul 2024" in tokenizer.decode(turns(tokenizer, CHAT).tokens.ids)


def test_a_template_that_rewrites_what_is_said_is_refused(reader: Any) -> None:
    tokenizer = family(reader, "qwen3")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match=r"rewrites message 0 \('Hi'\)"):
        turns(tokenizer, say("Hi", "Hello"))


WORDS = ["Hello", " ", "\n", "<|im_end|>", "naïve 猫", "</s>", "user", "assistant\n", "a", "[", "<|"]
SAID = st.lists(st.sampled_from(WORDS)).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(SAID, min_size=2, max_size=5), st.booleans(), st.data())
def test_whatever_is_said_its_bytes_and_turns_are_found(
    smollm2: LanguageModel, reader: Any, texts: list[str], parse: bool, data: st.DataObject
) -> None:
    """Words of the template, special tokens, white space and bytes split by tokens, under six tokenizers."""
    own = {"bytes": byte_tokenizer(), "pieces": piece_tokenizer(dummy_prefix=False)}
    own["pieces behind a space"] = piece_tokenizer(dummy_prefix=True)
    for tokenizer in own.values():
        tokenizer.chat_template = CHATML
    name = data.draw(st.sampled_from(["smollm2", "llama3", "gemma", *own]))
    tokenizer = own[name] if name in own else smollm2.tokenizer if name == "smollm2" else family(reader, name)
    chat = say(*texts)
    found = turns(tokenizer, chat, parse_special=parse)
    if found.tokens.drift is None:
        assert b"".join(found.tokens.pieces).decode() == found.text
        assert "".join(found.text.split()) == "".join("".join(texts).split())
        counted = "".join("".join(texts[1::2]).split())
        assert "".join(of(found, COUNTED).split()) == counted
    if parse:
        assert found.tokens.ids.tolist() == tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]


def test_a_special_token_in_a_message_that_cannot_be_read_as_text_is_said() -> None:
    """Where a space stands before a text but not behind a special token, what is between these cannot be read alone."""
    tokenizer = piece_tokenizer(dummy_prefix=True)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    tokenizer.chat_template = CHATML
    assert turns(tokenizer, say("Hi", "Hello")).text == "HiHello"
    with pytest.raises(ValueError, match=r"in a chat this tokenizer cannot read it as text: `special='parse'`"):
        turns(tokenizer, say("Hi", "Hello </s> you"))
    assert turns(tokenizer, say("Hi", "Hello </s> you"), parse_special=True).text == "HiHello </s> you"


def plain_loop(smollm2: LanguageModel, ids: list[int], counted: list[int], window: int, stride: int) -> float:
    """The nats of the counted tokens, from transformers' own logits, window by window."""
    total, done = 0.0, counted[0]
    while done < len(ids):
        stop = min(window + 1, len(ids)) if done == counted[0] and done <= window else min(done + stride, len(ids))
        start = max(0, stop - 1 - window)
        with torch.no_grad():
            logits = smollm2.model(torch.tensor([ids[start : stop - 1]])).logits[0].double()
        for place in (place for place in counted if done <= place < stop):
            total += float(cross_entropy(logits[place - 1 - start], torch.tensor(ids[place])))
        done = stop
    return total


@pytest.mark.parametrize("window", [1024, 24])
def test_a_chat_scores_as_a_plain_loop_over_transformers(smollm2: LanguageModel, window: int) -> None:
    tokenizer = smollm2.tokenizer
    scores = score(smollm2, [{"messages": CHAT}], window=window)
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    counted = []
    for i in (1, 3):  # each assistant's message: what comes between its prompt and the end of its turn
        start = len(tokenizer.apply_chat_template(CHAT[:i], tokenize=True, add_generation_prompt=True)["input_ids"])
        stop = len(tokenizer.apply_chat_template(CHAT[: i + 1], tokenize=True)["input_ids"]) - 2
        counted += range(start, stop)
    nats = plain_loop(smollm2, ids, counted, window, window // 2)
    assert scores.tokens == len(counted)
    assert scores.nats == pytest.approx(nats, rel=1e-5)
    assert scores.n_bytes == len("".join(message["content"] for message in CHAT[1::2]).encode())
    values = scores.to_json()
    template = len(ids) - len(counted) - values["excluded_tokens"]["other turn"]
    assert values["excluded_tokens"]["template"] == template
    assert (values["chat"], values["chats"]) == ("assistant", 1)
    table = scores.to_pandas()
    assert table.token_id.tolist() == ids
    assert np.flatnonzero(table.nll.notna()).tolist() == counted


def test_every_turn_counts_where_all_are_asked_for(chatty: LanguageModel) -> None:
    scores = score(chatty, [{"messages": CHAT}], chat="all")
    assert scores.n_bytes == len("".join(message["content"] for message in CHAT))
    assert list(scores.to_json()["excluded_tokens"]) == ["template"]
    with pytest.raises(ValueError, match="unknown chat 'user': expected one of assistant, all"):
        score(chatty, [{"messages": CHAT}], chat="user")


def test_a_chat_s_own_beginning_is_not_doubled() -> None:
    """Where the template writes BOS, as Gemma's, each further window begins with it too, and none with two."""
    tokenizer = byte_tokenizer(adds_bos=True)
    tokenizer.chat_template = CHATML
    model = tiny(tokenizer)
    scores = score(model, [{"messages": CHAT}], window=32)
    ids = scores.to_pandas().token_id.tolist()
    assert scores.setting.bos == "every"
    assert [place for place, id_ in enumerate(ids) if id_ == tokenizer.bos_token_id] == [0]
    table = scores.to_pandas()
    seen = [tokenizer.bos_token_id, *ids[1:]]
    place = int(np.flatnonzero(table.nll.notna())[-1])
    start = place - int(table.context[place])
    with torch.no_grad():
        logits = model.model(torch.tensor([[tokenizer.bos_token_id, *seen[start + 1 : place]]])).logits[0, -1]
    assert table.nll[place] == pytest.approx(float(cross_entropy(logits, torch.tensor(ids[place]))), rel=1e-4)


def test_two_models_of_other_templates_are_compared_on_what_is_said(chatty: LanguageModel) -> None:
    tokenizer = deepcopy(chatty.tokenizer)
    tokenizer.chat_template = CHATML.replace("[", "(")
    other = LanguageModel(chatty.model, tokenizer, "other")
    a, b = (score(model, [{"messages": CHAT[:2]}]) for model in (chatty, other))
    comparison = compare(a, b)
    assert comparison.n_bytes == len("The capital of France is Paris.")
    assert a.nats != b.nats


@pytest.fixture(scope="module")
def chatty() -> LanguageModel:
    """A tiny model whose tokenizer has a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return tiny(tokenizer)


@pytest.fixture(scope="module")
def chat_folder(chatty: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatty")
    chatty.model.save_pretrained(folder)
    chatty.tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chats_are_found_in_files_and_by_a_named_column(
    chatty: LanguageModel, chat_folder: Path, tmp_path: Path
) -> None:
    import pandas as pd

    expected = score(chatty, [{"messages": CHAT}]).nats
    lines = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT, "id": 3}])
    frame = pd.DataFrame({"messages": [CHAT], "source": ["x"]})
    frame.to_parquet(tmp_path / "a.parquet")
    read_back = pd.read_parquet(tmp_path / "a.parquet")
    for texts in ([lines], [tmp_path / "a.parquet"], frame, read_back):
        assert score(chatty, texts).nats == expected
    named = write_rows(tmp_path / "b.jsonl", [{"conversation": CHAT}])
    told = CliRunner().invoke(
        app, ["score", str(chat_folder), str(named), "--column", "conversation", "--format", "json"]
    )
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["nats"] == pytest.approx(expected)
    assert "1 document is a chat: the assistant's turns count" in told.stderr


def test_a_prompt_of_messages_does_not_count(chatty: LanguageModel) -> None:
    row = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    scores = score(chatty, [row])
    assert scores.n_bytes == len(CHAT[3]["content"])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": None}, "has null in its column 'messages': expected a list of messages"),
        ({"messages": []}, "has an empty list in its column 'messages'"),
        ({"messages": "Hi"}, "has str in its column 'messages'"),
        ({"messages": ["Hi"]}, "message 0 in its column 'messages', is str"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, "message 0 in its column 'messages', has no role but from"),
        ({"messages": [{"role": "user"}]}, "message 0 in its column 'messages', has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "has content that is"),
    ],
)
def test_a_malformed_chat_stops_with_its_place_or_is_left_out(
    tmp_path: Path, row: dict[str, Any], told: str, chatty: LanguageModel, chat_folder: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}, row])
    with pytest.raises(ValueError, match=re.escape(told)) as stopped:
        list(read_documents(find_sources([str(file)])))
    assert "a.jsonl:2" in str(stopped.value)
    skipped = CliRunner().invoke(app, ["score", str(chat_folder), str(file), "--bad-rows", "skip", "--format", "json"])
    assert skipped.exit_code == 0, skipped.stderr
    assert json.loads(skipped.stdout)["documents"] == 1
    assert "1 row is left out" in skipped.stderr


def test_what_cannot_be_done_with_a_chat_is_said() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"texts\[0\]: the tokenizer of .* has no chat template"):
        score(model, [{"messages": CHAT}])
    model.tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match=r"strided reads one running text, and texts\[0\] is a chat: use sliding"):
        score(model, [{"messages": CHAT}], protocol="strided")
    model.tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(ValueError, match=r"refuses these messages: Roles must alternate"):
        score(model, [{"messages": CHAT}])
    lossy = tiny(word_tokenizer(lowercase=True))
    lossy.tokenizer.chat_template = CHATML
    assert score(lossy, [{"messages": CHAT}]).figures["bits_per_byte"].value is None


def test_a_run_with_another_template_is_another_run(tmp_path: Path) -> None:
    model = tiny()
    model.tokenizer.chat_template = CHATML
    score(model, [{"messages": CHAT}], out=tmp_path / "run")
    assert score(model, [{"messages": CHAT}], out=tmp_path / "run").tokens
    model.tokenizer.chat_template = CHATML.replace("[", "(")
    with pytest.raises(ValueError, match="holds another run"):
        score(model, [{"messages": CHAT}], out=tmp_path / "run")
