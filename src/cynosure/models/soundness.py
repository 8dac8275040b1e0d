"""Whether a model's configuration can be built and fits the weights beside it, before anything of it is allocated."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.models.pretrained import reason_of, told
from cynosure.models.remote_code import Origin, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Numbers that must be positive, by their names in configurations; null stands for a default.
POSITIVE = re.compile(
    r"(num_hidden_layers|n_layers?|num_layers|hidden_size|n_embd|d_model|vocab_size|num_attention_heads|n_heads?"
    r"|num_key_value_heads|head_dim|max_position_embeddings|n_positions|rope_theta|rotary_emb_base)"
)
LAYERS = re.compile(r"(num|n|encoder|decoder)_\w*layers?|depth")
COUNT = re.compile(r"(num|n)_\w+")
POSITIONS = re.compile(r"\w*(position|ctx|context|seq_len|max_len|length)\w*")
SIZE = re.compile(r"\w*(size|dim|rank|heads|embd|d_model|d_ff)")
EPSILON = re.compile(r"\w*(eps|epsilon)")
# Above these, whatever the weights; a list or a module for each would take minutes and gigabytes.
MOST_LAYERS, MOST_COUNT, MOST_POSITIONS, MOST_SIZE = 1024, 1 << 17, 1 << 30, 1 << 24
SPARE = 1 << 26  # elements that a model may have beside those of its files: caches of positions, masks


class Checkpoint(NamedTuple):
    """The weights of a model as their files describe them; nothing of them is read."""

    shapes: dict[str, tuple[int, ...]]  # empty where the weights are pickled, whose names cannot be listed
    n_elements: int  # of pickled weights, an estimate from above


def find_checkpoint(origin: Origin) -> Checkpoint:
    """The tensors in the safetensors files of a folder or repository.

    Raises ValueError for files that are damaged, that an index names and that are missing, or outside of the folder.
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
    """The safetensors files; none where the weights are pickled."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        found = cached_file(
            origin.source, name, revision=origin.revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return None if found is None else Path(found)

    with told(origin.source, "model"):
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
    """The name of a file in the folder itself or below. ValueError for any other."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where} names {str(name)[:80]!r}, which is no file inside the folder")
    return name


def check_values(values: dict[str, Any], checkpoint: Checkpoint, where: str, at: str = "") -> None:
    """ValueError for a number in a configuration that no model with these weights can have."""
    for name, value in values.items():
        inside = value if isinstance(value, list) else [value]
        for entry in inside:
            if isinstance(entry, dict):
                check_values(entry, checkpoint, where, f"{at}{name}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            expected = wanted(name, value, checkpoint)
            if expected is not None:
                raise ValueError(f"{where}: {at}{name} is {shown(value)}, and must be {expected}: mend its config.json")


def wanted(name: str, value: float, checkpoint: Checkpoint) -> str | None:
    """What a number of this name has to be, where it is not; None where nothing is wrong."""
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
            return None if value <= most else f"at most {most:,} beside these weights"
    return None


def shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**18 else f"{value:g}"[:40]


def check_size(config: Any, checkpoint: Checkpoint, source: Path | str) -> None:
    """ValueError when the model of a configuration is far larger than its weights, so that most would be random.

    The model is built on the meta device, which allocates nothing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    if getattr(config, "quantization_config", None):
        return  # packed weights have fewer elements
    with told(source, "model"), torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    n_elements = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    if n_elements > 2 * checkpoint.n_elements + SPARE:
        raise ValueError(
            f"{source}: its config.json describes a model of {n_elements:,} weights, "
            f"and its files hold {checkpoint.n_elements:,}: mend its config.json"
        )
