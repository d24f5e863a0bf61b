"""Fails unless the demo reached what the README promises: AP50 ≥ 0.90 and AP ≥ 0.60 on its held-out images."""

import json
import sys
from pathlib import Path

PROMISED = {"AP50": 0.90, "AP": 0.60}

rows = [json.loads(line) for line in Path("runs/demo/metrics.jsonl").read_text().splitlines()]
final = [row for row in rows if row["kind"] == "eval"][-1]
print({name: round(final[name], 3) for name in PROMISED}, "at step", final["step"])
missed = {name: final[name] for name, least in PROMISED.items() if not final[name] >= least}
sys.exit(f"The demo fell short of {PROMISED}: {missed}" if missed else 0)
