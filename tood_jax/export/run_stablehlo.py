"""Detect objects with an exported detector: python run.py IMAGE … (needs jax, flatbuffers, numpy and Pillow)."""

import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

FOLDER = Path(__file__).resolve().parent


def read_weights(path):
    """Return the float32 arrays of a .safetensors file by name."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = {name: entry for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"}
    parts = {name: slice(*(start + end for end in entry["data_offsets"])) for name, entry in entries.items()}
    return {name: np.frombuffer(data[parts[name]], "<f4").reshape(entries[name]["shape"]) for name in entries}


def choose_canvas(size, canvases, short_side, max_long_side):
    """Return the first canvas that holds an image after resizing, or else the last."""
    scale = min(max_long_side / max(size), short_side / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return next((one for one in canvases if one[0] >= height and one[1] >= width), canvases[-1])


def padded(image, canvas):
    """Return [1, h, w, 3] with zeros below and beside an image: few shapes, because each one is compiled."""
    factor = 1
    while factor * canvas[0] < image.shape[0] or factor * canvas[1] < image.shape[1]:
        factor *= 2
    return np.pad(image, [(0, factor * a - b) for a, b in zip(canvas, image.shape[:2], strict=True)] + [(0, 0)])[None]


def main(paths):
    from PIL import Image, ImageOps

    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    limits = manifest["short_side"], manifest["max_long_side"]
    weights = jax.device_put(read_weights(FOLDER / "weights.safetensors"))
    files = {tuple(one["canvas"]): FOLDER / one["file"] for one in manifest["stablehlo"]["programs"]}
    programs = {key: jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call) for key, path in files.items()}
    for path in paths:
        image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        canvas = choose_canvas(image.shape[:2], list(programs), *limits)
        size = np.asarray([image.shape[:2]], np.int32)
        boxes, scores, labels, counts = programs[canvas](weights, padded(image, canvas), size)
        for box, score, label in zip(*(np.asarray(x)[0, : counts[0]] for x in (boxes, scores, labels)), strict=True):
            category = manifest["classes"][label]["name"]
            print(json.dumps({"image": path, "category": category, "score": float(score), "box": box.tolist()}))


if __name__ == "__main__":
    main(sys.argv[1:])
