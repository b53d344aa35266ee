"""Elastic checkpoints: files that any number of ranks can read, written while training goes on."""
