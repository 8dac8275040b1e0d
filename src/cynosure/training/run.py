"""A training run from texts to a model: begun or gone on with, watched, validated, and left whole at any moment."""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cynosure.loss.gemm import settle
from cynosure.measure import Corpus, Scores
from cynosure.measure.run import as_documents
from cynosure.measure.workers import PATIENCE, Workers
from cynosure.models import load
from cynosure.models.gguf import calm_transformers
from cynosure.models.load import find_device
from cynosure.text import Document, Packed
from cynosure.training.begin import Consent, begin, load_init
from cynosure.training.curves import draw_curves
from cynosure.training.data import Data, Facts, shortened, token_widths
from cynosure.training.folder import DATA, MODEL, SCORES, RunFolder
from cynosure.training.presets import new_model
from cynosure.training.settings import Plan, TrainSettings, shared_anew
from cynosure.training.watch import Figures, Watcher, named

Texts = Corpus | Iterable[str | Path | Document]


@dataclass(frozen=True)
class Trained:
    """What a training has made."""

    folder: Path
    plan: Plan
    parameters: int
    best_step: int | None
    scores: Scores | None  # of the best model on everything held out; None where nothing is
    unigram_bits_per_byte: float | None  # of the same, by the frequencies of bytes in the training text alone

    @property
    def model_folder(self) -> Path:
        """The best model, as transformers and every tool that builds on it load it."""
        return self.folder / MODEL


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
) -> Trained:
    """Train a model on texts, from nothing or from a model that is there, into the folder `out`.

    `texts` and `valid` are as `score` takes them; `valid` is held out besides the share that the settings hold out.
    With `resume` the run in the folder goes on from its last checkpoint, to the same weights bit for bit where the
    machine and the number of threads and processes are the same; texts and settings that are given again must be its
    own. `report_to` are reporters of Trainer, such as "tensorboard". `trust_remote_code` and `allow_unused_weights` are
    as `load` takes them; to resume they are given again.

    Under torchrun the processes share every batch. All of it is in the folder: `train.json`, the data as tokens,
    `metrics.jsonl`, `validation.jsonl`, `samples.jsonl`, checkpoints, the scores of what is held out, `curves.svg` and
    `curves.png`, and the best model in `model`.

    Raises ValueError or FileNotFoundError, before anything is written, for settings or texts that make no training,
    and for a folder that holds anything else or that another process trains in; Diverged when the loss leaves its
    course; OSError when there is no room.
    """
    folder, watcher = RunFolder(Path(out)), watcher or Watcher()
    if asked_to_shard():
        settings = replace(settings or TrainSettings(), fsdp=True)
    known = TrainSettings.of_json(folder.manifest["settings"]) if resume and folder.exists else settings
    check_reporters(report_to)
    consent = Consent(trust_remote_code, allow_unused_weights)
    workers = new_workers((known or TrainSettings()).device)
    with folder.locked() if workers.leads else nullcontext():
        if workers.leads:
            begin(folder, as_corpus(texts), as_corpus(valid), settings, resume, watcher, workers.count, consent)
        workers.meet()
        run = Run(folder, watcher, workers, report_to, consent)
        run.train()
        return run.finish()


def as_corpus(texts: Texts) -> Corpus:
    return texts if isinstance(texts, Corpus) else Corpus(list(as_documents(texts)), {})


def new_workers(device: str) -> Workers:
    """The processes; Accelerate is asked first, which knows what an accelerator's talk through."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        PartialState(cpu=find_device(device).type == "cpu", timeout=PATIENCE)
    return Workers()


def check_reporters(report_to: tuple[str, ...]) -> None:
    """ValueError for a name that is no reporter of Trainer's."""
    from transformers.integrations import integration_utils

    find: Any = integration_utils.get_reporting_integration_callbacks
    find(list(report_to))


def asked_to_shard() -> bool:
    """Whether Accelerate was started to shard the model. It shall not do so again: we let transformers do it."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


class Run:
    """A run whose folder is ready, in one of its processes."""

    def __init__(
        self, folder: RunFolder, watcher: Watcher, workers: Workers, report_to: tuple[str, ...], consent: Consent
    ) -> None:
        self.folder, self.workers, self.report_to, self.consent = folder, workers, report_to, consent
        self.watcher = watcher if workers.leads else Watcher()  # one of the processes speaks
        self.manifest = folder.manifest
        self.settings = TrainSettings.of_json(self.manifest["settings"])
        self.data = Data(folder / DATA, Facts(**self.manifest["facts"]))
        self.tokenizer = self.data.tokenizer(consent.trust_remote_code)
        self.device = find_device(self.settings.device)
        self.plan = self.planned()
        self.repeatable()

    def planned(self) -> Plan:
        """The plan as it was kept; of other micro-batches where there are other processes now."""
        kept = Plan(**self.manifest["plan"])
        if kept.processes == self.workers.count:
            return kept
        return shared_anew(kept, self.settings, self.workers.count, self.device.type)

    def repeatable(self) -> None:
        """Let products and threads be those that the run was begun with; a note where they cannot."""
        missing = settle(self.manifest["products"]) if self.device.type == "cpu" else []
        threads, now = self.manifest["environment"]["threads"], torch.get_num_threads()
        device = self.manifest["device"]
        why = [f"{', '.join(missing)} is not here"] if missing else []
        if self.folder.checkpoints and threads != now:
            why.append(f"{now} threads instead of {threads}")
        if self.folder.checkpoints and device != self.device.type:
            why.append(f"on {self.device.type} instead of {device}")
        if why:
            self.watcher.note(f"the run goes on to rounding, not bit for bit: {', '.join(why)}")

    def model(self) -> Any:
        """The model as it is before its first step."""
        settings = self.settings
        if settings.init is None:
            return new_model(settings.size, self.tokenizer, self.plan.row_tokens, settings.seed)
        model = load_init(settings, self.consent).model
        if settings.lora is None:
            return model
        from cynosure.training.lora import with_updates

        return with_updates(model, settings.lora, settings.seed)

    def train(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        from cynosure.training.loop import Job, Rows, Training, arguments_of

        plan, folder, settings = self.plan, self.folder, self.settings
        model = self.model()
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
        rows = Rows(Packed(self.data.tokenised(), plan.row_tokens, settings.seed), plan.steps * plan.batch_rows)
        training = Training(model, self.tokenizer, rows, arguments, job)
        self.watcher.begin(plan, self.manifest | self.running(training))
        last = max(folder.checkpoints, default=None)
        with calm_transformers():
            training.train(resume_from_checkpoint=None if last is None else str(folder.checkpoints[last]))

    def validator(self, model: Any) -> Any:
        """What scores the model as training goes on; None where nothing is held out."""
        from cynosure.training.validate import Validator

        documents = shortened(self.data.valid(), self.validation_bytes())
        return Validator(
            model, self.tokenizer, documents, self.folder, self.watcher, row_tokens=self.plan.row_tokens,
            leads=self.workers.leads, seed=self.settings.seed,
        ) if documents else None  # fmt: skip

    def running(self, training: Any) -> Figures:
        """What a display needs besides the manifest."""
        from cynosure.training.peak import flops_per_token, peak_flops

        dtype = getattr(torch, self.manifest["dtype"])
        return {
            "peak_flops": peak_flops(dtype, self.device) * self.workers.count,
            "flops_per_token": flops_per_token(training.patched.model, self.plan.row_tokens),
            "resumed_at": max(self.folder.checkpoints, default=0),
            "n_classes": training.n_classes,
        }

    def validation_bytes(self) -> float:
        """About so many bytes are the tokens that a validation may have."""
        facts = self.data.facts
        return self.settings.validate_tokens * facts.train_bytes / max(1, facts.train_tokens)

    def finish(self) -> Trained:
        """Keep the best model apart, score it on everything held out, and draw the curves."""
        folder, best = self.folder, self.folder.best_step
        steps = folder.checkpoints
        chosen = steps.get(best) if best is not None else None
        if self.workers.leads:
            from cynosure.training.lora import keep_model

            keep_model(folder, chosen or steps[max(steps)], self.settings, self.consent)
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
            self.watcher.note(f"scoring all that is held out, {named(len(documents), 'document')}")
            with self.watcher.scoring(sum(len(document.text.encode()) for document in documents)) as progress:
                scores = score_into(
                    model, documents, folder / SCORES, self.plan.row_tokens, self.workers.leads, progress
                )
        baseline = self.data.facts.unigram_bits_per_byte
        return Trained(folder.path, self.plan, self.manifest["parameters"], best, scores, baseline)
