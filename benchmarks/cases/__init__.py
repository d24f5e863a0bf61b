"""One file for each table: `python -m benchmarks.cases.NAME` measures, prints the table and writes a JSON report."""
