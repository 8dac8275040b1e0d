"""Plant a fault in a copy of the repository, and let the tests look for it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults import of_loss, of_losses, of_measure, of_models, of_texts, of_training
from tests.faults.fault import Fault

ROOT = Path(__file__).parents[2]
PACKAGE = Path("src", "cynosure")
FAULTS = {
    fault.name: fault
    for table in (of_loss, of_losses, of_texts, of_models, of_measure, of_training)
    for fault in table.FAULTS
}
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".demo", ".hypothesis", "build", "dist", "site")
FAST = ["-m", "not exhaustive"]
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - .*)?$", re.MULTILINE)
PATIENCE = 1200  # seconds; a fault may make a loop endless


def planted(fault: Fault | None, folder: Path) -> Path:
    """A copy of the repository with this fault, or without any, in a new folder."""
    place = folder / "repository"
    shutil.copytree(ROOT, place, ignore=LEFT_OUT)
    if fault is not None:
        path = place / PACKAGE / fault.file
        path.write_text(mutated(path.read_text(encoding="utf-8"), fault), encoding="utf-8")
        if path.suffix == ".cpp":
            subprocess.run([sys.executable, path.with_name("build.py")], check=True)
    share_conversions(folder, fault)
    return place


def mutated(source: str, fault: Fault) -> str:
    """The source with the fault. ValueError where its old text does not stand there once."""
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.old!r} stands {source.count(fault.old)} times in {fault.file}")
    return source.replace(fault.old, fault.new)


def share_conversions(folder: Path, fault: Fault | None) -> None:
    """Let a copy use the GGUF models that the tests have dequantized, unless its fault may change how that is done."""
    known = ROOT / ".pytest_cache" / "d" / "cynosure" / "gguf"
    if known.is_dir() and (fault is None or not fault.file.startswith("models/")):
        home = folder / "cache" / "d" / "cynosure"
        home.mkdir(parents=True)
        (home / "gguf").symlink_to(known)


def stages(fault: Fault) -> Iterator[list[str]]:
    """The tests that should see a fault; those of its room; all of them."""
    yield [f"tests/{path}" for path in fault.tests.split()]
    room = f"tests/{fault.file.partition('/')[0]}"
    if (ROOT / room).is_dir():
        yield [room]
    yield []


def first_to_see(fault: Fault, place: Path, suite: str) -> str | None:
    """The first test that fails with the fault; None where all pass."""
    return next(filter(None, (first_failure(place, tests, suite) for tests in stages(fault))), None)


def first_failure(place: Path, tests: Sequence[str], suite: str) -> str | None:
    """The first of these tests that fails in a copy, or how their process ended; None where all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-o", f"cache_dir={place.parent / 'cache'}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(place / "src"), str(place))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [*command, *(FAST if suite == "fast" else []), *tests], cwd=place, env=environment, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{' '.join(tests)}: no end in {PATIENCE} seconds"
    if done.returncode < 0:
        return f"{' '.join(tests)}: ended by {signal.Signals(-done.returncode).name}"
    if found := FAILED.search(done.stdout):
        return found[1]
    return None if done.returncode in (0, 5) else f"{' '.join(tests)}: pytest ended with {done.returncode}"
