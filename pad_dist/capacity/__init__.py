"""What a stage needs on every rank, before any of it is allocated."""
