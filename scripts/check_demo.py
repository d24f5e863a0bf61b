"""Fails unless the demo reached what the README promises: AP50 ≥ 0.92, AP ≥ 0.70, equal AP on a larger canvas."""

import json
import sys
from pathlib import Path

from tood_jax.cli import evaluate
from tood_jax.evaluation import coco_ap

PROMISED = {"AP50": 0.92, "AP": 0.70}
LARGEST_DIFFERENCE = 0.0005  # of AP between canvases: what rounding to 0.1 % in tables hides
CANVASES = ("160x160", "256x256")  # the demo's images fill the first

rows = [json.loads(line) for line in Path("runs/demo/metrics.jsonl").read_text().splitlines()]
final = [row for row in rows if row["kind"] == "eval"][-1]
print({name: round(final[name], 3) for name in PROMISED}, "at step", final["step"])
missed = {name: final[name] for name, least in PROMISED.items() if not final[name] >= least}
if missed:
    sys.exit(f"The demo fell short of {PROMISED}: {missed}")

truth = json.loads(Path("build/demo_data/annotations/instances_val.json").read_text())
scores = {}
for canvas in CANVASES:
    results = Path(f"runs/demo/on_{canvas}.json")
    evaluate.main(["--checkpoint", "runs/demo", f"--data.buckets={canvas}", "--out", str(results)])
    scores[canvas] = coco_ap.evaluate(truth, json.loads(results.read_text())).AP
print("AP by canvas:", {canvas: round(ap, 5) for canvas, ap in scores.items()})
if abs(scores[CANVASES[0]] - scores[CANVASES[1]]) > LARGEST_DIFFERENCE:
    sys.exit(f"AP depends on the canvas: {scores}.")
