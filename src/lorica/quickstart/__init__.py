"""The quickstart: a tiny base learns text-to-SQL; each held-out question is new in its names and in its wording."""
