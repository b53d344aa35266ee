"""The three stages: which parts, which loss, what is copied or frozen."""
