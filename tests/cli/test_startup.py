"""What can be said without a model is said without the seconds that importing torch takes."""

import subprocess
import sys
from pathlib import Path

import pytest

import cynosure
from tests.tiny import tiny

VERBS = ("predict", "score", "summary", "compare", "report", "train", "check", "info")
ONE_BY_ONE = """
import sys
from cynosure.cli.entry import main
for arguments in {commands}:
    sys.argv = ["cynosure", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert (stop.code or 0) == {status}, f"{{arguments}} ends with status {{stop.code}}"
    heavy = {{"torch", "transformers", "datasets", *{more}}} & set(sys.modules)
    assert not heavy, f"{{arguments}} imports {{heavy}}"
"""


def light(commands: list[tuple[str, ...]], status: int = 0, more: tuple[str, ...] = ()) -> tuple[str, str]:
    """What commands say on stdout and stderr, run one after another in an interpreter that may not import torch."""
    code = ONE_BY_ONE.format(commands=commands, status=status, more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_help_and_version() -> None:
    shown, _ = light([("--help",), ("--version",), *((verb, "--help") for verb in VERBS)], more=("numpy",))
    index = shown.partition("Usage: cynosure predict")[0]
    assert "cynosure 0." in index
    for verb in VERBS:
        assert f"\n  {verb} " in index
        assert f"Usage: cynosure {verb} " in shown
    assert "..." not in index.partition("Commands:")[2]


def test_stored_runs(tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in "ab"]
    for seed, folder in enumerate(runs):
        cynosure.score(tiny(seed=seed), ["the cat sat on the mat. " * 40], out=folder)
    gates = ("--fail-if", "bits_per_byte > +900%", "--junit", str(tmp_path / "gates.xml"))
    shown, _ = light([
        ("summary", runs[0]),
        ("summary", runs[0], "--format", "json"),
        ("compare", *runs),
        ("report", *runs),
        ("report", runs[0]),
        ("compare", *runs, "--format", "json", "--markdown", str(tmp_path / "summary.md"), *gates),
    ])  # fmt: skip
    assert shown.count("nats per token") == 2
    assert (tmp_path / "gates.xml").is_file()


@pytest.mark.parametrize("missing", ["no-such-folder/", "./no-such.gguf"])
def test_a_model_that_is_not_there(missing: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.")
    verbs = (("predict", missing, "text"), ("score", missing, str(text)), ("check", missing))
    _, told = light([*verbs, ("compare", missing, missing, str(text))], status=2)
    assert told.count("no such model") == 4


def test_texts_runs_and_options_that_are_wrong(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", str(tmp_path / "out")
    text.write_text("the cat sat on the mat.")
    commands = {
        ("summary", "no-such-run"): "not a run: no-such-run",
        ("compare", "no-such-run", "another"): "not a run: no-such-run",
        ("compare", "a", "b", "no-such.txt"): "no such text: 'no-such.txt'",
        ("compare", "a", "b", "--fail-if", "odd > 1"): "odd",
        ("score", "smollm2", "no-such.txt"): "no such text: 'no-such.txt'",
        ("score", "smollm2", str(text), "--out", str(tmp_path)): "is not a run: it holds text.txt",
        ("score", "smollm2", str(text), "--protocol", "odd"): "odd",
        ("predict", "smollm2", "no-such.txt"): "there is no file 'no-such.txt'",
        ("predict", "smollm2", "text", "--dtype", "odd"): "unknown dtype 'odd'",
        ("check", "smollm2", "no-such.txt"): "there is no file 'no-such.txt'",
        ("train", "no-such.txt", "--out", out): "no such text: 'no-such.txt'",
        ("train", str(text), "--out", out, "--lr", "-1"): "learning_rate must be positive",
    }
    _, told = light([*commands], status=2)
    for line, message in zip(told.splitlines(), commands.values(), strict=True):
        assert message in line


NO_MORE = """
import sys, torch, cynosure.cli.screen
from cynosure.cli.entry import main
from transformers import AutoModelForCausalLM, AutoTokenizer

def run(status, *arguments):
    sys.argv = ["cynosure", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert (stop.code or 0) == status
    return {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names

folder = sys.argv[1]
for kind in (AutoModelForCausalLM, AutoTokenizer):
    kind.from_pretrained(folder)
before = run(2, "predict", "./no-such-model", "the cat")  # the command line's own packages
new = run(0, "predict", folder, "the cat") - before
assert not new, new
"""


@pytest.mark.exhaustive
def test_predict_imports_no_more_than_loading_its_model_does(tiny_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_MORE, tiny_folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
