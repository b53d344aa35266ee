"""Entry scripts for deepspeed and torchrun."""
