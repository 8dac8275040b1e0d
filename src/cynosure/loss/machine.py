"""The machine underneath: its processor, and where results about it are kept."""

import os
import platform
from pathlib import Path


def cache_directory() -> Path:
    """`$CYNOSURE_CACHE`, else `$XDG_CACHE_HOME/cynosure`, else `~/.cache/cynosure`."""
    if chosen := os.environ.get("CYNOSURE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cynosure"


def cpu_name() -> str:
    """The processor as the system names it; the family too, as a virtual machine's name says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = (line.partition(":") for line in reversed(lines))
    named = {name.strip(): value.strip() for name, _, value in fields}
    if "model name" not in named:
        return platform.processor() or platform.machine()
    return f"{named['model name']} (family {named.get('cpu family')}, model {named.get('model')})"
