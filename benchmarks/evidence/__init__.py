"""First evidence: methods beside full fine-tuning, each at its own best learning rate, on fresh seeds."""
