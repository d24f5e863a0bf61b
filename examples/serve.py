"""Detect objects over HTTP: DETECTOR=exported/mine uvicorn serve:app; then curl --data-binary @a.jpg :8000/detect"""

import io
import os

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

import tood_jax

MAX_BYTES, MAX_PIXELS = 10_000_000, 25_000_000
app, detector = FastAPI(), tood_jax.load(os.environ["DETECTOR"])


def decode(data: bytes) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise HTTPException(413, "The image has too many pixels.")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise HTTPException(400, "The body is not an image.") from None


@app.post("/detect")
async def detect(request: Request, threshold: float = 0.3) -> list[dict]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BYTES:
            raise HTTPException(413, "The image has too many bytes.")
    if not 0 <= threshold <= 1:
        raise HTTPException(400, "threshold must be a number from 0 to 1.")
    image = await run_in_threadpool(decode, data)
    found = await run_in_threadpool(detector, image, threshold)
    return found.to_coco(0)
