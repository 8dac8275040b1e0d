"""Imports point downwards only: each room of the package imports only rooms before it in ORDER."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import cynosure

PACKAGE = Path(__file__).parents[1] / "src" / "cynosure"
ORDER = (
    "system",
    "loss",
    "losses",
    "patching",
    "text",
    "models",
    "auditing",
    "measure",
    "training",
    "reporting",
    "cli",
)
OUTSIDE = ("benchmarks", "tests")  # in the clone, but not in the package
GROUND = {"system", "loss", "losses", "text"}  # import no other room except system, and losses the loss
# Statistics, stored results and everything derived from them need no model.
MODEL_FREE = (
    *("measure/storage/", "measure/statistics/", "measure/results/"),
    *(f"measure/comparison/{name}.py" for name in ("align", "tally", "excerpts", "compare", "comparison", "gate")),
)

# Maximum number of imports that bypass another room's `__init__.pyi`. `system` has none: all import its modules.
MOST_INNER = 15

# Folders of loss/, and the modules of loss/ that each may import besides its own.
FOLDERS = {
    "backends": {"devices", "native", "options", "pieces", "sizes", "targets", "tensors", "triton"},
    "divergence": {
        *("autograd", "backends", "batch", "chunked", "compiler", "devices", "jobs", "linear", "logprobs", "native"),
        *("operator_parts", "options", "targets", "tensors"),
    },
    "matmul": {"devices", "native", "tensors"},
    "native": set(),
    "sampling": {"backends", "batch", "devices", "linear", "matmul", "native", "options", "tensors"},
    "triton": {"options", "pieces", "targets"},
}


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import in a module of `package`, also in functions or by import_module("x")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join((*stem, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def complaint(room: str, name: str) -> str | None:
    """Return why a module of `room` may not import `name`; None if it may."""
    parts = name.split(".")
    if parts[0] in OUTSIDE:
        return f"imports {name}: {parts[0]}/ is not installed with the package"
    if parts[0] != "cynosure" or parts[1:] == ["__version__"]:
        return None
    target = parts[1] if len(parts) > 1 else ""
    if target not in ORDER:
        return f"imports {name}: the index is for users, import from its room"
    if target == room:
        return None
    if room in GROUND and target != "system" and (room, target) != ("losses", "loss"):
        return f"imports {name}: {room}/ imports no other room"
    if ORDER.index(target) > ORDER.index(room):
        return f"imports {name}: {target}/ stands after {room}/"
    return None


def folder_complaint(folder: str, name: str) -> str | None:
    """Return why a module in a folder of loss/ may not import `name`; None if it may."""
    parts = name.split(".")
    if folder not in FOLDERS or parts[:2] != ["cynosure", "loss"] or {folder, *FOLDERS[folder]} & {*parts[2:3]}:
        return None
    return f"imports {name}: of loss/ {folder}/ imports only {', '.join(sorted(FOLDERS[folder])) or 'itself'}"


def violations(package: Path) -> list[str]:
    """Return one line for every import in the package that points the wrong way."""
    complaints = []
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        path = file.relative_to(package)
        if len(path.parts) == 1:
            continue  # the index and __main__ are above all rooms
        room = path.parts[0]
        if room not in ORDER:
            complaints.append(f"{path}: {room}/ is not one of {', '.join(ORDER)}")
            continue
        for line, name in imported(ast.parse(file.read_text()), ("cynosure", *path.parts[:-1])):
            why = complaint(room, name)
            if why is None and path.as_posix().startswith(MODEL_FREE) and name.startswith("cynosure.models"):
                why = f"imports {name}: statistics need no model"
            if why is None and room == "loss":
                why = folder_complaint(path.parts[1], name)
            if why:
                complaints.append(f"{path}:{line}: {why}")
    return complaints


def is_inner(package: Path, room: str, name: str) -> bool:
    """Whether `name` is a module inside another room, or is imported from one."""
    parts = name.split(".")
    if parts[0] != "cynosure" or len(parts) < 3 or parts[1] in (room, "system"):
        return False
    module = package.joinpath(*parts[1:3])
    return len(parts) > 3 or module.is_dir() or module.with_suffix(".py").is_file()


def inner_imports(package: Path) -> list[str]:
    """Return one line for every import statement that bypasses another room's `__init__.pyi`."""
    lines = {}
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        room = path.parts[0]
        if len(path.parts) == 1:
            continue
        for line, name in imported(ast.parse(file.read_text()), ("cynosure", *path.parts[:-1])):
            if is_inner(package, room, name):
                lines[path, line] = f"{path}:{line}: imports {name}"
    return list(lines.values())


def test_imports_point_downwards() -> None:
    assert violations(PACKAGE) == []


def test_few_imports_reach_inside_another_room() -> None:
    inner = inner_imports(PACKAGE)
    assert len(inner) <= MOST_INNER, "import these from the room, whose __init__.pyi lists them:\n" + "\n".join(inner)


@pytest.mark.parametrize(
    ("code", "inner"),
    [
        ("from cynosure.loss.linear import capped, matmul", 1),
        ("def f():\n    from cynosure.loss import linear", 1),
        ("from ..loss.linear import capped", 1),
        ("import_module('cynosure.loss.linear')", 1),
        ("import cynosure.loss.linear\nimport cynosure.text.chat", 2),
        ("from cynosure.loss import capped\nfrom cynosure import loss", 0),
        ("from cynosure.system.escapes import visible\nfrom cynosure.models.head import Head", 0),
    ],
)
def test_an_import_inside_another_room_is_counted(code: str, inner: int, tmp_path: Path) -> None:
    for name in ("loss/linear.py", "models/splitting.py", "text/chat.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "models/splitting.py").write_text(code)
    assert len(inner_imports(tmp_path)) == inner


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("loss/plan.py", "import cynosure.text"),
        ("loss/plan.py", "from cynosure.models.head import Head"),
        ("loss/plan.py", "from cynosure import models"),
        ("loss/plan.py", "from .. import measure"),
        ("loss/plan.py", "from ..measure.run import score"),
        ("loss/deep/plan.py", "from ...measure.run import score"),
        ("loss/backends/triton_rows.py", "from cynosure.loss.plan import explain"),
        ("loss/backends/triton_rows.py", "from cynosure.loss.matmul.choice import choose_gemm"),
        ("loss/matmul/choice.py", "from cynosure.loss.backends.registry import Backend"),
        ("loss/native/build.py", "from cynosure.loss import explain"),
        ("loss/plan.py", "from cynosure import linear_cross_entropy"),
        ("text/tokens.py", "from cynosure.loss import explain"),
        ("losses/policy.py", "from cynosure.text import as_documents"),
        ("loss/plan.py", "from cynosure.losses import dpo_loss"),
        ("models/head.py", "def f():\n    from cynosure.measure import score"),
        ("measure/scoring/scorer.py", "import importlib\nimportlib.import_module('cynosure.cli.app')"),
        ("measure/statistics/stats.py", "from cynosure.models import load"),
        ("system/escapes.py", "from cynosure.loss import explain"),
        ("models/__init__.pyi", "from cynosure.measure.scoring.score import score as score"),
        ("extra/odd.py", "import math"),
        ("cli/app.py", "from benchmarks.commands import app"),
        ("measure/statistics/stats.py", "import tests.measure.coverage"),
    ],
)
def test_an_upward_import_is_found(path: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("loss/plan.py", "import torch\nfrom cynosure.loss.targets import check\nfrom . import targets"),
        ("loss/plan.py", "from cynosure.system.escapes import visible"),
        ("loss/backends/triton_rows.py", "from cynosure.loss.sizes import Sizes\nfrom .registry import register"),
        ("models/head.py", "from cynosure.loss import explain\nfrom ..text import tokens"),
        ("losses/policy.py", "from cynosure.loss import token_logprobs"),
        ("cli/app.py", "from cynosure import __version__\nfrom cynosure.training import presets"),
        ("__init__.py", "from cynosure.cli import app"),
    ],
)
def test_a_downward_import_is_allowed(path: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    assert violations(tmp_path) == []


def test_no_public_name_hides_a_module_except_one_that_is_public_itself() -> None:
    packages = ["cynosure", *(module.name for module in walk_packages(cynosure.__path__, "cynosure.") if module.ispkg)]
    modules = {module.name for module in walk_packages(cynosure.__path__, "cynosure.")}
    for package in map(import_module, packages):
        public = {*getattr(package, "__all__", ()), *(name for name, value in vars(package).items() if callable(value))}
        assert {f"{package.__name__}.{name}" for name in public} & modules == (
            {"cynosure.losses"} if package is cynosure else set()
        )
    assert inspect.ismodule(cynosure.losses)


def shared_names(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return the class names that several files define, with the files."""
    homes: dict[str, list[str]] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(file)
    return {name: files for name, files in homes.items() if len(files) > 1}


def test_each_class_has_a_name_of_its_own() -> None:
    """Otherwise a traceback or a search would not say which class is meant."""
    assert shared_names({str(file): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}) == {}


def test_a_shared_name_is_found() -> None:
    one, other = ast.parse("class Row: ..."), ast.parse("def f():\n    class Row: ...")
    assert shared_names({"a.py": one, "b.py": other}) == {"Row": ["a.py", "b.py"]}
