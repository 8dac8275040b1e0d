"""Facts about this machine, and the folder that caches measurements of it."""

import os
import platform
from pathlib import Path


def cache_directory() -> Path:
    """Return `$CYNOSURE_CACHE`, else `$XDG_CACHE_HOME/cynosure`, else `~/.cache/cynosure`.

    Raises FileNotFoundError if the user has no home directory.
    """
    chosen = os.environ.get("CYNOSURE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cynosure")
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:  # a user id that the system does not know, as in a container
        raise FileNotFoundError(
            f"no home directory for the cache: {chosen}. Set CYNOSURE_CACHE to a folder."
        ) from error


def cpu_name() -> str:
    """Return the processor's name, with family and model: the name alone says little in a virtual machine."""
    about = cpu_about()
    if "model name" not in about:
        return platform.processor() or platform.machine()
    return f"{about['model name']} (family {about.get('cpu family')}, model {about.get('model')})"


def memory_bytes() -> int | None:
    """Return the bytes of memory of this machine; None if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cpu_vendor() -> str:
    """Return the processor's vendor, e.g. `GenuineIntel`; empty if the system does not report it."""
    return cpu_about().get("vendor_id", "")


def cpu_about() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty on systems other than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in fields}
