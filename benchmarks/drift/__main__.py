"""`python -m benchmarks.drift`."""

from benchmarks.drift.synthetic import main

if __name__ == "__main__":
    main()
