"""From the stored dataset to batches: order, negatives and the loader."""
