"""Plain NumPy versions of IoU and of COCO's matching, for tests of the analyses."""

import numpy as np


def plain_iou(a, b):
    """IoU of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / max(union, 1e-6)


def plain_matches(boxes, labels, gt_boxes, gt_labels, threshold):
    """The object that each detection takes, best detection first, or -1."""
    free, taken = set(range(len(gt_boxes))), []
    for box, label in zip(boxes, labels, strict=True):
        options = [(plain_iou(box, gt_boxes[m]), -m) for m in free if gt_labels[m] == label]
        iou, m = max(options, default=(0, 0))
        taken.append(-m if options and iou >= threshold else -1)
        free.discard(taken[-1])
    return taken


def random_boxes(rng, count, side=64):
    corner = rng.uniform(0, side * 0.6, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, side * 0.4, (count, 2))], axis=1).astype(np.float32)


def boxes_around(rng, boxes, count, spread):
    """Boxes near random ones of `boxes`."""
    chosen = boxes[rng.integers(len(boxes), size=count)] + rng.normal(0, spread, (count, 4))
    return np.concatenate([chosen[:, :2], np.maximum(chosen[:, 2:], chosen[:, :2] + 1)], axis=1).astype(np.float32)
