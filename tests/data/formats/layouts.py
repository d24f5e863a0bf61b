"""One small data set, written in each layout that `--data` recognizes."""

import json
import shutil
from pathlib import Path

import cv2
import hotcoco

from tests.data.helpers import smooth_image

NAMES = ("dog", "cat")
SIZES = {"a.png": (30, 40), "b.png": (50, 20), "c.png": (10, 10)}  # (height, width)
BOXES = {"a.png": [(1, [0, 0, 10, 20]), (2, [30, 20, 10, 10])], "b.png": [(2, [4, 5, 8, 30])], "c.png": []}


def coco_tree(names=tuple(SIZES), prefix=""):
    """Return an instances JSON of these images."""
    numbers = list(SIZES)
    images = [
        {"id": numbers.index(name) + 1, "file_name": prefix + name, "height": SIZES[name][0], "width": SIZES[name][1]}
        for name in names
    ]
    annotations = [
        {"id": 10 * image["id"] + i, "image_id": image["id"], "category_id": category, "bbox": box, "iscrowd": 0,
         "area": box[2] * box[3]}
        for image in images
        for i, (category, box) in enumerate(BOXES[image["file_name"].removeprefix(prefix)])
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_images(folder, names=tuple(SIZES)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), smooth_image(*SIZES[name]))


def write_json(file, tree):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))


def _coco(json_name, images_name):
    def write(root):
        for split, names in PARTS.items():
            write_json(root / json_name.format(split), coco_tree(names))
            write_images(root / images_name.format(split), names)

    return write


def _roboflow(root):
    for split, names in {"train": PARTS["train"], "valid": PARTS["val"]}.items():
        write_json(root / split / "_annotations.coco.json", coco_tree(names))
        write_images(root / split, names)


def _official(root):
    _coco("annotations/instances_{}2017.json", "{}2017")(root)
    for other in ("captions", "person_keypoints"):
        write_json(root / f"annotations/{other}_val2017.json", {**coco_tree(), "categories": [{"id": 9, "name": "x"}]})


def _yolo(images_name="images/{}", labels_name="labels/{}", yaml="path: ../datasets/x\ntrain: {}\nval: {}\n"):
    def write(root):
        for split, names in PARTS.items():
            write_images(root / images_name.format(split), names)
            write_json(root / "tree.json", coco_tree(names))
            hotcoco.COCO(str(root / "tree.json")).to_yolo(str(root / labels_name.format(split)))
            (root / labels_name.format(split) / "data.yaml").unlink()
        (root / "tree.json").unlink()
        paths = yaml.format(images_name.format("train"), images_name.format("val"))
        (root / "data.yaml").write_text(f"{paths}nc: 2\nnames: {list(NAMES)}\n")

    return write


def write_voc_files(root, names=tuple(SIZES)):
    """Write Annotations/NAME.xml, as hotcoco does."""
    write_json(root / "tree.json", coco_tree(names))
    hotcoco.COCO(str(root / "tree.json")).to_voc(str(root))
    for name in ("tree.json", "labels.txt"):
        (root / name).unlink()


def _voc(root):
    root = root / "VOCdevkit/VOC2012"
    write_images(root / "JPEGImages")
    write_voc_files(root)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, names in PARTS.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in names))


def _roboflow_voc(root):
    for split, names in {"train": PARTS["train"], "valid": PARTS["val"]}.items():
        write_images(root / split, names)
        write_voc_files(root / split, names)
        for file in (root / split / "Annotations").iterdir():
            shutil.move(file, root / split)
        (root / split / "Annotations").rmdir()


PARTS = {"train": ("a.png", "c.png"), "val": ("b.png",)}
WRITERS = {  # by name: function that writes the set into a folder
    "plain coco": _coco("annotations/instances_{}.json", "{}"),
    "official coco": _official,
    "roboflow coco": _roboflow,
    "datumaro coco": _coco("annotations/instances_{}.json", "images/{}"),
    "fiftyone coco": _coco("{}/labels.json", "{}/data"),
    "cvat coco": _coco("annotations/instances_{}.json", "images"),
    "ultralytics": _yolo(),
    "roboflow yolo": _yolo("{}/images", "{}/labels", "train: ../{}\nval: ../{}\n"),
    "voc": _voc,
    "roboflow voc": _roboflow_voc,
}
