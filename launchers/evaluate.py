"""Rank the catalogue with every trained stage: deepspeed launchers/evaluate.py --config configs/demo.yaml."""

from pad_dist.runtime.threads import limit_threads

limit_threads()

from pad_dist.pipeline.launch import evaluate_main

if __name__ == "__main__":
    evaluate_main()
