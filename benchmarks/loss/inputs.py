"""What is computed on: real heads with hidden states of real text, made once, kept, and mapped by each process."""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loss.implementations import Inputs, build_eager
from benchmarks.loss.prepared import SYNTHETIC, Prepared
from benchmarks.loss.reference import Errors, LossTruth, compute_truth, errors_of
from benchmarks.texts import cache_folder, text_ids

WINDOW = 1024
SPREAD = 2  # standard deviation of random logits, about that of a real model's
ROWS_STEP = 4096  # rows are made in these steps, so that runs with fewer tokens share one file

Say = Callable[[str], None]


def load_inputs(prepared: Prepared, dtype: str, n_tokens: int) -> Inputs:
    """The first n rows, copied; the weight is mapped from its file, not read."""
    rows = torch.load(prepared.rows_file)
    weight = torch.load(prepared.weight_file(dtype), mmap=True)
    return Inputs(rows["hidden"][:n_tokens].to(weight.dtype, copy=True), weight, rows["target"][:n_tokens].clone())


def make_inputs(prepared: Prepared, dtype: str, n_tokens: int, device: torch.device) -> Inputs:
    """The first n rows of random ones and a random weight, made on a device: the same in every process there."""
    generator = torch.Generator(device).manual_seed(0)
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device, "generator": generator}
    vocab_size, hidden_size = prepared.vocab_size, prepared.hidden_size
    weight = torch.randn(vocab_size, hidden_size, **how).mul_(SPREAD / hidden_size**0.5)
    hidden = torch.randn(prepared.n_rows, hidden_size, **how)
    target = torch.randint(vocab_size, (prepared.n_rows,), device=device, generator=generator)
    return Inputs(hidden[:n_tokens].clone(), weight, target[:n_tokens].clone())


def load_truth(prepared: Prepared, dtype: str, n_tokens: int) -> tuple[LossTruth, Errors]:
    """The float64 truth about the first n rows, and the errors of the eager op."""
    kept = torch.load(prepared.truth_file(dtype, n_tokens))
    return LossTruth(**kept["truth"]), Errors(**kept["eager"])


def prepare(name: str, dtypes: list[str], tokens: list[int], say: Say) -> Prepared:
    """Make what is not there yet of a head's files, with the truth of the loss. Raises what `prepare_head` raises."""
    made = prepare_head(name, dtypes, tokens, say)
    for dtype in dtypes:
        for n_tokens in tokens:
            if not made.truth_file(dtype, n_tokens).exists():
                say(f"{name}: loss and gradients of {n_tokens:,} tokens in float64, for {dtype} inputs (once)")
                keep_truth(made, dtype, load_inputs(made, dtype, n_tokens))
    return made


def prepare_head(name: str, dtypes: list[str], tokens: list[int], say: Say) -> Prepared:
    """Make what is not there yet of a head's weights and rows.

    `name` is a packaged model or `synthetic:VxD`. Raises FileNotFoundError for a model that is not installed,
    ModuleNotFoundError for a package that is missing, ValueError for a head that is more than a matrix.
    """
    n_rows = -(-max(tokens) // ROWS_STEP) * ROWS_STEP
    made = synthetic(name, n_rows) if SYNTHETIC.fullmatch(name) else packaged(name, n_rows, say)
    for dtype in dtypes:
        if not made.weight_file(dtype).exists():
            weight = torch.load(made.weight_file("float32"), mmap=True)
            save(made.weight_file(dtype), weight.to(getattr(torch, dtype)))
    return made


def keep_truth(made: Prepared, dtype: str, inputs: Inputs) -> None:
    n_tokens, truth = len(inputs.hidden), compute_truth(inputs)
    eager = eager_errors(inputs, truth)
    save(made.truth_file(dtype, n_tokens), {"truth": truth._asdict(), "eager": eager._asdict()})


def eager_errors(inputs: Inputs, truth: LossTruth) -> Errors:
    """The errors of the eager op: on a device without room for its logits, with half the tokens."""
    try:
        return Errors(**errors_of(build_eager(inputs)(), truth))
    except torch.OutOfMemoryError:
        half = (len(inputs.hidden) + 1) // 2
        fewer = inputs._replace(hidden=inputs.hidden[:half], target=inputs.target[:half])
    return eager_errors(fewer, compute_truth(fewer))


def synthetic(name: str, n_rows: int) -> Prepared:
    """A random head whose logits have about the spread of a real model's, and random targets."""
    vocab_size, hidden_size = (int(size) for size in name.removeprefix("synthetic:").split("x"))
    folder = cache_folder(f"synthetic-{vocab_size}x{hidden_size}")
    made = Prepared(name, "random weights", vocab_size, hidden_size, folder, n_rows, str(torch.__version__))
    generator = torch.Generator().manual_seed(0)
    if not made.weight_file("float32").exists():
        weight = torch.randn(vocab_size, hidden_size, generator=generator) * (SPREAD / hidden_size**0.5)
        save(made.weight_file("float32"), weight)
    if not made.rows_file.exists():
        hidden = torch.randn(n_rows, hidden_size, generator=generator)
        save(made.rows_file, {"hidden": hidden, "target": torch.randint(vocab_size, (n_rows,), generator=generator)})
    return made


def packaged(name: str, n_rows: int, say: Say) -> Prepared:
    """A packaged model's own head, with the hidden states its own body makes of addresses of US presidents."""
    from transformers import AutoConfig

    from cynosure.models.loading import locate

    say(f"{name}: finding the model (dequantised once)")
    source, title = locate(name)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
    folder = cache_folder(f"{name}-{Path(source).name[:16]}")
    made = Prepared(name, title, config.vocab_size, config.hidden_size, folder, n_rows, str(torch.__version__))
    if not (made.rows_file.exists() and made.weight_file("float32").exists()):
        say(f"{name}: hidden states of {n_rows:,} tokens of real text (once)")
        make_rows(made)
    return made


def make_rows(made: Prepared) -> None:
    """Window by window, each opened by the model's BOS; every hidden state has the token that follows as its target."""
    from cynosure.models import hidden_states, load, read_head

    language_model = load(made.name, dtype="float32", device="cpu")
    head = read_head(language_model.model)
    if head.bias is not None or head.scale != 1.0 or head.softcap is not None:
        raise ValueError(f"the head of {made.name} is more than a matrix, which not every implementation can compute")
    words = language_model.tokenizer
    opening = words.bos_token_id if words.bos_token_id is not None else words.eos_token_id
    target = torch.tensor(list(islice(text_ids(words), made.n_rows)))
    hidden = []
    with torch.no_grad():
        for window in torch.split(target, WINDOW):
            ids = torch.cat([torch.tensor([opening]), window[:-1]])
            hidden.append(hidden_states(language_model.model, ids[None])[0])
    save(made.weight_file("float32"), head.weight.detach().clone())
    save(made.rows_file, {"hidden": torch.cat(hidden), "target": target})


def save(path: Path, what: Tensor | dict[str, Any]) -> None:
    """Written beside, then renamed: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        torch.save(what, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
