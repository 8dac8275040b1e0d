"""Fine-tuning a real model on a real text, and training a new one."""
