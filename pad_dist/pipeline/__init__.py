"""The steps of a run, and what each rank runs under a launcher."""
