"""Train the pretrain_text stage: deepspeed launchers/pretrain_text.py --config CONFIG [section.key=value ...]."""

from pad_dist.runtime.threads import limit_threads

limit_threads()

from pad_dist.pipeline.launch import train_main

if __name__ == "__main__":
    train_main(__file__)
