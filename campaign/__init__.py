"""Campaigns: what is too long for the tests and is run by `make campaign`, with results in benchmarks/results/."""
