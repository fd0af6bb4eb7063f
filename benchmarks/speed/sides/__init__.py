"""Sides: each loads, says it is ready, and takes steps through the gate."""
