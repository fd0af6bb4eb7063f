"""Serving: one base and many adapters, for many people at once."""
