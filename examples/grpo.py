"""Teach a tiny model of random weights to sort three digits with GRPO: a program rewards its answers.

python examples/grpo.py  # draws a chart in a temporary folder, or in the file that you name: grpo.svg
"""

import sys
import tempfile

import altair as alt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cynosure import losses, token_logprobs

DIGITS, EQUALS = 3, 10  # the ids of the digits are 0 to 9; this one ends a prompt
PROMPTS, GROUP, STEPS = 16, 16, 150  # a group is the answers to one prompt

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=11,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)


def rewards_of(digits, answers):
    """Return the share of digits in their place, for each answer: 1.0 for 371=137, a third for 371=173."""
    return (answers == digits.sort(dim=-1).values).float().mean(dim=-1)


curves = [{"step": step, "share": 0.1, "of": "digits in place by chance"} for step in (0, STEPS - 1)]
for step in range(STEPS):
    digits = torch.randint(10, (PROMPTS, DIGITS)).repeat_interleave(GROUP, dim=0)
    prompts = torch.nn.functional.pad(digits, (0, 1), value=EQUALS)
    texts = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=DIGITS
    )
    rewards = rewards_of(digits, texts[:, -DIGITS:])

    labels = texts.clone()
    labels[:, :-DIGITS] = -100
    logprobs = token_logprobs(model.model(texts).last_hidden_state, model.lm_head.weight, labels, shift=1)
    advantages = losses.group_advantages(rewards, GROUP)
    # Each batch is used once: the model that sampled it is the one that learns from it.
    loss = losses.grpo_loss(logprobs, logprobs.detach(), advantages, labels[:, 1:] != -100)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

    reward, is_sorted = rewards.mean().item(), (rewards == 1).float().mean().item()
    curves.append({"step": step, "share": reward, "of": "digits in place (reward)"})
    curves.append({"step": step, "share": is_sorted, "of": "sorted answers"})
    if step % 25 == 0 or step == STEPS - 1:
        print(f"step {step}: {reward:.4f} mean reward, {is_sorted:.0%} of the answers sorted")

chart = alt.Chart(alt.Data(values=curves), width=520, height=220).mark_line()
chart = chart.encode(
    x=alt.X("step:Q", scale=alt.Scale(nice=False)),
    y=alt.Y("share:Q", title=None, axis=alt.Axis(format="%")),
    color=alt.Color(
        "of:N", title=None, sort=["digits in place (reward)", "sorted answers", "digits in place by chance"]
    ),
)
path = sys.argv[1] if sys.argv[1:] else f"{tempfile.mkdtemp()}/grpo.svg"
chart.properties(background="white").save(path)
print("chart:", path)
