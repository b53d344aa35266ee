"""Spark jobs: raw events and a catalogue in, the dataset that training reads out."""
