"""What each stage needs on a rank: python launchers/plan.py --config CONFIG --world-size 64 --device h200."""

from pad_dist.runtime.threads import limit_threads

limit_threads()

import typer

from pad_dist.cli.main import plan

if __name__ == "__main__":
    typer.run(plan)
