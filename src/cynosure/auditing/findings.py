"""The faults that an audit can find: the name of each, what it means and how to fix it."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Finding(NamedTuple):
    """A fault: its name, `what` was measured and where, what it means, and the fix."""

    name: str
    what: str
    means: str
    fix: str


class Made(NamedTuple):
    """A check and its result: the values it measured, or the reason why it was not made."""

    check: str
    result: str


@dataclass(frozen=True)
class Audit:
    """The result of an audit: faults in `findings`, harmless observations in `notes`, and every check in `checks`."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    checks: tuple[Made, ...]

    @property
    def passed(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{name}: {what}\n  means: {means}\n  fix:   {fix}" for name, what, means, fix in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines) or f"no problems found in {len(self.checks)} checks"


@dataclass
class Report:
    """Collects the results of an audit while it runs."""

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
        "the fused loss is wrong for the head of this model: this is a bug in cynosure",
        "do not patch this model, and please report the bug with the model's name",
    ),
    # the shift
    "never-shifted": (
        "each position predicts the token it has just read, which a model learns to copy: the loss falls to nearly 0 "
        "and the model learns nothing useful",
        "compare logits[:, :-1] with labels[:, 1:], or pass labels to the model, which shifts them itself",
    ),
    "shifted-twice": (
        "each position predicts the token after the next",
        "shift only once: transformers models shift labels themselves, so labels must be a copy of input_ids",
    ),
    # padding, prompt, labels
    "padding-labelled": (
        "the model is trained to predict padding, and padding dilutes the mean loss of the text",
        "set labels to -100 wherever attention_mask is 0",
    ),
    "padding-attended": (
        "the text attends to the padding before it as if it were text",
        "pass an attention_mask that is 0 at padding: tokenizer(..., padding=True) returns one",
    ),
    "prompt-labelled": (
        "the model is also trained to write prompts",
        "set labels to -100 wherever the completion mask is 0",
    ),
    "completion-unlabelled": (
        "the model does not learn the completion, which is what it should learn",
        "label the tokens where the completion mask is 1; the mask may be inverted",
    ),
    "label-crosses-documents": (
        "the last token of a document must predict the first token of the next one, which it cannot know",
        "set labels to -100 at the start of each document: labels[position_ids == 0] = -100",
    ),
    "placeholder-labelled": (
        "the model is trained to write placeholders of images, videos or audio, which never occur in its answers",
        "set labels to -100 wherever input_ids is one of these placeholders",
    ),
    "no-labels": (
        "there is nothing to learn from this batch: its loss is NaN or 0",
        "check that truncation keeps the completion, and that the template which marks the completion matches",
    ),
    # BOS and EOS
    "bos-twice": (
        "the model never saw a text start like this in its training",
        "the template or the text already contains BOS: tokenize with add_special_tokens=False",
    ),
    "bos-missing": (
        "the model was trained on texts that begin with BOS. Without it the loss of the first tokens is higher, in "
        "some models the loss of all tokens",
        "tokenize with add_special_tokens=True, or prepend tokenizer.bos_token_id",
    ),
    "eos-unlabelled": (
        "the model never learns to stop. Usually the pad token is EOS, and the collator ignores every pad token",
        "give the tokenizer a separate pad token, or set labels to -100 by attention_mask instead of by the pad id",
    ),
    # the vocabulary
    "ids-out-of-range": (
        "the embedding has no row for this id, so the forward fails; on a GPU the error stops the process",
        "use the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))",
    ),
    "labels-out-of-range": (
        "the head has no logit for this label, so the loss fails; on a GPU the error stops the process",
        "use ids of the vocabulary as labels, and -100 where no token is to be predicted",
    ),
    "tokenizer-too-large": (
        "tokens were added to the tokenizer, but the embedding of the model has no rows for them",
        "call model.resize_token_embeddings(len(tokenizer)) after adding tokens",
    ),
    "embedding-and-head-differ": (
        "the configuration ties the embedding and the head, so one of them was replaced without the other",
        "call model.resize_token_embeddings(n), which resizes both, or set tie_word_embeddings=False",
    ),
    "special-tokens-differ": (
        "the model is trained with other special tokens than it is used with: with another EOS it does not stop",
        "set the ids in model.config and model.generation_config to those of the tokenizer",
    ),
    # the loss of a loss_fn
    "scale-dropped": (
        "the loss trains other logits than the model uses afterwards: their temperature differs",
        "use the model's logits, or pass scale= to the loss",
    ),
    "softcap-dropped": (
        "the loss trains other logits than the model uses afterwards: large logits are not bounded",
        "use the model's logits, or pass softcap= to the loss",
    ),
    "bias-dropped": (
        "the loss trains other logits than the model uses afterwards, and the bias of the head never learns",
        "use the model's logits, or pass bias= to the loss",
    ),
    "labels-unused": (
        "the model is also trained on the tokens that the labels leave out (padding, prompts)",
        "take the targets from batch['labels'], not from batch['input_ids']",
    ),
    "ignored-counted": (
        "the more padding a batch has, the smaller its loss and gradients are",
        "divide by the number of labels that are not -100, as F.cross_entropy with ignore_index=-100 does",
    ),
    "counted-before-shift": (
        "no position predicts the first label of a row, so it adds 1 to the count and nothing to the sum. Loss and "
        "gradients are too small, most of all with short rows",
        "count after the shift: (labels[:, 1:] != -100).sum(), also for num_items_in_batch",
    ),
    "mean-of-rows": (
        "a token of a short row weighs more than a token of a long row",
        "sum over all tokens of the batch, then divide once by their number",
    ),
    "not-divided": (
        "the gradient grows with the number of tokens, so the effective learning rate changes with each batch",
        "divide the sum by the number of labelled tokens, or by num_items_in_batch if it is passed",
    ),
    "input-dropped": (
        "the model does not get all inputs of the batch: it may attend to padding or to other texts of the row",
        "pass every column to the model: model(**batch)",
    ),
    "loss-multiplied": (
        "loss and gradients are too large by this factor: the effective learning rate is not the configured one",
        "remove the factor: the code that accumulates gradients already divides by the number of steps",
    ),
    "loss-divided": (
        "loss and gradients are too small by this factor: the effective learning rate is not the configured one. "
        "Trainer, accelerate or num_items_in_batch already divide",
        "divide once: by num_items_in_batch if it is passed, otherwise by the number of labelled tokens of the batch",
    ),
    "loss-differs": (
        "the loss is not the mean cross-entropy of the labels. Label smoothing, penalties and class weights also "
        "change it",
        "if this is not intended, compare with F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
    ),
    "not-finite": (
        "one NaN or infinity reaches every weight in the next step",
        "look for overflow in float16, rows that attend to nothing, or damaged weights",
    ),
    "mean-of-means": (
        "when losses of micro-batches or devices are averaged, a token of a small one weighs more, and the result is "
        "not the loss of the whole batch",
        "accept num_items_in_batch and return the sum over tokens divided by it, or the mean if it is not passed",
    ),
    "accumulation-differs": (
        "the loss accumulated over micro-batches differs from the loss of the whole batch",
        "if num_items_in_batch is passed, return the sum over tokens divided by it, and nothing else",
    ),
    # gradients
    "gradient-missing": (
        "this parameter does not learn from the loss: something in between is detached, under no_grad, or a new tensor",
        "remove .detach(), .data, .item() and torch.no_grad() between the model and the loss",
    ),
    "gradient-scaled": (
        "the value of the loss is right, but its gradients are scaled: the effective learning rate is not the "
        "configured one",
        "look for a gradient that is multiplied by hand, a hook, or a detached part",
    ),
    "gradient-differs": (
        "the value of the loss is right, but its gradients minimize another loss",
        "look for detached parts of the logits, and for a backward written by hand",
    ),
    # the level
    "fresh-loss-off": (
        "an untrained model should give every token nearly the same probability. A loss far above ln V wastes the "
        "first steps; a loss far below it means that the model is not untrained",
        "initialize the head and the embedding with a standard deviation of 0.02, as transformers does",
    ),
    "above-ln-v": (
        "the model predicts worse than a uniform guess: the ids are from another tokenizer, the weights are broken, or "
        "the input is not text",
        "decode some input_ids with the model's tokenizer and read them; score a plain text with the model",
    ),
}
