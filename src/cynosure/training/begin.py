"""The beginning of a run: data, plan and manifest of a new one, or an old one as it was at its last checkpoint."""

import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
import torch

from cynosure import __version__
from cynosure.loss import providers
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
    """What a user agrees to each time a model is loaded; a run's folder does not say it for them."""

    trust_remote_code: bool = False
    allow_unused_weights: bool = False


def load_init(settings: TrainSettings, consent: Consent) -> LanguageModel:
    """The model that a run begins with, in float32 on the CPU."""
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
    """Make the folder what the run goes on from: new, or as it was at its last checkpoint."""
    if resume:
        manifest = folder.manifest
        check_same(folder, manifest, texts, valid, settings)
        check_code(folder, manifest, consent)
        go_back(folder, manifest, watcher)
        if manifest["plan"]["processes"] != processes:
            watcher.note(
                f"the processes are {processes}, and were {manifest['plan']['processes']} when the run was started: it "
                "goes on to rounding, not bit for bit, and dropout draws other random numbers"
            )
    else:
        folder.check_free()
        try:
            begin_anew(folder, texts, valid, (settings or TrainSettings()).rooted(), processes, consent, watcher)
        except BaseException:
            folder.clear_begun()
            raise


def go_back(folder: RunFolder, manifest: Figures, watcher: Watcher) -> None:
    """Take a run back to its last sound checkpoint, or to the first step where it never kept one.

    Raises Damaged where its data is not as it was written, or no checkpoint is.
    """
    if DATA_DIGESTS in manifest:
        check_files(folder / DATA, manifest[DATA_DIGESTS])
    kept = folder.kept
    if DATA_DIGESTS not in manifest or None in kept.values():
        watcher.note(
            f"{folder.path} is of an earlier version that kept no digests: damage to its files may go unnoticed"
        )
    step, wrong = first_sound(folder, sorted(kept, reverse=True), folder.check) if kept else (0, [])
    for what in wrong:
        watcher.note(f"{what}: going back to the checkpoint of step {step:,}")
    folder.rewind(step)


def check_same(
    folder: RunFolder, manifest: Figures, texts: Corpus, valid: Corpus, settings: TrainSettings | None
) -> None:
    """ValueError where texts or settings that are given are not those of the run."""
    begun = TrainSettings.of_json(manifest["settings"]).rooted()
    for name, given in settings.rooted().given.items() if settings else ():
        own = getattr(begun, name)
        if own is None:  # left open, and settled by the plan
            own = manifest["plan"].get(name)
        if given != own:
            raise ValueError(
                f"{folder.path} was started with {name} {own}, not {given}: leave it out to go on with that"
            )
    for name, corpus in (("corpus", texts), ("valid", valid)):
        if corpus.origin.get("texts") and (what := difference({name: manifest[name]}, {name: corpus.origin})):
            raise ValueError(f"{folder.path} was started on other texts: {what}; leave them out, it has its own")


def check_code(folder: RunFolder, manifest: Figures, consent: Consent) -> None:
    """ValueError where a run was started with trusted code, and that is not trusted again or not the same."""
    kept, settings = manifest.get("code"), TrainSettings.of_json(manifest["settings"])
    if kept and not consent.trust_remote_code:
        raise ValueError(
            f"{folder.path} was started with Python code of its model's own: give `trust_remote_code=True` again"
        )
    if consent.trust_remote_code and (what := difference({"code": kept or {}}, {"code": code_of(settings)})):
        raise ValueError(
            f"{folder.path} was started with other code: {what}; restore the model's code, or start another run"
        )


def code_of(settings: TrainSettings) -> dict[str, str]:
    """The pins of the code of the model or tokenizer that a run begins with."""
    model = locate(settings.init)[0] if settings.init else None
    return find_code(model, find_tokenizer(settings.tokenizer) if settings.tokenizer else None)


def begin_anew(
    folder: RunFolder, texts: Corpus, valid: Corpus, settings: TrainSettings, processes: int, consent: Consent,
    watcher: Watcher,
) -> None:  # fmt: skip
    """Data, plan and manifest of a new run; the manifest last, for it is what makes a folder a run."""
    documents = texts.documents if texts.known else list(texts.documents)
    held_out = list(valid.documents)
    division = Division(documents, settings.hold_out, held_out)
    if not any(document.text for document in division.documents):
        raise ValueError("no text to train on: every document is empty")
    if not any(document.text for document in division.train()):
        raise ValueError("no text to train on: every document is in `valid` as well")
    started = load_init(settings, consent) if settings.init else None
    if started is not None:
        for note in started.notes:
            watcher.note(note)
        check_trainable(started.model)
    folder.clear_begun()
    with folder.replacing(DATA) as place:
        tokenizer = tokenizer_of(settings, division, started, consent)
        most = started.max_positions if started else None
        row_sizes = settings.row_sizes(most, processes)
        data, row_tokens = write_to_fit(place, division, tokenizer, settings, row_sizes, (*texts.notes, *valid.notes))
        model = started.model if started else new_model(
            settings.size, data.tokenizer(consent.trust_remote_code), 8, settings.seed
        )  # fmt: skip
        check_tokens(data, model, tokenizer)
        n_parameters = sum(p.numel() for p in model.parameters())
        kind = find_device(settings.device).type
        packing = packed_anew(data, division, settings, row_tokens).packing
        sized = replace(settings, row_tokens=row_tokens)
        plan = make_plan(sized, n_parameters, packing.epoch_tokens, most, processes, kind)
        if (said := regimes_note(read_regimes(model), plan.row_tokens)) is not None:
            watcher.note(said)
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
        "init_sha256": weights_digest(started.model) if started else None,
        KEPT: {},
    } | ({"code": code} if code else {}))  # fmt: skip


def write_to_fit(
    place: Path, division: Division, tokenizer: Any, settings: TrainSettings, row_sizes: list[int], notes: Iterable[str]
) -> tuple[Data, int]:
    """Write the data of a new run, and choose the tokens of a row: the first size, or what suits whole documents.

    Chats that are longer than such a row are written anew without their first exchanges.
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
    """The rows of a new run. ValueError where there are none, or for a document that `overlong` refuses."""
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
    """What to say of rows so long that one document may change the rotary positions of the others in its batch."""
    if not regimes.of(row_tokens):
        return None
    edge = regimes.edges[0]
    return (
        f"a document of more than {edge:,} tokens changes the rotary positions of all others in its batch, as the "
        f"model has it: `row_tokens={edge}` keeps them as they are alone"
    )


def chosen_dtype(settings: TrainSettings) -> str:
    """The dtype of products: as asked for, or bfloat16 where the hardware is fast at it."""
    if settings.dtype != "auto":
        return settings.dtype
    kind, fast = find_device(settings.device).type, False
    if kind == "cpu":
        has = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        fast = has and has_fast_bfloat16()
    elif kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def check_trainable(model: Any) -> None:
    """ValueError where a model cannot be put on our loss, or does not keep the documents of a row apart."""
    check_apart(model, embedding_rows(model) or model.config.get_text_config().vocab_size)
    Patch.on(model).leave()


def tokenizer_of(settings: TrainSettings, division: Division, started: LanguageModel | None, consent: Consent) -> Any:
    """The model's own, the one that is named, or one made of the text."""
    if started is not None:
        return started.tokenizer
    if settings.tokenizer is None:
        return make_vocabulary(division, settings.size, settings.vocab_size)
    return load_tokenizer(find_tokenizer(settings.tokenizer), None, consent.trust_remote_code)


def check_tokens(data: Data, model: Any, tokenizer: Any) -> None:
    """ValueError for tokens that the model has no embedding of."""
    ids = data.tokenised().ids
    ends = torch.tensor([int(ids.min()), int(ids.max())] if len(ids) else [])
    try:
        check_ids(ends, embedding_rows(model), "the model's embedding", tokenizer)
    except ValueError as error:
        raise ValueError(f"{data.folder / TOKENS}: {error}") from error


def environment() -> Figures:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
