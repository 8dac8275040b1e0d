"""The divergence of two models in one pass, against full logits in float64; and `cynosure compare` itself."""

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from cynosure.cli import app, compare_report
from cynosure.measure import compare, diverge, score
from cynosure.measure.comparison import diverge as module
from cynosure.measure.comparison.diverge import divergences, divergences_of_logits
from cynosure.measure.statistics.bootstrap import choose, interval
from cynosure.models import Head, LanguageModel, split
from cynosure.text import Document
from cynosure.text.windows import led_windows
from tests.loss.probes import Allocations
from tests.tiny import byte_tokenizer, tiny, tiny_model, word_tokenizer

TEXTS = ["the cat sat on the mat. " * 12, "a", "", "naïve café 猫 🐈‍⬛\n" * 4, "the end"]
DOCUMENTS = [Document(f"doc{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    return tiny(seed=0), tiny(seed=1)


def full_logits(seed: int, window: int, stride: int) -> list[tuple[int, int, int, torch.Tensor]]:
    """(document, token in it, id, logits in float64) of every token, from the model itself."""
    model, found = tiny_model(seed=seed).double(), []
    for number, text in enumerate(TEXTS):
        x = [0, *byte_tokenizer()(text, add_special_tokens=False).input_ids]
        for w in led_windows(len(x), window, stride):
            with torch.no_grad():
                logits = model(torch.tensor([x[w.see_start : w.see_stop]])).logits[0, -w.n_scored :]
            found += [(number, w.score_start + i - 1, x[w.score_start + i], z) for i, z in enumerate(logits)]
    return found


@pytest.mark.parametrize("batch_tokens", [16, 100, 10_000])
def test_the_divergence_is_that_of_full_logits(pair: Any, batch_tokens: int) -> None:
    found = diverge(*pair, DOCUMENTS, window=16, stride=8, batch_tokens=batch_tokens).divergence
    a, b = (full_logits(seed, 16, 8) for seed in (0, 1))
    log_a, log_b = (torch.stack([z for *_, z in side]).log_softmax(-1) for side in (a, b))
    kl = (log_a.exp() * (log_a - log_b)).sum(-1).numpy()
    assert found is not None
    assert found.tokens == len(kl)
    assert found.mean.value == pytest.approx(kl.mean(), rel=1e-5)
    assert found.median == pytest.approx(np.median(kl), rel=1e-5)
    assert found.p99 == pytest.approx(np.sort(kl)[math.ceil(0.99 * len(kl)) - 1], rel=1e-5)
    assert found.max == pytest.approx(kl.max(), rel=1e-5)
    base: dict[tuple[int, int], list[float]] = {}
    for (document, place, *_), x in zip(a, kl, strict=True):
        base.setdefault((document, place // 16), []).append(x)
    sums = np.array([[sum(part), len(part)] for _, part in sorted(base.items())])
    of = np.array([document for document, _ in sorted(base)])
    method, clusters = choose(np.stack([sums[of == i].sum(0) for i in np.unique(of)]), sums, of)
    expected = interval(*clusters.T)
    assert found.mean == pytest.approx(expected[:3], rel=1e-4)
    assert found.method == method


def test_agreement_and_flips_are_those_of_full_logits(pair: Any) -> None:
    a, b = (full_logits(seed, 16, 8) for seed in (0, 1))
    likeliest = [np.array([int(z.argmax()) for *_, z in side]) for side in (a, b)]
    target = np.array([token for _, _, token, _ in a])
    right = [x == target for x in likeliest]
    found = diverge(*pair, DOCUMENTS, window=16, stride=8)
    assert found.agreement == pytest.approx(
        (
            (likeliest[0] == likeliest[1]).mean(),
            (right[0] != right[1]).mean(),
            (right[0] & ~right[1]).mean(),
            (~right[0] & right[1]).mean(),
        )
    )
    assert found.agreement is not None
    assert found.agreement.flip_rate > 0


def test_one_pass_says_what_two_runs_say(pair: Any) -> None:
    one = diverge(*pair, DOCUMENTS, window=16, stride=8).to_json()
    two = compare(*(score(model, DOCUMENTS, window=16, stride=8) for model in pair)).to_json()
    assert one.pop("divergence")["tokens"] == one["tokens_a"]
    assert two.pop("divergence") is None
    assert one == two


def test_folders_of_runs_say_what_runs_in_memory_say(pair: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"window": 16, "batch_tokens": 16}
    memory = compare(*(score(model, DOCUMENTS, **options) for model in pair)).to_json()
    for model, name in zip(pair, "ab", strict=True):
        score(model, DOCUMENTS, out=tmp_path / name, **options)
    assert len(list((tmp_path / "a").glob("tokens-*.parquet"))) > 1
    assert compare(str(tmp_path / "a"), tmp_path / "b").to_json() == memory


def test_a_model_does_not_diverge_from_itself() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(seed=3)
        model.model.to(dtype)
        found = diverge(model, model, DOCUMENTS, window=16).divergence
        assert found is not None
        assert (found.mean, found.median, found.max) == ((0, 0, 0), 0, 0)


def test_the_divergence_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 300, generator=generator) * 8
    near = z + 1e-6 * torch.randn(z.shape, generator=generator)
    found = divergences_of_logits(z, near)
    assert (found >= 0).all()
    assert found.max() < 1e-9
    assert (divergences_of_logits(z, z.roll(1, 0)) > 0).all()


def test_the_divergence_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(1)
    z_a, z_b = (torch.randn(50, 300, generator=generator).double() * 5 for _ in range(2))
    theirs = kl_div(z_b.log_softmax(-1), z_a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergences_of_logits(z_a, z_b), theirs, rtol=1e-12, atol=0)


def test_the_head_is_the_models_whole_head() -> None:
    """Scale, softcap and bias, of either side's own width."""
    generator = torch.Generator().manual_seed(2)
    (x, w, bias), (y, u, _) = (
        (torch.randn(9, d, generator=generator), torch.randn(40, d, generator=generator), torch.randn(40))
        for d in (4, 7)
    )
    a, b = Head(w, bias, 0.5, 3.0), Head(u, None, 1.0, None)
    z_a, z_b = 3 * torch.tanh(0.5 * (x @ w.T + bias).double() / 3), (y @ u.T).double()
    expected = (z_a.softmax(-1) * (z_a.log_softmax(-1) - z_b.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(divergences(x, a, y, b), expected, rtol=1e-5, atol=1e-6)


def test_what_is_impossible_to_both_counts_nothing_and_to_b_alone_everything() -> None:
    never = -math.inf
    z = torch.tensor([[1.0, 2.0, never], [1.0, 2.0, 3.0], [1.0, 2.0, never]])
    other = torch.tensor([[1.0, 2.0, never], [1.0, 2.0, never], [1.0, 2.0, 3.0]])
    found = divergences_of_logits(z, other).tolist()
    log_other = math.log(sum(map(math.exp, (1, 2, 3)))) - math.log(math.exp(1) + math.exp(2))
    assert found == [0, math.inf, pytest.approx(log_other)]


def test_an_infinite_divergence_is_no_number_in_json() -> None:
    a, b = tiny(seed=0), tiny(seed=0)
    (one, two) = (split(model) for model in (a, b))
    bias = torch.zeros(300)
    bias[250] = -math.inf  # a token that does not come
    two = module.replace(two, head=two.head._replace(bias=bias))
    values = diverge(one, two, DOCUMENTS, window=16).to_json()
    assert values["divergence"]["mean"] == {"value": None, "low": None, "high": None}
    assert values["divergence"]["max"] is None
    json.dumps(values, allow_nan=False)


def test_logits_are_made_of_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS", 6000)  # 3 tokens
    monkeypatch.setattr(module, "BLOCK", 4000)
    hidden, weight = torch.randn(200, 8), torch.randn(2000, 8)
    head = Head(weight, None, 1.0, None)
    with Allocations(hidden, weight) as made:
        found = divergences(hidden, head, hidden.roll(1, 0), head)
    assert made.largest <= 6000
    assert len(found) == 200


def test_an_untouched_limit_is_64_megabytes() -> None:
    assert module.LOGITS * 4 == 64 * 2**20


def test_models_of_other_tokens_are_refused(pair: Any) -> None:
    larger = LanguageModel(tiny_model(vocab_size=301), byte_tokenizer(), "larger")
    with pytest.raises(ValueError, match="the vocabularies of A and B have 300 and 301 tokens: score each with `out`"):
        diverge(pair[0], larger, DOCUMENTS)
    with pytest.raises(ValueError, match=r"token 0 is '<s>' to A and '\[UNK\]' to B: score each with `out`"):
        diverge(pair[0], tiny(word_tokenizer(lowercase=False)), DOCUMENTS)
    unmerged = byte_tokenizer()
    unmerged.backend_tokenizer.model = type(unmerged.backend_tokenizer.model)(
        vocab=unmerged.backend_tokenizer.get_vocab(), merges=[]
    )
    with pytest.raises(ValueError, match="A and B make different tokens of doc0: score each with `out`"):
        diverge(pair[0], tiny(unmerged), DOCUMENTS)
    with pytest.raises(ValueError, match="window 65 is more than the 64 positions of tiny"):
        diverge(*pair, DOCUMENTS, window=65)
    with pytest.raises(ValueError, match="nothing in common"):
        diverge(*pair, [""])


def test_a_window_left_out_is_the_smaller_of_two() -> None:
    found = diverge(tiny(), tiny(max_position_embeddings=32), DOCUMENTS)
    assert (found.a.window, found.b.window, found.a.stride) == (32, 32, 16)


def test_progress_counts_each_token_once(pair: Any) -> None:
    steps: list[Any] = []
    found = diverge(*pair, DOCUMENTS, window=16, batch_tokens=16, progress=steps.append)
    assert sum(step.tokens for step in steps) == found.tokens_a
    assert sum(step.n_bytes for step in steps) == pytest.approx(found.n_bytes)


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cynosure compare ARGUMENTS...` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cynosure", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Done(stop.value.code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two models, `a` and `b`, and their text."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("".join(TEXTS) * 4, encoding="utf-8")
    for seed, name in enumerate("ab"):
        score(tiny(seed=seed), [folder / "text.txt"], window=16, out=folder / name)
    score(tiny(), ["another text"], out=folder / "other")
    return folder


def test_compare_prints_tables(run: Any, runs: Path) -> None:
    done = run(runs / "a", runs / "b")
    assert done.status == 0
    for words in (
        *("A  tiny", "B  tiny", "bits per byte", "token perplexity", "top-1 agreement", "letters"),
        *("worst for B", "best for B", "sliding windows of 16 tokens, stride 8; float32; 1 document"),
    ):
        assert words in done.out
    assert "unknown" not in done.out
    assert all(len(line) <= 100 for line in done.out.splitlines())
    assert all(line.startswith("cynosure: note: ") for line in done.err.splitlines())
    assert run(runs / "a", runs / "b", "--quiet").err == ""


def test_compare_as_json_is_the_library_and_its_gates(run: Any, runs: Path) -> None:
    done = run(runs / "a", runs / "b", "--format", "json", "--fail-if", "bits_per_byte > 1000%")
    values = json.loads(done.out)
    assert [(gate["gate"], gate["status"]) for gate in values.pop("gates")] == [("bits_per_byte > 1000%", "passed")]
    assert values == compare(runs / "a", runs / "b").to_json()


def test_a_gate_that_fails_is_status_1_and_in_both_files(run: Any, runs: Path, tmp_path: Path) -> None:
    change = compare(runs / "a", runs / "b").changes["nats_per_token"].difference
    assert change.low is not None
    assert change.high is not None
    fails, reaches = f"nats_per_token > {change.low - 0.01}", f"nats_per_token < {change.high + 0.01}"
    passes = f"nats_per_token > {change.high + 0.01}"
    files = ["--markdown", tmp_path / "c.md", "--junit", tmp_path / "c.xml"]
    failed = run(runs / "a", runs / "b", "--fail-if", passes, "--fail-if", fails, *files)
    assert failed.status == 1
    assert f"FAILED: fail if {fails}" in failed.out
    assert f"PASSED: fail if {passes}" in failed.out
    cases = list(ElementTree.parse(tmp_path / "c.xml").getroot().iter("testcase"))
    assert [(case.get("name"), case.find("failure") is not None) for case in cases] == [(passes, False), (fails, True)]
    assert "1 of 2 gates failed" in (tmp_path / "c.md").read_text(encoding="utf-8")
    assert run(runs / "a", runs / "b", "--fail-if", passes).status == 0
    assert run(runs / "a", runs / "b", "--fail-if", reaches).status == 1
    assert {path.name for path in tmp_path.iterdir()} == {"c.md", "c.xml"}


def test_a_gate_fails_though_nobody_reads_to_the_end(run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `| head -1`, where the pipe breaks before everything is printed."""

    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(compare_report, "show", broken)
    monkeypatch.setattr(app, "drop_output", lambda: None)
    assert run(runs / "a", runs / "b", "--fail-if", "bits_per_byte < 1000%").status == 1
    assert run(runs / "a", runs / "b", "--fail-if", "bits_per_byte > 1000%").status == 0


def test_prompts_and_completions_are_compared(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "the cat sat", "completion": " on the mat"}\n' * 3)
    done = run(tiny_folder, tiny_folder, pairs, "--format", "json")
    assert json.loads(done.out)["bytes"] == 3 * len(" on the mat")


def test_two_models_are_compared_in_one_pass(run: Any, runs: Path, tiny_folder: Path) -> None:
    done = run(tiny_folder, tiny_folder, runs / "text.txt", "--window", 16, "--format", "json")
    values = json.loads(done.out)
    assert done.status == 0
    assert values["divergence"]["mean"]["value"] == 0
    assert values["agreement"]["top1_agreement"] == 1
    assert values["bytes"] == (runs / "text.txt").stat().st_size
    assert values["a"]["window"] == 16
    assert "KL divergence" in run(tiny_folder, tiny_folder, runs / "text.txt", "--limit", 1, "--quiet").out


def test_compare_errors_are_one_line_and_status_2(run: Any, runs: Path, tiny_folder: Path) -> None:
    a, b = runs / "a", runs / "b"
    cases: list[tuple[list[object], str]] = [
        ([a, runs / "nowhere"], "nowhere has no manifest.json"),
        ([a, runs / "other"], "document 1 is not the same text in both"),
        ([a, b, "--fail-if", "bits > 1"], "'bits > 1' is not a gate: a gate is METRIC > NUMBER"),
        ([a, b, "--junit", "x.xml"], "--junit has no gates to write: add --fail-if"),
        ([a, b, "--markdown", runs / "nowhere" / "x.md"], "--markdown: no such folder"),
        ([a, b, "--window", 8], "--window needs TEXT: without it, A and B are runs"),
        ([a, b, "--batch-tokens", 8], "--batch-tokens needs TEXT"),
        ([a], "Missing argument 'B'"),
        ([tiny_folder, tiny_folder, "no-such.txt"], "no such text: 'no-such.txt'"),
        ([tiny_folder, tiny_folder, runs / "text.txt", "--window", 65], "window 65 is more than the 64 positions"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert done.status == 2, (arguments, done)
        assert done.out == ""
        assert len(done.err.splitlines()) == 1, done.err
        assert done.err.startswith("cynosure: ")
        assert message in done.err, done.err
