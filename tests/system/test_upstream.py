"""Private parts of torch, transformers, accelerate and peft are used through `system/upstream.py`, and nowhere else."""

import ast
import re
from collections.abc import Iterator

import pytest

from cynosure.system import upstream
from tests.test_layers import PACKAGE

HOME = PACKAGE / "system" / "upstream.py"
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
OF_NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}
OURS = {"_cynosure_patch", "_names_given", "_token_id", "_COMPLETE"}  # names and ends of names that we made


def is_private(name: str) -> bool:
    return PRIVATE.fullmatch(name) is not None and not name.startswith("__") and name not in OF_NAMEDTUPLE | OURS


def private_parts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name that a module takes from what it has not defined itself."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")}  # fmt: skip
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    trainers = [node for node in classes if any("Trainer" in ast.unparse(base) for base in node.bases)]
    overridden = {part.name for node in trainers for part in node.body if isinstance(part, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = (
                []
                if "cynosure" in str(node.module)
                else [*str(node.module).split("."), *(alias.name for alias in node.names)]
            )
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = node.value.split(".")  # getattr(x, "_name"), import_module("package._name")
        elif isinstance(node, ast.FunctionDef) and node.name in overridden:
            names = [node.name]
        else:
            continue
        for name in names:
            if is_private(name) and (name not in own or name in overridden):
                yield node.lineno, name


def listed() -> set[str]:
    """The names that `upstream.py` says are used elsewhere, since they cannot be wrapped."""
    return set(re.findall(r"`(?:\w+\.)*(_\w+)`", str(upstream.__doc__)))


def complaints(source: str) -> list[str]:
    return [f"{line}: {name}" for line, name in private_parts(ast.parse(source)) if name not in listed()]


def test_no_other_file_uses_a_private_part():
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in PACKAGE.rglob("*.py")
        if path != HOME and (wrong := complaints(path.read_text(encoding="utf-8")))
    }
    assert not found, "wrap it in system/upstream.py, or list it there"


def test_each_listed_part_is_used():
    used = {
        name
        for path in PACKAGE.rglob("*.py")
        if path != HOME
        for _, name in private_parts(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert listed() - used == set()


@pytest.mark.parametrize(
    "source",
    [
        "torch._C._is_tracing()",
        "from torch._compile import _disable_dynamo",
        "import torch._dynamo",
        "from torch.nn import _reduction",
        "x._version",
        'getattr(model, "_secret", None)',
        'import_module("torch._inductor")',
        "class Own(Trainer):\n    def _inner_training_loop(self): ...",
    ],
)
def test_a_private_part_is_seen(source):
    assert complaints(source)


@pytest.mark.parametrize(
    "source",
    [
        "row._replace(a=1)",
        "def _own(): ...\nmodule._own()",
        "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other): return other._x",
        "from cynosure.loss.chunked import _unit",
        "model.__dict__",
    ],
)
def test_what_is_our_own_is_let_through(source):
    assert not complaints(source)
