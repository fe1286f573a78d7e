"""What bounds labels, wherever their values come from."""

OTHER = "other"
#: Far above any honest number of features times four kinds of imputation; 10^4 series are still a small scrape.
LABEL_SETS_MAX = 1024
#: Kafka's limit for topic names is 249.
LABEL_CHARACTERS_MAX = 256


def printable(value: str) -> str:
    """A label value that any scraper can take: valid UTF-8, and short."""
    return value[:LABEL_CHARACTERS_MAX].encode("utf-8", "replace").decode()
