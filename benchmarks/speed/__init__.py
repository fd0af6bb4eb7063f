"""Speed and memory beside PEFT, HF Trainer, torch.compile and full fine-tuning: sides take turns in one run."""
