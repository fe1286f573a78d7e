"""Make the project folder: settings and schema of this example, and elec.csv cut into two files.

    python examples/dynamic-pricing/prepare.py pricing

first.csv is what the first model learns from; market.csv is what market.py plays afterwards.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
#: The first row of elec.csv.
START = datetime(1996, 5, 7, tzinfo=UTC)
HALF_HOUR = timedelta(minutes=30)
DAY_ROWS = 48
#: 27 weeks, to 11 November 1996: a fifth of the data.
FIRST_ROWS = 189 * DAY_ROWS
#: 45 weeks more, to 22 September 1997: Victoria's market opens in them.
MARKET_ROWS = 315 * DAY_ROWS
FEATURES = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
COLUMNS = ("id", "time", "period_of_day", *FEATURES, "move")
PERIODS = ("night", "morning", "afternoon", "evening")
MOVES = {"1": "UP", "0": "DOWN"}


def rows(source: Path = HERE / "elec.csv") -> Iterator[dict[str, str]]:
    """Each row of elec.csv as an event with its label, text as it stands there.

    period_of_day: six hours each, from midnight. move: UP where the price is above its mean of the last 24 hours.
    """
    with source.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            yield {
                "id": f"nsw-{number}",
                "time": (START + number * HALF_HOUR).isoformat(),
                "period_of_day": PERIODS[number % DAY_ROWS * len(PERIODS) // DAY_ROWS],
                **{name: row[name] for name in FEATURES},
                "move": MOVES[row["class"]],
            }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="project folder to make")
    parser.add_argument("--days", type=int, default=MARKET_ROWS // DAY_ROWS, help="days of the market to play")
    options = parser.parse_args()
    if options.folder.exists():
        sys.exit(f"{options.folder}: is there already")
    (options.folder / "schemas").mkdir(parents=True)
    for name in ("pipeline.toml", "schemas/event.avsc"):
        shutil.copy(HERE / name, options.folder / name)
    every = list(rows())
    end = FIRST_ROWS + options.days * DAY_ROWS
    for name, part in (("first.csv", every[:FIRST_ROWS]), ("market.csv", every[FIRST_ROWS:end])):
        with (options.folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(part)
        print(f"{options.folder / name}: {len(part):,} rows, {part[0]['time'][:10]} to {part[-1]['time'][:10]}")


if __name__ == "__main__":
    main()
