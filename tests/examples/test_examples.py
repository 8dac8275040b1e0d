"""Every example works when started as its docstring says."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
}


def commands() -> list[tuple[Path, list[str]]]:
    """Return (example, words of a command in its docstring) for all examples."""
    starts = []
    for example in sorted((ROOT / "examples").glob("*.py")):
        lines = (ast.get_docstring(ast.parse(example.read_text())) or "").splitlines()[1:]
        starts += [(example, line.split("#")[0].split()) for line in lines if line.strip().startswith(tuple(LAUNCH))]
    return starts


def test_every_example_says_how_to_start_it() -> None:
    examples = set((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 9
    assert {example for example, _ in commands()} == examples
    table = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"\[`(\w+\.py)`\]", table)) == {example.name for example in examples}


def check_distil(printed: str) -> None:
    """All students come nearer to the teacher, and those that learn from it nearer than the text alone brings them."""
    lines = re.findall(r"^(.+), step \d+: (\S+) nats per token forward, (\S+) reverse$", printed, re.MULTILINE)
    runs: dict[str, list[tuple[float, float]]] = {}
    for name, forward, reverse in lines:
        runs.setdefault(name, []).append((float(forward), float(reverse)))
    assert list(runs) == ["forward KL", "reverse KL", "forward KL, top 32", "cross-entropy"]
    first, last = ({name: run[i] for name, run in runs.items()} for i in (0, -1))
    assert len(set(first.values())) == 1  # the same student
    assert all(last[name][k] < first[name][k] - 0.5 for name in runs for k in (0, 1)), printed
    assert last["forward KL"][0] < last["forward KL, top 32"][0] < last["cross-entropy"][0] - 0.5, printed
    assert min(runs, key=lambda name: runs[name][1][1]) == "reverse KL", printed
    assert all(last[name][1] < last["cross-entropy"][1] - 0.3 for name in runs if name != "cross-entropy"), printed


def check_dpo(printed: str) -> None:
    """The loss starts at ln 2 and falls on pairs not seen before; margin and accuracy rise."""
    steps = re.findall(r"^step \d+: (\S+), margin (\S+), accuracy (\S+)$", printed, re.MULTILINE)
    losses, margins, accuracies = zip(*((float(value) for value in step) for step in steps), strict=True)
    assert (losses[0], margins[0]) == (0.6931, 0.0)
    assert losses[-1] < 0.55, printed
    assert margins[-1] > 0.3, printed
    assert accuracies[-1] > 0.8, printed


def check_grpo(printed: str) -> None:
    """The reward starts at chance and rises, and with it the share of answers that are right as a whole."""
    steps = re.findall(r"^step \d+: (\S+) mean reward, (\d+)% of the answers sorted$", printed, re.MULTILINE)
    rewards, answers = zip(*((float(reward), int(share)) for reward, share in steps), strict=True)
    assert rewards[0] < 0.15, printed
    assert rewards[len(rewards) // 2] > 0.4, printed
    assert rewards[-1] > 0.6, printed
    assert answers[0] < 5, printed
    assert answers[-1] > 8, printed


def check_chart(printed: str, folder: Path) -> None:
    """The chart is an SVG with a line for each curve, in a temporary folder."""
    [name] = re.findall(r"^chart: (.+)$", printed, re.MULTILINE)
    assert folder in Path(name).parents
    root = ElementTree.parse(name).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}path[@aria-roledescription='line mark']")) >= 3


CLAIMS = {"distil": check_distil, "dpo": check_dpo, "grpo": check_grpo}


LIKE_OTHERS = ("trainer", "torchrun")  # Trainer in one process, and DDP in a loop, are tried


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("example", "words"),
    [
        pytest.param(
            example, words, id=f"{example.stem}-{words[0]}",
            marks=pytest.mark.each_variant if (example.stem, words[0]) == LIKE_OTHERS else (),
        )
        for example, words in commands()
    ],
)  # fmt: skip
def test_it_learns_and_materializes_no_logits(example: Path, words: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*LAUNCH[words[0]], *words[1:]], capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"(?:step \d+: |'loss': )(\d+\.\d+)", done.stdout)]
    assert len(losses) >= 2, done.stdout
    if example.stem in CLAIMS:
        CLAIMS[example.stem](done.stdout)
        check_chart(done.stdout, tmp_path)
    elif example.stem != "sft":  # it trains on two data sets in turn
        assert losses[-1] < losses[0], done.stdout
    assert "full logits" not in done.stderr
    assert "nothing" in done.stdout or "made by" not in done.stdout
