"""Adapters between PEFT and Lorica, judged by their outputs: families x options, both ways, with controls."""
