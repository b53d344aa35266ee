"""The stored dataset: versions, manifests, readers, text vectors, quality reports and generated data."""
