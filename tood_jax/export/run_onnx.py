"""Detect objects with an exported detector: python run_onnx.py IMAGE … (needs onnxruntime, numpy and Pillow)."""

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent


def choose_canvas(size, canvases, short_side, max_long_side):
    """Return the first canvas that holds an image after resizing, or else the last."""
    scale = min(max_long_side / max(size), short_side / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return next((one for one in canvases if one[0] >= height and one[1] >= width), canvases[-1])


def main(paths):
    import onnxruntime
    from PIL import Image, ImageOps

    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    limits = manifest["short_side"], manifest["max_long_side"]
    files = {tuple(one["canvas"]): one["file"] for one in manifest["onnx"]["programs"] if one["batch"] == 1}
    sessions = {}
    for path in paths:
        image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        canvas = choose_canvas(image.shape[:2], list(files), *limits)
        if canvas not in sessions:
            sessions[canvas] = onnxruntime.InferenceSession(FOLDER / files[canvas])
        size = np.asarray([image.shape[:2]], np.int32)
        boxes, scores, labels, counts = sessions[canvas].run(None, {"images": image[None], "sizes": size})
        for box, score, label in zip(*(x[0, : counts[0]] for x in (boxes, scores, labels)), strict=True):
            category = manifest["classes"][label]["name"]
            print(json.dumps({"image": path, "category": category, "score": float(score), "box": box.tolist()}))


if __name__ == "__main__":
    main(sys.argv[1:])
