"""Check that a configuration can be built and fits the weights beside it, before allocating the model."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.models.pretrained import loading_errors, reason_of
from cynosure.models.remote_code import Origin, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names of numbers that must be positive in a configuration; null means a default.
POSITIVE = re.compile(
    r"(num_hidden_layers|n_layers?|num_layers|hidden_size|n_embd|d_model|vocab_size|num_attention_heads|n_heads?"
    r"|num_key_value_heads|head_dim|max_position_embeddings|n_positions|rope_theta|rotary_emb_base)"
)
LAYERS = re.compile(r"(num|n|encoder|decoder)_\w*layers?|depth")
COUNT = re.compile(r"(num|n)_\w+")
POSITIONS = re.compile(r"\w*(position|ctx|context|seq_len|max_len|length)\w*")
SIZE = re.compile(r"\w*(size|dim|rank|heads|embd|d_model|d_ff)")
EPSILON = re.compile(r"\w*(eps|epsilon)")
# Larger numbers are refused for any weights: a list or module for each would take minutes and gigabytes.
MOST_LAYERS, MOST_COUNT, MOST_POSITIONS, MOST_SIZE = 1024, 1 << 17, 1 << 30, 1 << 24
SPARE = 1 << 26  # elements that a model may have beyond those of its files: cached positions, masks


class Checkpoint(NamedTuple):
    """The weights of a model as the headers of their files describe them."""

    shapes: dict[str, tuple[int, ...]]  # empty for pickled weights, whose names cannot be listed
    n_elements: int  # for pickled weights an upper bound


def find_checkpoint(origin: Origin) -> Checkpoint:
    """List the tensors in the safetensors files of a folder or repository.

    Raises ValueError if a file is damaged, or if an index names a file that is missing or outside the folder.
    """
    files = list(weight_files(origin))
    if not files:
        pickled = Path(origin.source).glob("*.bin") if isinstance(origin.source, Path) else ()
        return Checkpoint({}, sum(path.stat().st_size for path in pickled) or 1 << 50)
    from safetensors import safe_open

    shapes = {}
    for path in files:
        try:
            with safe_open(path, "pt") as opened:
                shapes.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})  # noqa: SIM118
        except Exception as error:
            raise ValueError(
                f"cannot load the model in {origin.source}: {path.name} is damaged or cut short "
                f"({reason_of(error)}); get it again"
            ) from error
    return Checkpoint(shapes, sum(map(math.prod, shapes.values())))


def weight_files(origin: Origin) -> Iterator[Path]:
    """Yield the safetensors files; none if the weights are pickled."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        file = cached_file(
            origin.source, name, revision=origin.revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return None if file is None else Path(file)

    with loading_errors(origin.source, "model"):
        chosen = origin.values.get("transformers_weights")
        if chosen is not None:
            check_inside(chosen, "config.json")
        whole, index = (chosen, chosen) if chosen else (WEIGHTS, INDEX)
        if not str(whole).endswith(".json") and (path := find(whole)):
            yield path
        elif str(index).endswith(".json") and (path := find(index)):
            places = read_json(path).get("weight_map")
            if not isinstance(places, dict) or not places:
                raise ValueError(f"{index} has no weight_map")
            for name in sorted({check_inside(place, str(index)) for place in places.values()}):
                shard = find(name)
                if shard is None:
                    raise ValueError(f"{index} names {name}, which is missing; get it again")
                yield shard


def check_inside(name: Any, where: str) -> str:
    """Return the name of a file inside the folder. Raise ValueError for any other name."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where} names {str(name)[:80]!r}, which is not a file inside the folder")
    return name


def check_values(values: dict[str, Any], checkpoint: Checkpoint, where: str, at: str = "") -> None:
    """Raise ValueError if a number in a configuration is impossible for a model with these weights."""
    for name, value in values.items():
        inside = value if isinstance(value, list) else [value]
        for entry in inside:
            if isinstance(entry, dict):
                check_values(entry, checkpoint, where, f"{at}{name}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            expected = requirement(name, value, checkpoint)
            if expected is not None:
                raise ValueError(f"{where}: {at}{name} is {shown(value)}, and must be {expected}: fix its config.json")


def requirement(name: str, value: float, checkpoint: Checkpoint) -> str | None:
    """Return the requirement that a number of this name violates, None if it is valid."""
    if math.isnan(value):
        return "a number"
    if EPSILON.fullmatch(name) and not 0 <= value <= 1:
        return "from 0 to 1"
    if POSITIVE.fullmatch(name) and not 0 < value < math.inf:
        return "positive"
    n_tensors = len(checkpoint.shapes) or MOST_LAYERS
    for kind, most in (
        (LAYERS, max(256, n_tensors)),
        (POSITIONS, MOST_POSITIONS),
        (SIZE, max(MOST_SIZE, checkpoint.n_elements)),
        (COUNT, MOST_COUNT),
    ):
        if kind.fullmatch(name):
            return None if value <= most else f"at most {most:,} with these weights"
    return None


def shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**18 else f"{value:g}"[:40]


def check_size(config: Any, checkpoint: Checkpoint, source: Path | str) -> None:
    """Raise ValueError if a configuration describes a model far larger than its weights: most would be random.

    The model is built on the meta device, which allocates nothing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    if getattr(config, "quantization_config", None):
        return  # packed weights have fewer elements
    with loading_errors(source, "model"), torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    n_elements = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    if n_elements > 2 * checkpoint.n_elements + SPARE:
        raise ValueError(
            f"{source}: its config.json describes a model of {n_elements:,} weights, "
            f"but its files hold {checkpoint.n_elements:,}: fix its config.json"
        )
