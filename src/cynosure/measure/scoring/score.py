"""Score texts unit by unit, in memory or into a store, in one process or several, and continue stopped runs."""

import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from cynosure import __version__
from cynosure.measure.results.scores import Scores, Setting
from cynosure.measure.scoring.budget import default_batch_tokens, default_unit_tokens
from cynosure.measure.scoring.corpus import Corpus
from cynosure.measure.scoring.scorer import Say, Scorer, reporting
from cynosure.measure.scoring.units import Cutting, units
from cynosure.measure.statistics.calibration import TEMPERATURES
from cynosure.measure.storage.manifest import MANIFEST, difference
from cynosure.measure.storage.rows import DocumentFacts
from cynosure.measure.storage.store import Store, check_own, other_run
from cynosure.measure.storage.texts import LIKELIEST, likeliest_ids
from cynosure.models import SplitModel, split
from cynosure.system.folders import locked
from cynosure.system.workers import Workers
from cynosure.text import (
    PROTOCOLS,
    DoesNotApply,
    adds_bos,
    check_chat,
    check_protocol,
    check_special,
    prefix_token,
    settle_bos,
    token_texts,
)

TOPK = 5  # likeliest tokens kept in a store
BOS_TWICE = (
    "lm-evaluation-harness also scores a second BOS after the first with this tokenizer, so its sum is another; "
    "its add_bos_token=False gives the sum here"
)
LEFT_OUT = {
    "first": "{protocol} leaves BOS out of all windows but a text's first",
    "none": "{protocol} leaves BOS out of every window",
}
EXPECTED = "this model expects it in each, for its tokenizer puts it before every text"

log = logging.getLogger("cynosure")


def score(
    model: Any,
    texts: Corpus | Iterable[Any],
    *,
    tokenizer: Any = None,
    head: Any = None,
    protocol: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    special: str = "auto",
    chat: str = "assistant",
    batch_tokens: int | None = None,
    compile: bool = False,
    out: str | Path | None = None,
    keep: bool = True,
    progress: Say | bool | None = None,
    **reading: Any,
) -> Scores:
    """Score texts with a model under a protocol.

    With `out`, every unit of work is written to that folder as soon as it is done, and the same call continues an
    interrupted one. Without `out` the tokens are kept in memory. Under torchrun the processes share the work, and all
    return the same scores.

    Args:
        model: a name that `load` accepts, a `LanguageModel`, a transformers model, or any module that turns (B, T) ids
            into (B, T, D) hidden states.
        texts: strings, each a document; Paths of files and folders; `Document`s; rows (dicts with `text`, `prompt` and
            `completion`, or `messages`); or a pandas DataFrame or a dataset of such rows. They are read one at a time.
        tokenizer: tokenizer for a model that has none.
        head: head for a module that returns hidden states: a linear layer or a (V, D) weight.
        protocol: `sliding`, `rolling`, `strided`, `strided-legacy`, `llama-cpp` or `blocks`.
        window: number of positions the model sees at once. By default the protocol's, at most all the model has.
        stride: number of tokens that each further window scores, for `sliding` and `strided`. By default half the
            window.
        bos: which windows of `sliding` begin with BOS, or with EOS if there is no BOS: `every`, the `first` of each
            document, or `none`. `auto` is `every` if the tokenizer adds it by default, else `first`.
        special: how to read strings that are special tokens, such as `<|endoftext|>`: as `text`, or `parse`d as those
            tokens. `auto` follows the protocol: `sliding` and `llama-cpp` read text, the others parse.
        chat: which turns of `messages` count: the `assistant`'s, or `all`. What the chat template adds never counts.
        batch_tokens: positions that go through the model at once. By default as many as fit in memory, on a CPU at most
            1024. It changes speed and memory, not the results: rows that would change each other run separately.
        compile: run the backbone under torch.compile.
        out: folder in which every token is kept.
        keep: without `out`, keep the tokens in memory; False keeps only the statistics.
        progress: a function called after every batch, or True for a bar on stderr.
        reading: `column`, `errors`, `split_at` and `bad_rows`, as on the command line.

    Returns:
        The scores, which print as a table.

    Raises:
        ValueError: an option does not fit the model or the texts, the head of the model cannot be read, the model
            returns NaN, the folder holds another run, or there is no token to score.

    Example:
        >>> import cynosure
        >>> scores = cynosure.score("smollm2", ["The cat sat on the mat."])
        >>> scores.tokens, scores.n_bytes
        (7, 23)
    """
    corpus = Corpus.of_texts(texts, **reading)
    split_model = (
        model if isinstance(model, SplitModel) else split(model, tokenizer=tokenizer, head=head, compile=compile)
    )
    workers = Workers()
    cut = partial(make_cutting, split_model, protocol, window, stride, bos=bos, special=special, chat=chat)
    with ExitStack() as stack:
        say = stack.enter_context(reporting(progress))
        if out is None and workers.count == 1:
            return score_in_memory(Scorer(split_model, cut(batch_tokens), 0), corpus, say, keep)
        temporary = out is None and workers.leads
        made = stack.enter_context(TemporaryDirectory(prefix="cynosure-")) if temporary else out
        folder = Path(workers.told(made and str(made)))
        # All use the leader's plan: on an accelerator it depends on free memory, which differs by process.
        cutting = workers.told(as_planned(folder, cut, batch_tokens))
        run = StoredRun(Scorer(split_model, cutting, TOPK), corpus, workers, say)
        store = run.score_into(folder)
        scores = Scores.of_store(store)
        scores.tokenizer = split_model.tokenizer
        if out is None:
            scores.keep()
        workers.meet()  # before the temporary folder is removed
        return scores


def make_cutting(
    model: SplitModel, protocol: str, window: int | None, stride: int | None, batch_tokens: int | None, *,
    bos: str = "auto", special: str = "auto", chat: str = "assistant",
) -> Cutting:  # fmt: skip
    """Decide and check how texts are cut for a model."""
    most = model.max_positions
    if window is None:
        default = PROTOCOLS[protocol].window if protocol in PROTOCOLS else 0
        window = min(default, most or default)
    stride = check_protocol(protocol, window, stride)
    if most is not None and window > most:
        raise ValueError(f"window {window} is more than the {most} positions of {model.name}")
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(model)
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    if protocol == "rolling" and prefix_token(model.tokenizer) is None:
        raise DoesNotApply(
            f"rolling needs a BOS or EOS token, and the tokenizer of {model.name} has neither: use sliding"
        )
    rules = PROTOCOLS[protocol]
    if special == "auto":
        special = "parse" if rules.parses else "text"
    check_special(special)
    check_chat(chat)
    opened = settle_bos(model.tokenizer, rules, bos, model.name)
    unit_tokens = default_unit_tokens(model, batch_tokens)
    return Cutting(protocol, window, stride, batch_tokens, unit_tokens, opened, special, chat)


def setting(scorer: Scorer) -> Setting:
    """Return the setting of a run, with the notes that are known before scoring."""
    model, cutting = scorer.model, scorer.cutting
    notes = list(model.notes)
    if cutting.bos in LEFT_OUT and adds_bos(model.tokenizer):
        notes.append(f"{LEFT_OUT[cutting.bos].format(protocol=cutting.protocol)}, and {EXPECTED}")
        notes += [BOS_TWICE] if cutting.protocol == "rolling" else []
    notes += scorer.batching.known(cutting.window)
    return Setting(
        model.name, cutting.protocol, cutting.window, cutting.stride, model.dtype, model.device.type, tuple(notes),
        cutting.bos, cutting.special, cutting.chat,
    )  # fmt: skip


def score_in_memory(scorer: Scorer, corpus: Corpus, say: Say, keep: bool) -> Scores:
    scores = Scores(setting(scorer), tables=[] if keep else None, tokenizer=scorer.model.tokenizer)
    start = time.perf_counter()
    for tasks, facts in units(scorer.model.tokenizer, corpus.documents, scorer.cutting):
        scores.add(scorer.score(tasks, facts, say), 0.0)
    scores.seconds = max(0.0, time.perf_counter() - start)
    scores.setting = scores.setting._replace(notes=(*scores.setting.notes, *scorer.batching.found, *corpus.notes))
    scores.check()
    return scores


def as_planned(folder: Path, cut: Callable[[int | None], Cutting], batch_tokens: int | None) -> Cutting:
    """Decide how texts are cut. If the folder already holds a run, reuse its batch and unit sizes."""
    try:
        kept = Store.open(folder).manifest["cutting"]
        batch, unit = int(kept["batch_tokens"]), int(kept["unit_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return cut(batch_tokens)  # no run, or one that `Store.begin` will refuse
    return cut(batch_tokens or batch)._replace(unit_tokens=unit)


class StoredRun(NamedTuple):
    """The work of a run on disk, and the processes that share it."""

    scorer: Scorer
    corpus: Corpus
    workers: Workers
    say: Say

    def score_into(self, folder: Path) -> Store:
        """Score what the folder lacks, and return the finished run."""
        lock = locked(folder, "scoring into", lambda: check_own(folder)) if self.workers.leads else nullcontext(False)
        with lock as writable:
            return self.fill(folder) if self.workers.told(writable) else self.find(folder)

    def fill(self, folder: Path) -> Store:
        """Do the same in a folder that is locked for this run."""
        workers = self.workers
        if workers.leads:
            Store.begin(folder, self.manifest())
        workers.meet()
        store = Store.open(folder)
        done = workers.told(store.whole_shards() if workers.leads else None)
        n_units = store.manifest.get("units")
        if not (n_units is not None and self.corpus.known and len(done) == n_units):
            with as_begun(store, self.scorer.model.device):
                n_units = self.score_units(store, done)
        workers.meet()
        store = Store.open(folder)
        if workers.leads:
            store.finish(n_units, (*self.scorer.batching.found, *self.corpus.notes))
            if len(done) < n_units or not store.token_texts():
                self.put_token_texts(store)
        workers.meet()
        return store if workers.leads else Store.open(folder)

    def put_token_texts(self, store: Store) -> None:
        """Write the texts of the likeliest tokens. A model may have more ids than its tokenizer; those have no text."""
        tokenizer = self.scorer.model.tokenizer
        ids = likeliest_ids(store.columns(number, LIKELIEST) for number in range(store.manifest["units"]))
        ids = ids[ids <= max(tokenizer.get_vocab().values())]
        texts = token_texts(tokenizer, ids)
        store.put_token_texts(dict(zip(ids.tolist(), texts, strict=True)))

    def find(self, folder: Path) -> Store:
        """Return the finished run in a read-only folder. Raise ValueError if there is none, or another."""
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder} cannot be written and holds no run: give another `out`")
        store = Store.open(folder)
        if self.workers.leads and (different := difference(store.manifest, self.manifest())):
            raise other_run(folder, different)
        n_units = store.manifest.get("units")
        if n_units is None or store.first_missing is not None:
            raise ValueError(
                f"{folder} is unfinished and cannot be written: copy it to a writable folder, and score into that"
            )
        if not self.corpus.known:
            self.score_units(store, set(store.files))
        self.workers.meet()
        return store

    def score_units(self, store: Store, done: set[int]) -> int:
        """Score this process's share of the units, and return the number of all units."""
        scorer, number, known = self.scorer, -1, store.manifest.get("units")
        if done and self.workers.leads:
            log.info("resuming in %s: %d shards are already there", store.folder, len(done))
        work = units(scorer.model.tokenizer, self.corpus.documents, scorer.cutting)
        for number, (tasks, facts) in enumerate(work):
            if known is not None and number >= known:
                raise other_texts(store, "there is more text now")
            if not self.workers.shares(number):
                continue
            if number in done:
                check_same(store, number, facts)
                continue
            start = time.perf_counter()
            shard = scorer.score(tasks, facts, self.say)
            store.write(number, shard, (time.perf_counter() - start) / self.workers.count)
        if known is not None and number + 1 < known:
            raise other_texts(store, "there was more text")
        return number + 1

    def manifest(self) -> dict[str, Any]:
        """Return the manifest: all that the metrics depend on, and the environment."""
        model, cutting = self.scorer.model, self.scorer.cutting
        return {
            "cynosure": __version__,
            "model": {
                "name": model.name,
                "dtype": model.dtype,
                "weights_sha256": model.weights_sha256(),
                "tokenizer_sha256": model.tokenizer_sha256(),
            }
            | ({"code": model.code} if model.code else {}),
            "setting": setting(self.scorer).to_json(),
            "cutting": cutting._asdict(),
            "corpus": self.corpus.origin,
            "temperatures": list(TEMPERATURES),
            "topk": self.scorer.topk,
            "environment": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
            },
        }


@contextmanager
def as_begun(store: Store, device: torch.device) -> Iterator[None]:
    """Use as many threads as the run was started with, because the last bits of a loss on a CPU depend on it."""
    begun, now = store.environment.get("threads"), torch.get_num_threads()
    if device.type != "cpu" or type(begun) is not int or begun < 1 or begun == now:
        yield
        return
    log.info("%s was started with %d CPU thread(s): continuing with as many, not with %d", store.folder, begun, now)
    torch.set_num_threads(begun)
    try:
        yield
    finally:
        torch.set_num_threads(now)


def check_same(store: Store, number: int, facts: list[DocumentFacts]) -> None:
    """Raise ValueError if the documents of a unit are not those of its shard."""
    for old, new in zip_longest(store.facts(number), facts):
        if old != new:
            raise other_texts(store, f"{(old or new).name} was different")


def other_texts(store: Store, why: str) -> ValueError:
    return ValueError(
        f"{store.folder} holds another run: its text has changed, {why}; give another `out`, or score the same again"
    )
