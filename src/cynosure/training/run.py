"""Train on texts: start or resume a run, validate it, and keep its folder whole at every moment."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cynosure.loss import settle
from cynosure.measure import Corpus, Scores, html_table, open_run
from cynosure.models import find_device, load, weights_digest
from cynosure.system.numbers import counted
from cynosure.system.quiet import calm_transformers
from cynosure.system.workers import PATIENCE, Workers
from cynosure.text import Document
from cynosure.training.begin import Consent, begin, check_same, check_tokens, environment, load_init
from cynosure.training.curves import draw_curves
from cynosure.training.data import Data, Facts, pack, shortened, token_widths
from cynosure.training.folder import DATA, MODEL, SCORES, RunFolder, first_sound
from cynosure.training.manifest import PACKING
from cynosure.training.presets import new_model
from cynosure.training.settings import TrainingPlan, TrainSettings, shared_anew
from cynosure.training.watch import Figures, Watcher

Texts: TypeAlias = Corpus | Iterable[str | Path | Document]
LOST = re.compile(r"\bgloo\b|NCCL|Connection (reset|closed|refused)")  # in PyTorch's messages when a process is gone


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        folder: the folder of the run.
        plan: sizes, steps and learning rate of the training.
        parameters: number of parameters of the model.
        best_step: the step with the lowest validation loss, whose model is kept; None without validation.
        scores: the best model's scores on all held-out texts; None if nothing is held out.
        unigram_bits_per_byte: bits per byte of the same texts under the training text's byte frequencies.
    """

    folder: Path
    plan: TrainingPlan
    parameters: int
    best_step: int | None
    scores: Scores | None
    unigram_bits_per_byte: float | None

    @property
    def model_folder(self) -> Path:
        """The folder of the best model, in the format of transformers."""
        return self.folder / MODEL

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        plan, step = self.plan, self.best_step
        rows = [
            ("parameters", f"{self.parameters:,}", "", ""),
            ("steps", f"{plan.steps:,}", "", f"of {plan.batch_tokens:,} tokens each"),
            (
                "best step",
                "" if step is None else f"{step:,}",
                "",
                "whose model is kept: the lowest held-out loss",
            ),
        ]
        return html_table(str(self.folder), [*rows, *(self.scores.lines() if self.scores else ())])


def train(
    texts: Texts,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    valid: Texts = (),
    resume: bool = False,
    watcher: Watcher | None = None,
    report_to: tuple[str, ...] = (),
    trust_remote_code: bool = False,
    allow_unused_weights: bool = False,
    **reading: Any,
) -> Trained:
    """Train a model on texts, from random weights or from an existing model.

    The folder `out` gets `train.json`, the data as tokens, `metrics.jsonl`, `validation.jsonl`, `samples.jsonl`,
    checkpoints, the scores on held-out texts, `curves.svg` and `curves.png`, and the best model in `model`. Under
    torchrun every batch is split among the processes.

    Args:
        texts: texts to train on, as for `score`.
        out: folder of the run: a new or empty one, or the one to resume.
        settings: what to train, and how.
        valid: texts to validate on, besides the share that the settings hold out.
        resume: continue the run in `out` from its last checkpoint. If the machine and the numbers of threads and
            processes are the same, the weights are bit for bit those of an uninterrupted run. Texts and settings may be
            left out; those given must be the run's own.
        watcher: follows the training.
        report_to: reporters of Trainer, such as "tensorboard".
        trust_remote_code: as for `load`; give it again to resume.
        allow_unused_weights: as for `load`; give it again to resume.
        reading: how to read texts, as for `score`.

    Returns:
        The folder, the plan, and the scores of the best model on all held-out texts.

    Raises:
        ValueError, FileNotFoundError: before anything is written. Settings or texts cannot be trained on, the folder
            holds anything else or is in use by another process, or the run is too damaged to resume.
        ConnectionError: another process of the run ended.
        Diverged: the loss diverged.
        OSError: the disk is full.
    """
    folder, watcher = RunFolder(Path(out)), watcher or Watcher()
    if asked_to_shard():
        settings = (settings or TrainSettings()).with_(fsdp=True)
    known = TrainSettings.of_json(folder.manifest["settings"]) if resume else settings
    check_reporters(report_to)
    consent = Consent(trust_remote_code, allow_unused_weights)
    workers = new_workers((known or TrainSettings()).device)
    with folder.locked() if workers.leads else nullcontext(False) as writable:
        if resume and not workers.told(writable):
            return find(folder, as_corpus(texts, **reading), as_corpus(valid, **reading), settings)
        if workers.leads:
            corpora = as_corpus(texts, **reading), as_corpus(valid, **reading)
            begin(folder, *corpora, settings, resume, watcher, workers.count, consent)
        workers.meet()
        with folder.dropped_unless_prepared() if workers.leads and not resume else nullcontext():
            run = TrainingRun(folder, watcher, workers, report_to, consent)
            training = run.prepared()
        run.train(training)
        return run.finish()


def find(folder: RunFolder, texts: Corpus, valid: Corpus, settings: TrainSettings | None) -> Trained:
    """Return the finished run of a read-only folder. Raises ValueError if it is unfinished, or another is meant."""
    manifest, steps = folder.manifest, folder.checkpoints
    check_same(folder, manifest, texts, valid, settings)
    plan, facts = TrainingPlan(**manifest["plan"]), Facts(**manifest["facts"])
    try:
        if plan.steps not in steps or not (folder / MODEL).is_dir():
            raise FileNotFoundError(folder / MODEL)
        scores = open_run(folder / SCORES) if facts.valid_documents else None
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{folder.path} is unfinished and cannot be written: copy it to a writable folder, and resume it there"
        ) from error
    best = next(iter(folder.best_first(folder.kept)), None)
    return Trained(folder.path, plan, manifest["parameters"], best, scores, facts.unigram_bits_per_byte)


def as_corpus(texts: Texts, **reading: Any) -> Corpus:
    """Return texts as a corpus, read into memory, since they are passed over several times. A corpus stays as it is."""
    corpus = Corpus.of_texts(texts, **reading)
    return corpus if corpus is texts else corpus._replace(documents=list(corpus.documents))


def new_workers(device: str) -> Workers:
    """Return the processes of the run. Accelerate starts first, because it knows the accelerator's backend."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        PartialState(cpu=find_device(device).type == "cpu", timeout=PATIENCE)
    return Workers()


def check_reporters(report_to: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is not a reporter of Trainer."""
    from transformers.integrations import integration_utils

    find: Any = integration_utils.get_reporting_integration_callbacks
    find(list(report_to))


def asked_to_shard() -> bool:
    """Whether Accelerate was launched to shard the model. It must not shard too, so its variable is removed."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


@contextmanager
def among_the_living() -> Iterator[None]:
    """Raise ConnectionError, in one sentence, if training stops because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise ConnectionError(
            "another process of this run has ended: see its error message; `resume=True` resumes from the last "
            "checkpoint"
        ) from error


class TrainingRun:
    """A run whose folder is prepared, in one of its processes."""

    def __init__(
        self, folder: RunFolder, watcher: Watcher, workers: Workers, report_to: tuple[str, ...], consent: Consent
    ) -> None:
        self.folder, self.workers, self.report_to, self.consent = folder, workers, report_to, consent
        self.watcher = watcher if workers.leads else Watcher()  # only one process reports
        self.manifest = folder.manifest
        self.settings = TrainSettings.of_json(self.manifest["settings"])
        self.data = Data(folder / DATA, Facts(**self.manifest["facts"]))
        self.tokenizer = self.data.tokenizer(consent.trust_remote_code)
        self.device = find_device(self.settings.device)
        self.plan = self.planned()
        self.repeatable()

    def planned(self) -> TrainingPlan:
        """Return the stored plan, with other micro-batches if the number of processes has changed."""
        kept = TrainingPlan(**self.manifest["plan"])
        if kept.processes == self.workers.count:
            return kept
        return shared_anew(kept, self.settings, self.workers.count, self.device.type)

    def repeatable(self) -> None:
        """Use the matmul providers that the run was started with, and note whatever else has changed."""
        missing = settle(self.manifest["products"]) if self.device.type == "cpu" else []
        begun = self.manifest["environment"]
        now: dict[str, Any] = environment()
        why = [f"without {', '.join(missing)}"] if missing else []
        if begun["threads"] != now["threads"]:
            why.append(f"{now['threads']} threads instead of {begun['threads']}")
        if begun["torch"] != now["torch"]:
            why.append(f"torch {now['torch']} instead of {begun['torch']}")
        if self.manifest["device"] != self.device.type:
            why.append(f"on {self.device.type} instead of {self.manifest['device']}")
        if why:
            self.watcher.note(f"the run resumes up to rounding, not bit for bit: {', '.join(why)}")

    def model(self) -> Any:
        """Return the model as it is before the first step."""
        settings = self.settings
        if settings.init is None:
            return new_model(settings.size, self.tokenizer, self.plan.row_tokens, settings.seed)
        model = load_init(settings, self.consent).model
        known = self.manifest.get("init_sha256")
        if known is not None and weights_digest(model) != known:
            raise ValueError(
                f"{settings.init} has other weights than when {self.folder.path} was started with it: put those back, "
                "or train again with another `out`"
            )
        if settings.lora is None:
            return model
        from cynosure.training.lora import with_updates

        return with_updates(model, settings.lora, settings.seed)

    def prepared(self) -> Any:
        """Return the Trainer of this run, ready for training."""
        from cynosure.training.loop import Job, Rows, Training, arguments_of

        plan, folder, settings = self.plan, self.folder, self.settings
        model = self.model()
        check_tokens(self.data, model, self.tokenizer)
        if settings.fsdp and self.workers.count > 1:
            from cynosure.training.sharding import shard

            model = shard(model, self.device)
        else:
            model = model.to(self.device)
        validator = self.validator(model)
        arguments = arguments_of(
            settings, plan, folder, bfloat16=self.manifest["dtype"] == "bfloat16", cpu=self.device.type == "cpu",
            report_to=self.report_to, validated=validator is not None,
        )  # fmt: skip
        widths = token_widths(self.tokenizer) if self.data.facts.bytes_known else None
        job = Job(settings, plan, folder, self.watcher, validator, widths, fresh=settings.init is None)
        strategy = self.manifest.get(PACKING, {}).get("strategy", "stream")
        packed = pack(self.data.tokenised(), plan.row_tokens, settings, strategy)
        rows = Rows(packed, plan.steps * plan.batch_rows)
        return Training(model, self.tokenizer, rows, arguments, job)

    def train(self, training: Any) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        from cynosure.training.loop import check_state

        folder = self.folder
        self.watcher.begin(self.plan, self.manifest | self.running(training))
        last = max(folder.checkpoints, default=None)
        if last is not None:
            check_state(folder.checkpoint(last), last)
        with calm_transformers(), among_the_living():
            training.train(resume_from_checkpoint=None if last is None else str(folder.checkpoint(last)))

    def validator(self, model: Any) -> Any:
        """Return the Validator of this run; None if nothing is held out."""
        from cynosure.training.validate import Validator

        documents = shortened(self.data.valid(), self.validation_bytes())
        return Validator(
            model, self.tokenizer, documents, self.folder, self.watcher, row_tokens=self.plan.row_tokens,
            leads=self.workers.leads, seed=self.settings.seed, special=self.settings.special, chat=self.settings.chat,
        ) if documents else None  # fmt: skip

    def running(self, training: Any) -> Figures:
        """Return what a display needs besides the manifest."""
        from cynosure.training.peak import flops_per_token, peak_flops

        dtype = getattr(torch, self.manifest["dtype"])
        return {
            "peak_flops": peak_flops(dtype, self.device) * self.workers.count,
            "flops_per_token": flops_per_token(training.patched.model, self.plan.row_tokens),
            "resumed_at": max(self.folder.checkpoints, default=0),
            "n_classes": training.n_classes,
        }

    def validation_bytes(self) -> float:
        """Return about how many bytes the tokens of a validation have."""
        facts = self.data.facts
        return self.settings.validate_tokens * facts.train_bytes / max(1, facts.train_tokens)

    def finish(self) -> Trained:
        """Store the best model, score it on all held-out texts, and draw the curves."""
        folder, best = self.folder, self.workers.told(self.best() if self.workers.leads else None)
        if self.workers.leads:
            from cynosure.training.lora import keep_model

            keep_model(folder, folder.checkpoint(best), self.settings, self.consent)
            draw_curves(folder)
        self.workers.meet()
        scores = None
        documents = self.data.valid()
        if documents:
            from cynosure.training.validate import score_into

            trust = self.consent.trust_remote_code
            model = load(
                str(folder / MODEL), dtype="float32", device=self.settings.device, trust_remote_code=trust
            )  # fmt: skip
            model = replace(model, name=folder.path.resolve().name)
            self.watcher.note(f"scoring all held-out texts, {counted(len(documents), 'document')}")
            with self.watcher.scoring(sum(len(document.text.encode()) for document in documents)) as progress:
                scores = score_into(
                    model, documents, folder / SCORES, self.plan.row_tokens, self.workers.leads, progress,
                    special=self.settings.special, chat=self.settings.chat,
                )  # fmt: skip
        baseline = self.data.facts.unigram_bits_per_byte
        validated = best if folder.best_first([best]) else None
        return Trained(folder.path, self.plan, self.manifest["parameters"], validated, scores, baseline)

    def best(self) -> int:
        """Return the step of the best intact checkpoint, or of the last one if none was validated."""
        folder, kept = self.folder, self.folder.kept
        validated = folder.best_first(kept)
        others = sorted(kept.keys() - set(validated), reverse=True)
        step, wrong = first_sound(folder, [*validated, *others], folder.check_checkpoint)
        for what in wrong:
            self.watcher.note(f"{what}: the model is from step {step:,}, the best of the other checkpoints")
        return step
