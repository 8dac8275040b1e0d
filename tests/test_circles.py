"""Imports have no circles: neither at the top of modules nor in functions or by import_module."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE, imported


def without_types(tree: ast.Module) -> ast.Module:
    """Return a module without the imports for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def graph(package: Path) -> dict[str, set[str]]:
    """Return the imports of each module in a package; a public name stands for the module that defines it."""
    files = {".".join((package.name, *f.relative_to(package).with_suffix("").parts)): f for f in package.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    homes = dict(public_names(package))

    def home(name: str) -> str:
        while name in homes:
            name = homes[name]
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    imports: dict[str, set[str]] = {}
    for name, file in files.items():
        parts = tuple((name if file.name == "__init__.py" else name.rpartition(".")[0]).split("."))
        names = [full for _, full in imported(without_types(ast.parse(file.read_text())), parts)]
        imports[name] = {home(full) for full in names if full.split(".")[0] == package.name} - {name, package.name}
    return imports


def public_names(package: Path) -> Iterator[tuple[str, str]]:
    """Yield (public name, origin), both dotted, from the stubs of a package."""
    for stub in package.rglob("*.pyi"):
        room = ".".join((package.name, *stub.relative_to(package).parts[:-1]))
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names = [(f"{room}.{alias.name}", f"{node.module}.{alias.name}") for alias in node.names]
                yield from ((public, origin) for public, origin in names if public != origin)  # not a public module


def test_there_are_no_import_circles() -> None:
    modules = graph(PACKAGE)
    assert len(modules) > 100
    assert "cynosure.measure.scoring.score" in modules["cynosure.measure.comparison.diverge"]
    list(TopologicalSorter(modules).static_order())


@pytest.mark.parametrize("code", ["from p.b import x", "def f():\n    from p import b", "import_module('p.b')"])
def test_a_circle_is_found(code: str, tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text(code)
    (package / "b.py").write_text("import p.a")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(package)).static_order())


def test_what_types_alone_need_is_no_circle(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("if TYPE_CHECKING:\n    import p.b")
    (package / "b.py").write_text("import p.a")
    list(TopologicalSorter(graph(package)).static_order())
