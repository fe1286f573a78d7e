"""`python -m benchmarks.drift`: the score card."""

from benchmarks.drift.card import main

if __name__ == "__main__":
    main()
