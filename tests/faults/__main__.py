"""`python -m tests.faults`: plant each fault in a copy of the repository, and say which test sees it.

Exit status 1 where a fault is not caught, or where a test that caught one fails without any fault too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.plant import FAULTS, first_failure, first_to_see, planted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=FAULTS, help="This fault. Repeatable.")
    parser.add_argument("--suite", choices=("fast", "all"), default="fast", help="The tests of `make test`, or all.")
    asked = parser.parse_args()
    missed, seen_by = [], []
    for name in asked.only or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            test = first_to_see(FAULTS[name], planted(FAULTS[name], Path(folder)), asked.suite)
        print(f"{name} ({FAULTS[name].breaks}): {f'caught by {test}' if test else 'NOT CAUGHT'}", flush=True)
        (seen_by if test else missed).append(test or name)
    tests = list(dict.fromkeys(test for test in seen_by if "::" in test))
    with tempfile.TemporaryDirectory() as folder:
        wrong = first_failure(planted(None, Path(folder)), tests, "all") if tests else None
    print(f"{len(seen_by)} faults caught, {len(missed)} not: {', '.join(missed) or 'none'}")
    print(f"without a fault {f'{wrong} fails as well' if wrong else f'the {len(tests)} tests that saw them pass'}")
    return 1 if missed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
