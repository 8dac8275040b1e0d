"""What an audit can find: every fault by its name, with what it means and how to mend it."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Finding(NamedTuple):
    """A fault: its name, `what` was measured and where, what that means, and the fix."""

    name: str
    what: str
    means: str
    fix: str


class Made(NamedTuple):
    """A check that was made, and its figures; or why it could not be made."""

    check: str
    result: str


@dataclass(frozen=True)
class Audit:
    """The result: faults alone in `findings`, harmless things worth knowing in `notes`, and the checks made."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    checks: tuple[Made, ...]

    @property
    def passed(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{name}: {what}\n  means: {means}\n  fix:   {fix}" for name, what, means, fix in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines) or f"nothing found in {len(self.checks)} checks"


@dataclass
class Report:
    """An audit while it is made."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[Made] = field(default_factory=list)

    def find(self, name: str, what: str) -> None:
        means, fix = FAULTS[name]
        self.findings.append(Finding(name, what, means, fix))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def made(self, check: str, result: str) -> None:
        self.checks.append(Made(check, result))

    def audit(self) -> Audit:
        return Audit(tuple(self.findings), tuple(self.notes), tuple(self.checks))


# name: (what it means, the fix)
FAULTS: dict[str, tuple[str, str]] = {
    # the fused loss
    "fused-loss": (
        "cynosure's own loss is wrong for this head: the fault is cynosure's",
        "do not patch this model, and report it with the model's name",
    ),
    # the shift
    "never-shifted": (
        "each position is asked for the token it has just read, which a model learns to copy: the loss falls to "
        "nearly 0 and nothing is learned",
        "compare logits[:, :-1] with labels[:, 1:], or give labels to the model, which shifts them by itself",
    ),
    "shifted-twice": (
        "each position is asked for the token after the next",
        "shift in one place: models of transformers shift by themselves, so labels must be a copy of input_ids",
    ),
    # padding, prompt, labels
    "padding-labelled": (
        "the model is trained to write padding, and the mean is diluted by tokens that are no text",
        "set labels to -100 wherever attention_mask is 0",
    ),
    "padding-attended": (
        "the text sees the padding before it as if it were text",
        "give an attention_mask that is 0 there: tokenizer(..., padding=True) returns it",
    ),
    "prompt-labelled": (
        "the model is trained to write prompts too",
        "set labels to -100 wherever the mask of the completion is 0",
    ),
    "completion-unlabelled": (
        "the completion, which is what should be learned, is not",
        "label where the mask of the completion is 1: it may have been inverted",
    ),
    "label-crosses-documents": (
        "the last token of a document is asked for the first one of the next, which it cannot know",
        "set labels to -100 where a document begins: labels[position_ids == 0] = -100",
    ),
    "placeholder-labelled": (
        "the model is trained to write the placeholders of images, videos or sounds, which never stand in its answers",
        "set labels to -100 wherever input_ids is such a placeholder",
    ),
    "no-labels": (
        "there is nothing to learn from this batch: its loss is NaN or 0",
        "see that the completion survives truncation, and that the template which marks it is found",
    ),
    # BOS and EOS
    "bos-twice": (
        "the model sees a beginning that it has never seen in training",
        "the template or the text has BOS already: tokenize with add_special_tokens=False",
    ),
    "bos-missing": (
        "the model has learned texts that begin with BOS; without it the first tokens cost more, with some models all",
        "tokenize with add_special_tokens=True, or put tokenizer.bos_token_id first",
    ),
    "eos-unlabelled": (
        "the model never learns to stop. Most often the pad token is EOS, and the collator ignores every pad token",
        "give the tokenizer a pad token of its own, or set labels to -100 by attention_mask instead of by the pad id",
    ),
    # the vocabulary
    "ids-out-of-range": (
        "the embedding has no row for it: an error, on a GPU one that stops the process",
        "use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))",
    ),
    "labels-out-of-range": (
        "no logit stands for it: an error, on a GPU one that stops the process",
        "labels are ids of the vocabulary, or -100 where nothing is to be predicted",
    ),
    "tokenizer-too-large": (
        "tokens have been added to the tokenizer that the model has no row for",
        "model.resize_token_embeddings(len(tokenizer)) after adding tokens",
    ),
    "embedding-and-head-differ": (
        "the configuration ties the two, so one of them has been replaced without the other",
        "model.resize_token_embeddings(n) resizes both; or set tie_word_embeddings=False",
    ),
    "special-tokens-differ": (
        "what the model is trained to end with, begin with or skip is not what it is used with: with another EOS "
        "generation does not stop",
        "set model.config and model.generation_config to the tokenizer's ids",
    ),
    # the loss of a loss_fn
    "scale-dropped": (
        "another model is trained than the one that is used: its probabilities are of another temperature",
        "take the model's logits, or give scale= to the loss",
    ),
    "softcap-dropped": (
        "another model is trained than the one that is used: large logits are not bounded",
        "take the model's logits, or give softcap= to the loss",
    ),
    "bias-dropped": (
        "another model is trained than the one that is used, and the bias of its head never learns",
        "take the model's logits, or give bias= to the loss",
    ),
    "labels-unused": (
        "what the labels leave out (padding, prompts) is trained on all the same",
        "make the targets from batch['labels'], not from batch['input_ids']",
    ),
    "ignored-counted": (
        "the more padding, the smaller the loss and its gradients",
        "divide by the number of labels that are not -100, as F.cross_entropy with ignore_index=-100 does",
    ),
    "counted-before-shift": (
        "the first label of each row has no position before it that predicts it: it is counted, but costs nothing, "
        "so that loss and gradients are too small, more so the shorter the rows",
        "count after the shift: (labels[:, 1:] != -100).sum(), in num_items_in_batch too",
    ),
    "mean-of-rows": (
        "a token of a short row weighs more than one of a long row",
        "sum over all tokens of the batch, then divide once by their number",
    ),
    "not-divided": (
        "the gradient grows with the number of tokens, so that the learning rate means something else in each batch",
        "divide the sum by the number of labelled tokens, or by num_items_in_batch where it is given",
    ),
    "input-dropped": (
        "the model is not shown what the batch says: it may see padding, or texts beside its own",
        "pass every column on: model(**batch)",
    ),
    "loss-multiplied": (
        "loss and gradients are too large by this factor: the learning rate is another than it says",
        "leave out the factor; what accumulates gradients divides by itself",
    ),
    "loss-divided": (
        "loss and gradients are too small by this factor: the learning rate is another than it says. Trainer, "
        "accelerate or num_items_in_batch have divided already",
        "divide once: by num_items_in_batch where it is given, else by the labelled tokens of the batch",
    ),
    "loss-differs": (
        "it is not the mean cross-entropy of the labels; label smoothing, penalties and class weights count as well",
        "if that is not meant, compare with F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
    ),
    "not-finite": (
        "one NaN or infinity reaches every weight with the next step",
        "look for overflow in float16, rows that attend to nothing, or damaged weights",
    ),
    "mean-of-means": (
        "when micro-batches or devices are averaged, a token in a small one weighs more, and the loss is not that of "
        "the whole batch",
        "take num_items_in_batch and return the sum over tokens divided by it; without it, the mean",
    ),
    "accumulation-differs": (
        "accumulated over micro-batches the loss is not that of the whole batch",
        "where num_items_in_batch is given, return the sum over tokens divided by it, and nothing else",
    ),
    # gradients
    "gradient-missing": (
        "this parameter does not learn from the loss: something on the way is detached, in no_grad, or made anew",
        "leave out .detach(), .data, .item() and torch.no_grad() between the model and the loss",
    ),
    "gradient-scaled": (
        "the loss has the right value and gradients of another size: the learning rate is another than it says",
        "look for a gradient that is multiplied by hand, a hook, or a part that is detached",
    ),
    "gradient-differs": (
        "the loss has the right value, but another one is minimised",
        "look for parts of the logits that are detached, and for a backward written by hand",
    ),
    # the level
    "fresh-loss-off": (
        "a model that knows nothing yet should give every token nearly the same chance; too wide an initialisation "
        "costs the first steps, and a loss far below is no fresh model's",
        "initialise the head and embedding with a standard deviation of 0.02, as transformers does",
    ),
    "above-ln-v": (
        "the model is worse than knowing nothing: another tokenizer's ids, broken weights, or text that is none",
        "decode some input_ids with the model's tokenizer and read them; score a plain text with the model",
    ),
}
