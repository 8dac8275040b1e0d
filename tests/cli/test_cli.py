"""The command line as its user meets it: output, exit status, and errors of one line."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import cynosure
from cynosure.cli import app
from cynosure.measure import score
from cynosure.models import load
from cynosure.text import Document
from tests.measure.test_score import KEYS, MORE


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """`cynosure ARGUMENTS...` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cynosure", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Done(stop.value.code, output.out, output.err)

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on the mat.\nnaïve café 猫\n")
    return file


def test_predict_prints_the_distribution_and_reads_the_truth(run, tiny_folder: Path) -> None:
    done = run("predict", tiny_folder, "the", "--truth", "猫", "--top", 3)
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "tiny-llama"
    assert [line.split()[0] for line in lines[4:7]] == ["1", "2", "3"]
    assert all("%" in line for line in lines[4:7])
    assert "█" in lines[4]
    assert "entropy" in done.out
    assert r'"\xe7"' in done.out  # the first byte of 猫
    assert "all of it" in done.out
    assert "perplexity" in done.out


def test_predict_as_json(run, tiny_folder: Path) -> None:
    done = run("predict", tiny_folder, "the", "--truth", " the", "--top", 2, "--format", "json")
    values = json.loads(done.out)
    assert list(values) == ["model", "text", "entropy_nats", "top", "truth"]
    assert len(values["top"]) == 2
    assert [token["token"] for token in values["truth"]["tokens"]] == [" the"]
    assert json.loads(run("predict", tiny_folder, "the", "--format", "json").out)["truth"] is None


def test_predict_smollm2(run) -> None:
    done = run("predict", "smollm2", "The quick brown fox jumps over the", "--truth", " dog", "--dtype", "float32")
    assert done.out.startswith("SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)\n")
    assert '" lazy"' in done.out
    assert "Unsure" in done.out


def test_score_as_json_is_the_contract_and_nothing_else(run, tiny_folder: Path, text: Path) -> None:
    done = run("score", tiny_folder, text, "--format", "json", "--window", 16, "--stride", 4)
    values = json.loads(done.out)
    assert list(values) == [*KEYS, *MORE]
    library = score(load(str(tiny_folder)), [Document(str(text), text.read_text())], window=16, stride=4).to_json()
    differing = {"seconds", "tokens_per_second"}
    assert {k: v for k, v in values.items() if k not in differing} == {
        k: v for k, v in library.items() if k not in differing
    }


@pytest.mark.parametrize(("bins", "binning"), [(10, "width"), (15, "width"), (4, "mass")])
def test_bins_of_the_calibration_error(run, tiny_folder: Path, text: Path, bins: int, binning: str) -> None:
    """Against all tokens' confidences, as the model's own logits have them."""
    tokens = score(str(tiny_folder), [text], keep=True).to_pandas()
    order = np.argsort(tokens["confidence"].to_numpy(), kind="stable")
    confidence, right = tokens["confidence"].to_numpy()[order], tokens["rank"].to_numpy()[order] == 1
    place = confidence if binning == "width" else (np.arange(len(order)) + 0.5) / len(order)
    of_bin = np.minimum((place * bins).astype(int), bins - 1)
    gaps = [abs((confidence[of_bin == i] - right[of_bin == i]).sum()) for i in range(bins)]
    options = ("--bins", bins, "--binning", binning)
    found = json.loads(run("score", tiny_folder, text, *options, "--format", "json").out)["calibration"]
    assert (found["n_bins"], found["binning"]) == (bins, binning)
    assert found["ece"] == pytest.approx(sum(gaps) / len(order), abs=1e-3)
    assert f"({bins} bins of equal {binning})" in run("score", tiny_folder, text, *options).out


def test_score_as_a_table(run, tiny_folder: Path, text: Path) -> None:
    done = run("score", tiny_folder, text, "--protocol", "rolling", "--window", 16)
    assert done.status == 0
    assert "rolling windows of 16 tokens, stride 16, BOS in the first; float32 on cpu; 1 document" in done.out
    for name in ("nats per token", "token perplexity", "word perplexity", "bits per byte", "bits per character"):
        assert name in done.out
    assert "unknown" not in done.out


@pytest.mark.parametrize(
    ("encoding", "levels", "full", "line"),
    [pytest.param("utf-8", "▁▂▃▄▅▆▇█", "█", "│", marks=pytest.mark.exhaustive), ("ascii", "_.-=+*%#", "#", "|")],
)
def test_charts_of_a_score(
    run,
    tiny_folder: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    levels: str,
    full: str,
    line: str,
) -> None:
    """They fit 80 columns without colours, and need no more than ASCII where the output has no more."""
    text.write_text("the cat sat on the mat.\n" * 40 + "Zqx, vvw; 0987 kkjhq!\n" * 40)
    shown = io.BytesIO()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    done = run("score", tiny_folder, text, "--quiet")
    assert (done.status, done.err) == (0, "")
    lines = shown.getvalue().decode(encoding).splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    (along,) = (part.split("  ") for part in lines if part.startswith("loss along the text"))
    assert (len(along[1]), set(along[1]) <= set(levels)) == (30, True)
    assert {levels[0], levels[-1]} <= set(along[1])
    start = next(i for i, part in enumerate(lines) if part.startswith("confidence"))
    bars = lines[start + 1 : lines.index("", start)]
    assert bars
    for part in bars:
        assert part.endswith((line, full))
        assert f"% to {int(part.split('%')[0]) + 20}%" in part
    spans = lines[next(i for i, part in enumerate(lines) if part.endswith("costliest spans")) + 1 :]
    assert sum(part.split()[0].replace(".", "").isdigit() and "%" in part for part in spans) == 5


def test_a_short_text_has_no_sparkline(run, tiny_folder: Path, text: Path) -> None:
    text.write_text("the cat")
    assert "loss along the text" not in run("score", tiny_folder, text).out


def test_quiet_leaves_stderr_empty(run, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert "has no token to predict and is left out" in run("score", tiny_folder, text, empty).err
    assert run("score", tiny_folder, text, empty, "--quiet").err == ""


def test_progress_off_a_terminal_is_plain_lines(run, tiny_folder: Path, text: Path, monkeypatch) -> None:
    monkeypatch.setattr("cynosure.cli.progress.LINE_SECONDS", 0)
    done = run("score", tiny_folder, text, "--batch-tokens", 1, "--window", 16)
    lines = [line for line in done.err.splitlines() if not line.startswith("cynosure: note: ")]
    assert len(lines) > 1
    assert all(line.startswith("scored ") and "nats/token" in line for line in lines)
    assert "100%" in lines[-1]
    assert "\x1b" not in done.err


def test_limit_counts_documents(run, tiny_folder: Path, text: Path) -> None:
    assert json.loads(run("score", tiny_folder, text, text, "--limit", 1, "--format", "json").out)["documents"] == 1


def test_check_passes_and_fails(run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("check", tiny_folder)
    assert done.status == 0
    assert "300 x 16, no bias, scale 1, no softcap" in done.out
    assert "Passed" in done.out
    values = json.loads(run("check", tiny_folder, "Some text.", "--format", "json").out)
    assert values["passed"]
    assert len(values["checks"]) == 8
    own = cynosure.linear_cross_entropy
    monkeypatch.setattr("cynosure.auditing.checks.linear_cross_entropy", lambda *a, **o: own(*a, **o) * 1.001)
    broken = run("check", tiny_folder)
    assert broken.status == 1
    assert "DIFFERS" in broken.out
    assert "FAILED" in broken.out


def test_info(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path))
    monkeypatch.setenv("CYNOSURE_GEMM", "torch")  # no trial, of which the cache would keep the result
    (tmp_path / "x").write_bytes(b"1234")
    facts = json.loads(run("info", "--format", "json").out)
    assert facts["cache"] == {"folder": str(tmp_path), "bytes": 4}
    assert facts["backends"][-1]["name"] == "torch"
    assert {gemm["provider"] for gemm in facts["products"].values()} == {"torch"}
    assert set(facts["models"]) == {"smollm2", "gemma3-270m"}
    table = run("info").out
    assert "backend torch" in table
    assert "available: " in table


def test_errors_are_one_line_and_status_2(run, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"ab\xe9")
    empty = tmp_path / "empty.txt"
    empty.touch()
    cases: list[tuple[list[object], str]] = [
        (["score", tiny_folder, "no-such.txt"], "no such text: 'no-such.txt'"),
        (["score", tiny_folder, latin], "not UTF-8: byte 0xe9 at offset 2"),
        (["score", tiny_folder, empty], f"nothing to score: no token to predict in {empty}"),
        (["score", "./nowhere", text], "no such model folder"),
        (["score", tiny_folder, text, "--window", 65], "window 65 is more than the 64 positions of tiny-llama"),
        (["score", tiny_folder, text, "--window", 0], "window must be at least 1"),
        (["score", tiny_folder, text, "--window", 8, "--stride", 9], "stride must be from 1 to the window, 8"),
        (
            ["score", tiny_folder, text, "--protocol", "hf"],
            "unknown protocol 'hf': expected one of sliding, rolling, strided",
        ),
        (["score", tiny_folder, text, "--dtype", "int8"], "unknown dtype 'int8'"),
        (["score", tiny_folder, text, "--limit", 0], "limit must be at least 1"),
        (["score", tiny_folder, text, "--errors", "ignore"], "'ignore' is not one of 'strict', 'replace'"),
        (["score", tiny_folder], "Missing argument"),
        (["score", tiny_folder, text, "--wat"], "No such option: --wat"),
        (["scor", tiny_folder, text], "No such command 'scor'"),
        (["predict", tiny_folder, "a", "--truth", ""], "the truth '' has no tokens"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert done.status == 2, (arguments, done)
        assert done.out == ""
        assert len(done.err.splitlines()) == 1, done.err
        assert done.err.startswith("cynosure: ")
        assert message in done.err, done.err


def test_an_interrupted_run_says_where_it_goes_on(
    run, tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cynosure.measure.score", interrupted)
    done = run("score", tiny_folder, text, "--out", tmp_path / "run")
    assert done == (130, "", "cynosure: interrupted before anything was saved\n")

    def later(*_: object, **__: object) -> None:
        (tmp_path / "run" / "tokens-000000-0123456789abcdef.parquet").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("cynosure.measure.score", later)
    done = run("score", tiny_folder, text, "--out", tmp_path / "run")
    assert done == (130, "", f"cynosure: interrupted; the same command resumes from {tmp_path / 'run'}\n")
    monkeypatch.setattr("cynosure.measure.score", interrupted)
    assert run("score", tiny_folder, text) == (130, "", "cynosure: interrupted\n")


def test_what_is_temporary_goes_when_the_process_is_told_to_end(tmp_path: Path) -> None:
    code = (
        "import signal, sys, tempfile, time; from cynosure.cli import app, entry\n"
        "def run():\n"
        "    with tempfile.TemporaryDirectory(dir=sys.argv[1]):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "app.main = run; entry.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert not list(tmp_path.iterdir())


def test_without_arguments_comes_the_help(run) -> None:
    done = run()
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Usage: cynosure")
    assert "Commands:" in done.err


def test_debug_shows_where(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "cynosure", "score", str(tiny_folder), "no-such.txt", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "FileNotFoundError: no such text" in done.stderr


def test_a_stride_beyond_the_models_positions_names_them(run, tiny_folder: Path, text: Path) -> None:
    done = run("score", tiny_folder, text, "--stride", "2000")
    assert (done.status, done.out) == (2, "")
    assert "stride must be from 1 to the window, 64, got 2000" in done.err
    assert "stride must be from 1" in run("score", tiny_folder, text, "--stride", "0").err


def test_a_gate_that_fails_is_status_1(run, tiny_folder, tmp_path) -> None:
    (tmp_path / "text").write_text("the cat sat on the mat. " * 40)
    assert run("score", tiny_folder, tmp_path / "text", "--out", tmp_path / "run", "--window", 16).status == 0
    gates = {"bits_per_byte > -1": 1, "bits_per_byte > 1": 0}
    for gate, status in gates.items():
        assert run("compare", tmp_path / "run", tmp_path / "run", "--fail-if", gate).status == status


def test_predict_reads_special_tokens_as_it_is_told(run, tiny_folder) -> None:
    options = ("--format", "json", "--quiet")
    found = [
        json.loads(run("predict", tiny_folder, "the<s>cat", "--special", special, *options).out)["entropy_nats"]
        for special in ("text", "parse", "text")
    ]
    assert found[0] == found[2] != found[1]
