"""Campaigns: what is too long for the test command, run by `make` targets that leave a result behind."""
