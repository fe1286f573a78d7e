"""Throughput of the same job on several systems, side by side on one broker: see benchmarks/README.md."""
