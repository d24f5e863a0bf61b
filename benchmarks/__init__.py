"""Benchmarks of tood_jax: `cases` (one file for each table), `peers` (what is compared) and `harness` (how to measure).

Each case runs as `python -m benchmarks.cases.NAME`; `python -m benchmarks.suite` runs a set of them (`make bench`).
Imports go in one direction: `suite` → `cases` → `peers` → `harness` → `tood_jax`. Cases do not import each other.
"""
