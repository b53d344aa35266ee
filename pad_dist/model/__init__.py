"""The dense model of a stage in plain torch: backbones, experts, gates and heads."""
