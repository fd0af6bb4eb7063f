"""The quickstart: a tiny base learns text-to-SQL, on generated questions whose held-out half is new in every name and word order."""
