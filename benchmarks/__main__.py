"""`python -m benchmarks`, from the root of a clone."""

from benchmarks.commands import app
from cynosure.cli.app import main

if __name__ == "__main__":  # every measured process imports this file too
    main(app, "python -m benchmarks")
