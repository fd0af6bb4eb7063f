"""Lorica: plan what fits, train at hardware speed, prove it worked, serve them all."""

__version__ = "0.1.0"
