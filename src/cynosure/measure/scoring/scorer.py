"""Run units of windows through the backbone, and collect the fused statistics of each token."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cynosure.loss import TokenStats
from cynosure.measure.scoring.batching import ENOUGH, Batching, BatchRow, agree, batches, rows_of
from cynosure.measure.scoring.units import UNCOUNTED, Cutting, Task
from cynosure.measure.statistics.calibration import TEMPERATURES
from cynosure.measure.storage.rows import LOST, DocumentFacts, Shard, schema
from cynosure.models import SplitModel
from cynosure.text import COUNTED


class Progress(NamedTuple):
    """Sums over the batch that was just scored."""

    tokens: int
    nats: float
    n_bytes: float  # of the text of these tokens, estimated


Say = Callable[[Progress], None]
# More reasons why a row is not scored or loses text, as codes after those of UNCOUNTED.
TAIL, UNSCORED, WITHOUT_TEXT = (len(UNCOUNTED) + i for i in (1, 2, 3))


def ignore(step: Progress) -> None:
    pass


@contextmanager
def reporting(progress: Say | bool | None) -> Iterator[Say]:
    """Yield the function to call after every batch: the given one, or with True one that draws a bar on stderr.

    Under torchrun only the first process draws a bar.
    """
    if callable(progress):
        yield progress
    elif not progress or os.environ.get("RANK", "0") != "0":
        yield ignore
    else:
        from tqdm.auto import tqdm

        with tqdm(desc="cynosure", unit=" tokens", unit_scale=True) as bar:
            nats = 0.0

            def say(step: Progress) -> None:
                nonlocal nats
                nats += step.nats
                bar.update(step.tokens)
                bar.set_postfix_str(f"loss {nats / max(1, bar.n):.4f} nats a token")

            yield say


@dataclass
class Scorer:
    """Scores units with a model."""

    model: SplitModel
    cutting: Cutting
    topk: int  # number of likeliest tokens to keep per position

    def __post_init__(self) -> None:
        self.batching = Batching(self.model.regimes)

    def score(self, tasks: list[Task], facts: list[DocumentFacts], say: Say) -> Shard:
        """Score the windows of a unit, and return its rows in the order of the text."""
        filled = UnitColumns.of(tasks, self.topk)
        for batch in batches(rows_of(tasks), self.cutting.batch_tokens):
            say(self.put(batch, *self.states(batch), filled))
        return self.shard(tasks, facts, filled)

    def shard(self, tasks: list[Task], facts: list[DocumentFacts], filled: "UnitColumns") -> Shard:
        """Return the rows of a unit whose columns are filled."""
        return Shard(pa.Table.from_arrays(columns(tasks, filled, self.cutting), schema=filled.schema), tuple(facts))

    @torch.inference_mode()
    def states(self, batch: list[BatchRow]) -> tuple[Tensor, Tensor]:
        """Return the hidden states (n, D) before the scored tokens of a batch, and those tokens (n,)."""
        target = torch.from_numpy(np.concatenate([row.task.targets for row in batch]))
        hidden = [states for part in self.batching.parts(batch) for states in self.independent(part)]
        return torch.cat(hidden), target.to(self.model.device)

    def independent(self, part: list[BatchRow]) -> Iterator[Tensor]:
        """Yield the hidden states (n, D) before the scored tokens of each row, as if the row were alone.

        If rows that go through the model together change each other, they are run separately.
        """
        tasks = [row.task for row in part]
        ids = self.ids(tasks)
        self.model.check_ids(ids, torch.from_numpy(np.concatenate([task.targets for task in tasks])))
        ids = ids.to(self.model.device)
        hidden = self.model.body(ids)
        if all(self.is_alone(ids[i, : tasks[i].window.n_seen], hidden[i]) for i in self.batching.to_try(part)):
            yield from (h[torch.from_numpy(task.before).to(h.device)] for h, task in zip(hidden, tasks, strict=True))
            return
        self.batching.tighten()
        for smaller in self.batching.parts(part):
            yield from self.independent(smaller)

    def is_alone(self, ids: Tensor, together: Tensor) -> bool:
        """Whether a row (T,) has the same hidden states in a batch, (at least T, D), as alone.

        Its first tokens are tested first, which is nearly always enough. If they differ, the reason may be the row's
        own length, so the whole row is tested.
        """
        starts = (ids[:ENOUGH], ids)
        return any(agree(self.model.body(start[None])[0], together[: len(start)]) for start in starts)

    def ids(self, tasks: list[Task]) -> Tensor:
        """Return what the model sees of each task's window, padded on the right, (n, T)."""
        ids = torch.zeros(len(tasks), max(task.window.n_seen for task in tasks), dtype=torch.int64)
        for line, task in zip(ids, tasks, strict=True):
            line[: task.window.n_seen] = torch.from_numpy(self.seen(task))
        return ids

    @torch.inference_mode()
    def put(self, batch: list[BatchRow], hidden: Tensor, target: Tensor, filled: "UnitColumns") -> Progress:
        """Write the statistics of a batch's tokens into their rows."""
        stats = self.model.head.stats(hidden, target, topk=self.topk, temperatures=list(TEMPERATURES))
        nll = filled.put(np.concatenate([row.scored for row in batch]), stats)
        self.check(nll, batch)
        tasks = [row.task for row in batch]
        n_bytes = sum(t.text.facts.n_bytes * t.window.n_scored / t.text.facts.n_tokens for t in tasks)
        return Progress(len(target), float(nll.sum(dtype=np.float64)), n_bytes)

    def seen(self, task: Task) -> NDArray[np.int64]:
        """Return what the model sees of a task's window. Some protocols overwrite its first token."""
        text, window = task.text, task.window
        x = text.x[window.see_start : window.see_stop]
        return x if text.first is None else np.concatenate([[text.first], x[1:]])

    def check(self, nll: NDArray[Any], batch: list[BatchRow]) -> None:
        if np.isnan(nll).any():
            tasks = [row.task for row in batch]
            reason = self.model.why_not_finite(self.ids(tasks).to(self.model.device))
            raise ValueError(f"{reason} (NaN from {tasks[0].text.facts.name} on)")


class UnitColumns:
    """The statistics of a unit's rows as columns. Batches fill them; unfilled rows are NaN, or -1 in integers."""

    def __init__(self, n_rows: int, topk: int) -> None:
        self.schema = schema(len(TEMPERATURES), topk)
        self.scored = np.zeros(n_rows, dtype=bool)
        self.parts: dict[str, NDArray[Any]] = {}
        for name in TokenStats._fields:
            if name not in self.schema.names:
                continue
            kind = self.schema.field(name).type
            shape = (n_rows, kind.list_size) if pa.types.is_fixed_size_list(kind) else (n_rows,)
            value = kind.value_type if len(shape) == 2 else kind
            dtype = value.to_pandas_dtype()
            self.parts[name] = np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -1, dtype)

    @classmethod
    def of(cls, tasks: list[Task], topk: int) -> "UnitColumns":
        """Make unfilled columns for the rows of a unit."""
        return cls(sum(task.stop - task.start for task in tasks), topk)

    def put(self, at: NDArray[np.int64], stats: TokenStats) -> NDArray[Any]:
        """Fill rows, and return their losses."""
        for name, part in self.parts.items():
            part[at] = getattr(stats, name).cpu().numpy()
        self.scored[at] = True
        nll: NDArray[Any] = self.parts["nll"][at]
        return nll

    def column(self, name: str) -> pa.Array:
        """Return a column, with null for rows that were not scored."""
        part, kind = self.parts[name], self.schema.field(name).type
        if part.ndim == 1:
            return pa.array(part, kind, mask=~self.scored)
        values = pa.array(part.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(values, kind.list_size)


def columns(tasks: list[Task], filled: UnitColumns, cutting: Cutting) -> list[pa.Array]:
    """Return the columns of a unit's table."""
    spans = [(task.text, slice(task.start, task.stop), task) for task in tasks]
    plain: dict[str, list[Any]] = {
        "document": [np.full(task.stop - task.start, text.facts.document) for text, _, task in spans],
        "index": [np.arange(span.start, span.stop) for _, span, _ in spans],
        "token_id": [text.tokens.ids[span] for text, span, _ in spans],
        "window": [np.full(task.stop - task.start, task.number) for _, _, task in spans],
    }
    made = {name: pa.array(np.concatenate(parts or [[]]).astype(np.int32)) for name, parts in plain.items()}
    made["token_bytes"] = pa.array(
        [piece for text, span, _ in spans for piece in text.tokens.pieces[span]], pa.binary()
    )
    made["byte_start"], made["byte_end"] = byte_spans(tasks)
    context = np.concatenate([contexts(task) for task in tasks] or [np.zeros(0, dtype=np.int32)])
    made["context"] = pa.array(context, pa.int32(), mask=~filled.scored)
    made["excluded"] = reasons(tasks, cutting)
    made |= {name: filled.column(name) for name in filled.parts}
    return [made[name] for name in filled.schema.names]


def byte_spans(tasks: list[Task]) -> tuple[pa.Array, pa.Array]:
    """Return where the bytes of each row begin and end in its document."""
    starts, stops = [], []
    for text, _, _, start, stop in tasks:
        n_rows = stop - start
        if text.byte_stops is None:
            starts.append(pa.nulls(n_rows, pa.int64()))
            stops.append(starts[-1])
            continue
        edges = text.byte_stops[max(0, start - 1) : stop] if start else np.append(0, text.byte_stops[:stop])
        starts.append(pa.array(edges[:-1]))
        stops.append(pa.array(edges[1:]))
    return pa.concat_arrays(starts or [pa.array([], pa.int64())]), pa.concat_arrays(stops or [pa.array([], pa.int64())])


def contexts(task: Task) -> NDArray[np.int32]:
    """Return how many tokens the model saw before each row's token; meaningless for rows that are not scored."""
    first = task.start + task.text.lead - task.window.see_start
    return np.arange(first, first + task.stop - task.start, dtype=np.int32)


def reasons_of(task: Task) -> NDArray[np.int8]:
    """Return a code for why each row is not scored or loses text, (n,); COUNTED if neither is so."""
    text, window = task.text, task.window
    codes: NDArray[np.int8] = text.kinds[task.start : task.stop].copy()
    counted, places = codes == COUNTED, np.arange(task.start, task.stop)
    stop = window.see_stop + 1 - text.lead if window.n_seen else task.stop
    if text.tokens.carried is not None:
        codes[counted & text.tokens.carried.lost[task.start : task.stop]] = WITHOUT_TEXT
    codes[counted & ((places < window.score_start - text.lead) | (not window.n_seen))] = UNSCORED
    codes[counted & (places >= stop)] = TAIL
    return codes


def reasons(tasks: list[Task], cutting: Cutting) -> pa.Array:
    """Return why each row is not scored, or `LOST`; null if it is scored and carries its text."""
    codes = np.concatenate([np.zeros(0, np.int8), *(reasons_of(task) for task in tasks)])
    names = [*map(UNCOUNTED.__getitem__, sorted(UNCOUNTED)), "tail", cutting.rules.unscored, LOST]
    return pa.DictionaryArray.from_arrays(pa.array(codes - 1, pa.int8(), mask=codes == COUNTED), names)
