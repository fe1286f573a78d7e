"""Made-up web-shop orders as CSV, for trying things out: python examples/orders.py > orders.csv

One row an order, in order of time, about one in eight a fraud. The same rows each time.
"""

import csv
import math
import random
import sys
from datetime import UTC, datetime, timedelta

ROWS = 20_000
COLUMNS = ("order_no", "created_at", "amount", "items", "account_age_days", "country", "card_present", "fraud")
COUNTRIES = ("AT", "CH", "DE", "FR", "IT", "PL")


def main(rows: int) -> None:
    """Write `rows` orders to standard output."""
    chance = random.Random(7)
    writer = csv.writer(sys.stdout)
    writer.writerow(COLUMNS)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(rows):
        at += timedelta(seconds=chance.expovariate(1 / 40))
        amount = round(chance.lognormvariate(3.6, 0.8), 2)
        items = 1 + int(chance.expovariate(0.7))
        age_days = int(chance.expovariate(1 / 300))
        country = chance.choice(COUNTRIES)
        card_present = chance.random() < 0.3
        # New accounts with large orders of few items and no card in hand.
        score = 1.4 * math.log(amount / 36) - age_days / 150 - 0.5 * items - 1.5 * card_present
        fraud = chance.random() < 1 / (1 + math.exp(-score))
        row = (f"o-{n:06}", at.isoformat(timespec="milliseconds"), amount, items, age_days, country)
        writer.writerow((*row, str(card_present).lower(), int(fraud)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
