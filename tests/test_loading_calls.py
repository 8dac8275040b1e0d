"""Every call that loads from Hugging Face says whether custom code may run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cynosure

SOURCES = Path(cynosure.__file__).parent
LOADING = ("from_pretrained", "from_config", "get_class_from_dynamic_module")


def silent_calls(source: str) -> Iterator[int]:
    """Yield the lines of loading calls without `trust_remote_code`: transformers would ask on standard input."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in LOADING and "trust_remote_code" not in (keyword.arg for keyword in node.keywords):
                yield node.lineno


def test_every_loading_call_says_whether_code_may_run() -> None:
    paths = sorted(SOURCES.rglob("*.py"))
    silent = [f"{path}:{line}" for path in paths for line in silent_calls(path.read_text(encoding="utf-8"))]
    assert not silent
    assert sum("trust_remote_code=" in path.read_text(encoding="utf-8") for path in paths) > 5


def test_the_scan_sees_a_call_that_does_not() -> None:
    assert list(silent_calls("import x\nx.AutoModel.from_pretrained('m', dtype=1)\nfrom_config(c)")) == [2, 3]
    assert not list(silent_calls("x.AutoModel.from_pretrained('m', trust_remote_code=False)\nload('m')"))
