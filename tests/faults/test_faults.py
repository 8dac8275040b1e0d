"""The table of faults is up to date, and a fault that is planted is found. The faults: `python -m tests.faults`."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.fault import Fault
from tests.faults.plant import FAULTS, PACKAGE, ROOT, first_failure, mutated

LEAST = {
    "loss": 40,
    "losses": 15,
    "text": 14,
    "models": 10,
    "patching": 12,
    "auditing": 8,
    "measure": 30,
    "training": 24,
    "cli": 9,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_it_can_be_planted(fault: Fault) -> None:
    source = (ROOT / PACKAGE / fault.file).read_text(encoding="utf-8")
    changed = mutated(source, fault)
    assert changed != source
    if fault.file.endswith(".py"):
        compile(changed, fault.file, "exec")
    assert fault.tests
    assert all((ROOT / "tests" / path).exists() for path in fault.tests.split())


def test_every_room_has_faults() -> None:
    found = Counter(fault.file.partition("/")[0] for fault in FAULTS.values())
    assert {room: found[room] for room, least in LEAST.items() if found[room] < least} == {}


def test_an_old_text_that_is_gone_or_stands_twice_is_told() -> None:
    fault = Fault("name", "file.py", "a + b", "a - b", "a sum", "")
    assert mutated("x = a + b", fault) == "x = a - b"
    for source in ("x = a", "x = a + b; y = a + b"):
        with pytest.raises(ValueError, match="stands"):
            mutated(source, fault)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("def test_it():\n    assert 1 == 1\n", None),
        ("def test_it():\n    assert 1 == 2\n", "tests/test_x.py::test_it"),
        ("import no_such_module\n", "tests/test_x.py"),
        ("import os\n\n\ndef test_it():\n    os.abort()\n", "tests/test_x.py: ended by SIGABRT"),
    ],
)
def test_the_first_failure_is_named(body: str, seen: str | None, tmp_path: Path) -> None:
    place = tmp_path / "repository"
    (place / "tests").mkdir(parents=True)
    (place / "tests" / "test_x.py").write_text(body)
    (place / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["exhaustive: x"]\n')
    assert first_failure(place, ["tests/test_x.py"], "fast") == seen
