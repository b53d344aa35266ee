"""The training loop and the DeepSpeed engine; the only room that imports deepspeed."""
