"""Engine, loop, checkpoint and metrics: the only room that imports deepspeed."""
