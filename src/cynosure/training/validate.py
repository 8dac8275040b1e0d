"""Validate during training: score a fixed set of texts with the measuring core, and sample from the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cynosure.measure import Corpus, Say, Scores, remove_run, score
from cynosure.models import LanguageModel, SplitModel, current_head, split
from cynosure.patching import find_causal_lm
from cynosure.system.numbers import finite
from cynosure.text import Document, prefix_token, text_ids
from cynosure.text.template import write
from cynosure.training.folder import SAMPLES, VALIDATION, VALIDATIONS, RunFolder
from cynosure.training.sharding import is_sharded, whole
from cynosure.training.watch import Figures, Watcher

BEGUN_CHARS, N_BEGUN = 200, 16  # characters, then tokens, of a held-out text that one sample continues
N_WRITTEN = 64  # tokens per sample
TEMPERATURE = 0.8
METRICS = ("nats_per_token", "token_perplexity", "bits_per_byte")


class Validator:
    """Scores the same texts as the model changes, and stores the loss of every token in the run's folder.

    Create it when the model is on its device, before Trainer wraps the model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, documents: list[Document], folder: RunFolder, watcher: Watcher, *,
        row_tokens: int, leads: bool, seed: int, special: str = "text", chat: str = "assistant",
    ) -> None:  # fmt: skip
        self.model = LanguageModel(find_causal_lm(model), tokenizer, folder.path.resolve().name)
        self.split = None if is_sharded(model) else split(self.model)
        self.forward = self.model.model.forward  # Accelerate will wrap it in autocast
        self.documents, self.folder, self.watcher = documents, folder, watcher
        self.row_tokens, self.leads, self.seed = row_tokens, leads, seed
        self.special, self.chat = special, chat

    def __call__(self, step: int, tokens: int) -> Figures:
        """Score the texts, sample from the model, append lines for both, and tell the watcher."""
        place = self.folder / VALIDATIONS / f"step-{step:06d}"
        with in_place(self.model.model, self.forward):
            model, parted = self.live()
            scores = score_into(
                parted, self.documents, place, self.row_tokens, self.leads, special=self.special, chat=self.chat
            )
        metrics = {"step": step, "tokens": tokens} | metrics_of(scores)
        samples: list[Figures] = []
        if self.leads:
            self.folder.append(VALIDATION, metrics)
            samples = [{"step": step, "tokens": tokens, **sample} for sample in self.samples(model)]
            for sample in samples:
                self.folder.append(SAMPLES, sample)
        self.watcher.validation(metrics, samples)
        return metrics

    def live(self) -> tuple[LanguageModel, SplitModel]:
        """Return the current model, and its split; of a sharded model, a copy."""
        if self.split is None:
            model = replace(self.model, model=whole(self.model.model))
            return model, split(model)
        # DDP replaces its weights
        return self.model, replace(self.split, head=current_head(self.model.model))

    @torch.no_grad()
    def samples(self, model: LanguageModel) -> list[Figures]:
        """Return samples from the model, drawn with the same random numbers each time."""
        opening, first = prefix_token(model.tokenizer), self.documents[0]
        if first.messages is not None:
            return [self.sample(model, [], asked(model.tokenizer, first))]
        before, parse = [] if opening is None else [opening], self.special == "parse"
        begun: list[int] = text_ids(model.tokenizer, first.text[:BEGUN_CHARS], parse_special=parse).tolist()[:N_BEGUN]
        prompts: list[list[int]] = [[], begun]
        return [self.sample(model, before, prompt) for prompt in prompts if before + prompt]

    def sample(self, model: LanguageModel, before: list[int], prompt: list[int]) -> Figures:
        """Sample a continuation of `before` and the prompt."""
        most = min(self.row_tokens, model.max_positions or self.row_tokens)
        given = [*before, *prompt][: most // 2]
        ids = torch.tensor([given], device=model.device)
        device = model.device
        drawn = {} if device.type == "cpu" else {"device_type": device.type}
        # Training must continue with the same random numbers.
        with torch.random.fork_rng(devices=[device.index or 0] if drawn else [], **drawn):
            torch.manual_seed(self.seed)
            generated = model.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE, top_k=0,
                max_new_tokens=min(N_WRITTEN, most - len(given)), pad_token_id=0, use_cache=True,
            )[0].tolist()  # fmt: skip
        written = model.tokenizer.decode(generated[len(given) :], skip_special_tokens=True)
        return {"prompt": model.tokenizer.decode(given[len(before) :]), "text": written}


def asked(tokenizer: Any, document: Document) -> list[int]:
    """Return the tokens of a chat up to the assistant's first turn."""
    messages = document.messages or []
    n_asked = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    text = write(tokenizer, messages[:n_asked], document.tools, opens=True)
    ids: list[int] = text_ids(tokenizer, text, parse_special=True).tolist()
    return ids


@contextmanager
def in_place(model: Any, forward: Any) -> Iterator[None]:
    """Give the model this forward inside the block: its own, before others wrapped it."""
    now = vars(model).pop("forward", None)
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if now is not None:
            model.forward = now


def score_into(
    model: LanguageModel | SplitModel, documents: list[Document], place: Path, row_tokens: int, leads: bool,
    progress: Say | None = None, *, special: str = "text", chat: str = "assistant",
) -> Scores:  # fmt: skip
    """Score documents under the sliding protocol, with windows of one row, and store the losses in a new folder."""
    if leads:
        remove_run(place)  # from before the run was resumed
    scores = score(
        model, Corpus(documents, {"held out": len(documents)}), window=row_tokens, special=special, chat=chat,
        out=place, progress=progress,
    )  # fmt: skip
    if leads:
        scores.save()
    return scores


def metrics_of(scores: Scores) -> Figures:
    """Return the metrics of a validation line; values that are not finite are None."""
    metrics = {name: named(metric) for name, metric in scores.figures.items() if name in METRICS}
    report = scores.calibration
    calibration = None if report is None else {
        name: getattr(report, name) for name in ("ece", "brier", "best_temperature", "recoverable_nats_per_token")
    }  # fmt: skip
    return metrics | {
        "top1_accuracy": scores.top1_accuracy,
        "mean_entropy": scores.mean_entropy,
        "calibration": calibration,
        "scored_tokens": scores.tokens,
    }


def named(metric: Any) -> Figures:
    return {name: finite(x) for name, x in metric._asdict().items()}
