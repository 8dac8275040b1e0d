"""Prepare a run: write the data, plan and manifest of a new one, or restore one to its last checkpoint."""

import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
import torch

from cynosure import __version__
from cynosure.loss import check_tolerance, providers
from cynosure.measure import Corpus
from cynosure.measure.storage.manifest import difference
from cynosure.models import (
    LanguageModel,
    Regimes,
    check_apart,
    find_code,
    find_device,
    find_tokenizer,
    load,
    load_tokenizer,
    locate,
    read_regimes,
    weights_digest,
)
from cynosure.patching import Patch, check_ids, embedding_rows
from cynosure.system.upstream import has_fast_bfloat16
from cynosure.training.data import TOKENS, Data, Reading, make_vocabulary, pack, strategy_for, trained_on, write_data
from cynosure.training.division import Division
from cynosure.training.folder import DATA, RunFolder, first_sound
from cynosure.training.integrity import check_files, digests_of
from cynosure.training.manifest import DATA_DIGESTS, KEPT, PACKING
from cynosure.training.packing import Packed
from cynosure.training.presets import new_model
from cynosure.training.settings import TrainSettings, make_plan
from cynosure.training.watch import Figures, Watcher
from cynosure.training.whole import TooLong, WholePacked, row_for


class Consent(NamedTuple):
    """Permissions that the user gives in each call; they are never read from a run's folder."""

    trust_remote_code: bool = False
    allow_unused_weights: bool = False


def load_init(settings: TrainSettings, consent: Consent) -> LanguageModel:
    """Load the model that the run starts from, in float32 on the CPU."""
    assert settings.init is not None
    if Path(settings.init).is_absolute() and not Path(settings.init).exists():
        raise FileNotFoundError(
            f"the starting model is no longer at {settings.init}: put it back, or leave a link to it there"
        )
    return load(settings.init, dtype="float32", device="cpu", **consent._asdict())


def begin(
    folder: RunFolder, texts: Corpus, valid: Corpus, settings: TrainSettings | None, resume: bool, watcher: Watcher,
    processes: int, consent: Consent,
) -> None:  # fmt: skip
    """Prepare the folder: begin a new run, or restore an existing one to its last checkpoint."""
    if resume:
        manifest = folder.manifest
        check_sampling(TrainSettings.of_json(manifest["settings"]), manifest["dtype"])
        check_same(folder, manifest, texts, valid, settings)
        check_code(folder, manifest, consent)
        go_back(folder, manifest, watcher)
        if manifest["plan"]["processes"] != processes:
            watcher.note(
                f"the run has {processes} processes and was started with {manifest['plan']['processes']}: it resumes "
                "up to rounding, not bit for bit, and dropout draws other random numbers"
            )
    else:
        folder.check_free()
        try:
            begin_anew(folder, texts, valid, (settings or TrainSettings()).rooted(), processes, consent, watcher)
        except BaseException:
            folder.clear_begun()
            raise


def go_back(folder: RunFolder, manifest: Figures, watcher: Watcher) -> None:
    """Restore a run to its last intact checkpoint, or to its start if it has kept none.

    Raises Damaged if its data is damaged, or if it has kept checkpoints and none is intact.
    """
    if DATA_DIGESTS in manifest:
        check_files(folder / DATA, manifest[DATA_DIGESTS])
    kept = folder.kept
    if DATA_DIGESTS not in manifest or None in kept.values():
        watcher.note(f"{folder.path} is from an earlier version, which kept no digests: damage may go unnoticed")
    step, wrong = first_sound(folder, sorted(kept, reverse=True), folder.check) if kept else (0, [])
    for what in wrong:
        watcher.note(f"{what}: going back to the checkpoint of step {step:,}")
    folder.rewind(step)


def check_same(
    folder: RunFolder, manifest: Figures, texts: Corpus, valid: Corpus, settings: TrainSettings | None
) -> None:
    """Raise ValueError if texts or settings are given that differ from those of the run."""
    begun = TrainSettings.of_json(manifest["settings"]).rooted()
    for name, given in settings.rooted().given.items() if settings else ():
        own = getattr(begun, name)
        if own is None:  # the plan chose it
            own = manifest["plan"].get(name)
        if given != own:
            raise ValueError(
                f"{folder.path} was started with {name} {own}, not {given}: leave it out to resume the run"
            )
    for name, corpus in (("corpus", texts), ("valid", valid)):
        if corpus.origin.get("texts") and (what := difference({name: manifest[name]}, {name: corpus.origin})):
            raise ValueError(f"{folder.path} was started on other texts: {what}; leave them out: the run has a copy")


def check_code(folder: RunFolder, manifest: Figures, consent: Consent) -> None:
    """Raise ValueError if a run was started with trusted code that is not trusted now, or has changed."""
    kept, settings = manifest.get("code"), TrainSettings.of_json(manifest["settings"])
    if kept and not consent.trust_remote_code:
        raise ValueError(
            f"{folder.path} was started with the model's own Python code: give `trust_remote_code=True` again"
        )
    if consent.trust_remote_code and (what := difference({"code": kept or {}}, {"code": code_of(settings)})):
        raise ValueError(
            f"{folder.path} was started with other code: {what}; restore the model's code, or start another run"
        )


def code_of(settings: TrainSettings) -> dict[str, str]:
    """Return the pins of the custom code of the model or tokenizer that a run starts from."""
    model = locate(settings.init)[0] if settings.init else None
    return find_code(model, find_tokenizer(settings.tokenizer) if settings.tokenizer else None)


def begin_anew(
    folder: RunFolder, texts: Corpus, valid: Corpus, settings: TrainSettings, processes: int, consent: Consent,
    watcher: Watcher,
) -> None:  # fmt: skip
    """Write the data, plan and manifest of a new run. The manifest comes last: it makes the folder a run."""
    check_sampling(settings, chosen_dtype(settings))
    documents = texts.documents if texts.known else list(texts.documents)
    held_out = list(valid.documents)
    division = Division(documents, settings.hold_out, held_out)
    if not any(document.text for document in division.documents):
        raise ValueError("no text to train on: every document is empty")
    if not any(document.text for document in division.train()):
        raise ValueError("no text to train on: every document is in `valid` as well")
    initial = load_init(settings, consent) if settings.init else None
    if initial is not None:
        for note in initial.notes:
            watcher.note(note)
        check_trainable(initial.model)
    folder.clear_begun()
    with folder.replacing(DATA) as place:
        tokenizer = tokenizer_of(settings, division, initial, consent)
        max_positions = initial.max_positions if initial else None
        row_sizes = settings.row_sizes(max_positions, processes)
        data, row_tokens = write_to_fit(place, division, tokenizer, settings, row_sizes, (*texts.notes, *valid.notes))
        model = initial.model if initial else new_model(
            settings.size, data.tokenizer(consent.trust_remote_code), 8, settings.seed
        )  # fmt: skip
        check_tokens(data, model, tokenizer)
        n_parameters = sum(p.numel() for p in model.parameters())
        kind = find_device(settings.device).type
        packing = packed_anew(data, division, settings, row_tokens).packing
        sized = replace(settings, row_tokens=row_tokens)
        plan = make_plan(sized, n_parameters, packing.epoch_tokens, max_positions, processes, kind)
        if (warning := regimes_note(read_regimes(model), plan.row_tokens)) is not None:
            watcher.note(warning)
    code = code_of(settings) if consent.trust_remote_code else {}
    folder.put_manifest({
        "cynosure": __version__,
        "settings": settings.to_json(),
        "plan": plan._asdict(),
        "facts": data.facts._asdict(),
        PACKING: packing._asdict(),
        "parameters": n_parameters,
        "corpus": texts.origin,
        "valid": valid.origin,
        "products": providers(),
        "device": find_device(settings.device).type,
        "dtype": chosen_dtype(settings),
        "environment": environment(),
        DATA_DIGESTS: digests_of(folder / DATA),
        "init_sha256": weights_digest(initial.model) if initial else None,
        KEPT: {},
    } | ({"code": code} if code else {}))  # fmt: skip


def write_to_fit(
    place: Path, division: Division, tokenizer: Any, settings: TrainSettings, row_sizes: list[int], notes: Iterable[str]
) -> tuple[Data, int]:
    """Write the data of a new run, and return it with the row length in tokens.

    A stream takes the first of `row_sizes`, whole documents take the size that suits them. Chats longer than a row are
    written again without their first exchanges.
    """
    how = Reading.of(settings)
    data = write_data(place, division, tokenizer, how, notes)
    texts = data.tokenised()
    lengths = np.diff(texts.edges)
    row_tokens = row_for(lengths, row_sizes) if strategy_for(texts, settings) == "whole" else row_sizes[0]
    if settings.overlong == "cut" and (lengths[texts.chats] > row_tokens).any():
        rmtree(place)
        data = write_data(place, division, tokenizer, how._replace(row_tokens=row_tokens), notes)
    return data, row_tokens


def packed_anew(data: Data, division: Division, settings: TrainSettings, row_tokens: int) -> Packed | WholePacked:
    """Return the rows of a new run. Raises ValueError if it has none, or if `overlong` refuses a document."""
    texts = data.tokenised()
    strategy = strategy_for(texts, settings)
    try:
        return pack(texts, row_tokens, settings, strategy)
    except TooLong as error:
        name = trained_on(division, error.number, Reading.of(settings)).name
        raise ValueError(
            f"{name}: {error}: give longer rows with `row_tokens`, or `overlong='cut'` or `overlong='drop'`"
        ) from None


def regimes_note(regimes: Regimes, row_tokens: int) -> str | None:
    """Return a note on rows so long that a document may change the rotary positions of others in its batch."""
    if not regimes.of(row_tokens):
        return None
    edge = regimes.edges[0]
    return (
        f"with this model, a document of more than {edge:,} tokens changes the rotary positions of all others in its "
        f"batch: `row_tokens={edge}` avoids that"
    )


def chosen_dtype(settings: TrainSettings) -> str:
    """Return the dtype of matmuls: the setting, or for auto bfloat16 where the hardware is fast at it."""
    if settings.dtype != "auto":
        return settings.dtype
    kind, fast = find_device(settings.device).type, False
    if kind == "cpu":
        fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and has_fast_bfloat16()
    elif kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def check_sampling(settings: TrainSettings, dtype: str) -> None:
    """Raise ValueError if the backward would be sampled on a device other than a CPU."""
    device = find_device(settings.device)
    if device.type != "cpu" and check_tolerance(settings.grad_tolerance, getattr(torch, dtype)) > 0:
        raise ValueError(
            f"the sampled backward runs on a CPU, but the device is {device.type}: leave `grad_tolerance` out, or give "
            "`device='cpu'`"
        )


def check_trainable(model: Any) -> None:
    """Raise ValueError if the fused loss does not fit the model, or packed documents attend to each other."""
    check_apart(model, embedding_rows(model) or model.config.get_text_config().vocab_size)
    Patch.on(model).leave()


def tokenizer_of(settings: TrainSettings, division: Division, initial: LanguageModel | None, consent: Consent) -> Any:
    """Return the tokenizer of the initial model, the one named in the settings, or one trained on the text."""
    if initial is not None:
        return initial.tokenizer
    if settings.tokenizer is None:
        return make_vocabulary(division, settings.size, settings.vocab_size)
    return load_tokenizer(find_tokenizer(settings.tokenizer), None, consent.trust_remote_code)


def check_tokens(data: Data, model: Any, tokenizer: Any) -> None:
    """Raise ValueError for token ids that the model has no embedding for."""
    ids = data.tokenised().ids
    extremes = torch.tensor([int(ids.min()), int(ids.max())] if len(ids) else [])
    try:
        check_ids(extremes, embedding_rows(model), "the model's embedding", tokenizer)
    except ValueError as error:
        raise ValueError(f"{data.folder / TOKENS}: {error}") from error


def environment() -> Figures:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
