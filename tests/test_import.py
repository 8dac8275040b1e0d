"""Importing is cheap, and one line names a missing extra. Each check runs in a new interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Slow parts of torch that `import torch` does not load.
HEAVY_TORCH = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.tensorboard")

LM = "of the extra 'lm': in a clone of cynosure, pip install '.[lm]'\n"

NEW_MODULES = f"""
import sys, torch.utils.flop_counter  # the flops of a matmul are registered there, and it imports triton
before = set(sys.modules)
{{statement}}
new = set(sys.modules) - before
foreign = {{{{name.partition(".")[0] for name in new}}}} - {{{{"cynosure", "torch"}}}} - sys.stdlib_module_names
heavy = {{{{name for name in {HEAVY_TORCH} if name in new}}}}
print(*sorted((foreign | heavy) - {{{{name.partition(".")[0] for name in before}}}}))
"""

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["cynosure", *{arguments}]
from cynosure.cli.entry import main
main()
"""


def python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=120
    )


def brings(statement: str, path: Path | None = None) -> set[str]:
    """Return what a statement imports besides the standard library and what `import torch` has loaded."""
    done = python(NEW_MODULES.format(statement=statement), path)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import cynosure", "import cynosure; cynosure.linear_cross_entropy", "import cynosure; cynosure.losses.dpo_loss"],
)
def test_import_brings_torch_and_nothing_else(statement: str) -> None:
    assert brings(statement) == set()


@pytest.mark.exhaustive
def test_heavy_imports_are_found(tmp_path: Path) -> None:
    names = ("rich", "typer", "transformers", "datasets", "torch._dynamo")
    package = tmp_path / "pretender"
    package.mkdir()
    (package / "__init__.py").write_text(f"def __getattr__(attribute):\n    import {', '.join(names)}\n    return 1\n")
    assert not brings("import pretender", tmp_path).intersection(names)
    assert brings("import pretender; pretender.loss", tmp_path).issuperset(names)


def test_import_alone_leaves_torch_out() -> None:
    done = python("import sys, cynosure.cli.entry; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def without(blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as if one package were not installed."""
    return python(WITHOUT.format(blocked={blocked}, arguments=list(arguments)))


def test_the_command_line_without_its_extra() -> None:
    done = without("typer", "--help")
    assert done.stderr == f"cynosure: this command needs the package 'typer' {LM}"
    assert done.stdout == ""
    assert done.returncode == 2


def test_a_command_without_its_package() -> None:
    done = without("transformers", "predict", "smollm2", "Hello")
    line = f"cynosure: this command needs the package 'transformers' {LM}"
    assert (done.returncode, done.stderr) == (2, line)


PUBLIC = """
from importlib import import_module
from importlib.util import find_spec
from pkgutil import walk_packages
from types import ModuleType
import cynosure

for module in walk_packages(cynosure.__path__, "cynosure."):
    source = find_spec(module.name).origin.endswith(".py")  # the C++ library is no module of Python's
    if module.name.startswith("cynosure.loss.triton.") and find_spec("triton") is None:
        continue
    if source and not module.name.endswith("__main__"):
        import_module(module.name)
assert dir(cynosure) == sorted(cynosure.__all__), dir(cynosure)
print(*(name for name in dir(cynosure) if isinstance(getattr(cynosure, name), ModuleType)))
"""


@pytest.mark.exhaustive
def test_completion_shows_the_public_names_and_no_other_module_takes_the_place_of_one() -> None:
    done = python(PUBLIC)
    assert (done.returncode, done.stdout.strip()) == (0, "losses"), done.stderr
