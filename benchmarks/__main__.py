"""`python -m benchmarks`, from the root of a clone."""

from benchmarks.commands import app
from cynosure.cli.app import main

if __name__ == "__main__":  # each process that is measured imports this file again
    main(app, "python -m benchmarks")
