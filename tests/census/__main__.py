"""The census: every class of transformers with a loss of text, through `cynosure.patch` and scoring's split.

python -m tests.census                          all of them: writes results.json and docs/reference/models.md
python -m tests.census --kinds llama t5         print what is found out about these
python -m tests.census --out FILE               all of them, into another file alone
"""

import argparse
import json
from pathlib import Path

from tests.census.kinds import TABLES, kinds_of
from tests.census.results import RESULTS, compact, save, versions
from tests.census.run import in_groups, worker
from tests.census.table import PAGE, page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.census", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=[], help="model types; all by default")
    parser.add_argument("--table", choices=TABLES, help="one of the two tables; both by default")
    parser.add_argument("--out", type=Path, help="write the results here, and no page")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    tables = [given.table] if given.table else TABLES
    if given.worker:
        return worker(given.kinds, given.table)
    records = []
    for table in tables:
        kinds = [kind for kind in kinds_of(table) if kind in given.kinds or not given.kinds]
        for record in in_groups(kinds, table):
            records.append(record)
            print(f"{table} {record['kind']}: {record['status']}", flush=True)
    if given.kinds:
        print(json.dumps(records, indent=1))
    if given.out or not (given.kinds or given.table):
        results = {"versions": versions(), "classes": [compact(record) for record in records]}
        save(results, given.out or RESULTS)
        if not given.out:
            PAGE.write_text(page(results), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
