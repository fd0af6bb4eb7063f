"""Deadlines are off: shared machines make any bound on one example's time fail by chance."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
