"""Every figure in the documentation, each a command: `python -m benchmarks.NAME --help`."""
