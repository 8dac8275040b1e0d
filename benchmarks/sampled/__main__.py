"""`python -m benchmarks.sampled`, from the root of a clone."""

from benchmarks.sampled.command import app
from cynosure.cli.app import main

if __name__ == "__main__":  # every process of a run imports this file too
    main(app, "python -m benchmarks.sampled")
