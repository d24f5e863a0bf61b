"""Train and evaluate a detector by mmdetection, as a job describes; `benchmarks/cases/accuracy.py` starts it.

    .venv-peers/bin/python -m benchmarks.peers.mmdetection_accuracy JOB.json FOLDER           # train and detect
    .venv-peers/bin/python -m benchmarks.peers.mmdetection_accuracy JOB.json FOLDER --check   # one batch
    .venv-peers/bin/python -m benchmarks.peers.mmdetection_accuracy JOB.json FOLDER --detect WEIGHTS.safetensors

It needs the environment of scripts/peers_env.sh. All of training is mmdetection's and mmengine's own: the reading of
files and annotations, resizing, flips, padding, network, assigners, losses, optimizer, schedule and test pipeline. The
job only chooses the images of each batch, their sizes and their flips.

Training writes curve.jsonl (losses, gradient norm and learning rate of each step) and detections.bbox.json (COCO
results on the val split), and resumes at the newest epoch. `--detect` writes the detections of other weights. The check
writes check.npz: the first batch as the network reads it, and its losses and gradient norm in each phase.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import Runner, find_latest_checkpoint
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.peers.accuracy_job import PlannedRow, TrainingJob, read_job
from benchmarks.peers.mmdetection_settings import detector_settings, optimizer_settings, schedule_settings
from tood_jax.config import Config, SplitConfig, from_dict

FLIPS = {(True, False): "horizontal", (False, True): "vertical", (True, True): "diagonal"}


def main() -> None:
    """Check or train."""
    parser = argparse.ArgumentParser(description="Train a detector by mmdetection, as a job describes.")
    parser.add_argument("job", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="only the losses of the first batch")
    parser.add_argument("--detect", default="", help="only the detections of these weights")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0 means its default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # mmengine's checkpoints hold objects of its log, which PyTorch loads only so; the files are this program's own.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    register_all_modules()
    job = read_job(args.job)
    config = from_dict(job.config)
    if args.check:
        check(job, config, args.folder)
    elif args.detect:
        detect(replace(job, weights=args.detect), config, args.folder)
    else:
        train(job, config, args.folder)


def train(job: TrainingJob, config: Config, folder: Path) -> None:
    """Train to the end of the job, and write the detections on the val split."""
    newest = find_latest_checkpoint(str(folder))
    rows = [row for batch in job.batches for row in batch]
    batch_size = config.train.batch_size
    runner = Runner(
        train_dataloader=DataLoader(
            PlannedImages(config.data.train, job.classes, config, rows),
            batch_size,
            sampler=EpochSampler(job.epoch_steps * batch_size),
            collate_fn=pseudo_collate,
        ),
        train_cfg={"type": "EpochBasedTrainLoop", "max_epochs": config.train.epochs},
        optim_wrapper=optimizer_settings(config),
        param_scheduler=schedule_settings(config, job.epoch_steps),
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1}},
        custom_hooks=[CheckWeights(job.weights), WriteCurve(folder / "curve.jsonl")],
        load_from=newest or str(_as_pth(job.weights, folder)),
        resume=newest is not None,
        **_common_settings(job, config, folder),
    )
    runner.train()
    runner.test()


def detect(job: TrainingJob, config: Config, folder: Path) -> None:
    """Write the detections of the job's weights on the val split."""
    weights = str(_as_pth(job.weights, folder))
    Runner(load_from=weights, **_common_settings(job, config, folder)).test()


def _common_settings(job: TrainingJob, config: Config, folder: Path) -> dict[str, Any]:
    """Return the arguments of a Runner for training and for detection alone."""
    return {
        "model": ConfigDict(detector_settings(config, len(job.classes))),
        "work_dir": str(folder),
        "test_dataloader": test_loader(config, job.classes),
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": {
            "type": "CocoMetric",
            "ann_file": config.data.val.annotations,
            "format_only": True,
            "outfile_prefix": str(folder / "detections"),
        },
        "default_scope": "mmdet",
        "randomness": {"seed": config.train.seed},
    }


def _as_pth(weights: str, folder: Path) -> Path:
    """Write weights as a file that mmengine reads, and return its path."""
    path = folder / "initial.pth"
    torch.save({"state_dict": load_file(weights), "meta": {}}, path)
    return path


def check(job: TrainingJob, config: Config, folder: Path) -> None:
    """Write the first batch and its losses with the initial weights, in both phases where there are two."""
    model = MODELS.build(ConfigDict(detector_settings(config, len(job.classes))))
    weights = load_file(job.weights)
    model.load_state_dict(weights | _counters(model))
    model.train()
    images = PlannedImages(config.data.train, job.classes, config, list(job.batches[0]))
    batch = model.data_preprocessor(pseudo_collate([images[i] for i in range(len(images))]), training=True)
    found: dict[str, Any] = {"images": batch["inputs"].numpy()}
    for i, sample in enumerate(batch["data_samples"]):
        found[f"boxes_{i}"] = sample.gt_instances.bboxes.numpy()
        found[f"labels_{i}"] = sample.gt_instances.labels.numpy()
    for phase, epoch in (("warm_up", 0), ("trained", config.train.epochs)):
        MessageHub.get_current_instance().update_info("epoch", epoch)
        model.zero_grad()
        losses = model.loss(batch["inputs"], batch["data_samples"])
        for name, levels in losses.items():
            found[f"{phase}_{name}"] = torch.stack(list(levels)).detach().numpy()
        torch.cat([torch.stack(list(levels)) for levels in losses.values()]).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found[f"{phase}_grad_norm"] = torch.nn.utils.get_total_norm(gradients).numpy()
    np.savez(folder / "check.npz", **found)


def _counters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return BatchNorm's counters, which a file of weights need not have."""
    return {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}


def coco_dataset(split: SplitConfig, classes: tuple[str, ...], pipeline: list[Any], config: Config, test: bool) -> Any:
    """Return mmdetection's data set of a split, with its own filters in training."""
    filters = {"filter_empty_gt": config.data.filter_empty, "min_size": config.data.min_image_side}
    return DATASETS.build(
        {
            "type": "CocoDataset",
            "ann_file": split.annotations,
            "data_prefix": {"img": split.images},
            "metainfo": {"classes": classes},
            "filter_cfg": None if test else filters,
            "pipeline": pipeline,
            "test_mode": test,
        }
    )


def test_loader(config: Config, classes: tuple[str, ...]) -> DataLoader:
    """Return the images of the val split by mmdetection's test pipeline, one at a time."""
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (config.data.max_long_side, config.data.eval_short_side), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return DataLoader(coco_dataset(config.data.val, classes, pipeline, config, test=True), collate_fn=pseudo_collate)


class PlannedImages(Dataset):
    """The images of all steps in their order, each resized and flipped as its row says, by mmdetection's transforms."""

    def __init__(self, split: SplitConfig, classes: tuple[str, ...], config: Config, rows: list[PlannedRow]):
        self._images = coco_dataset(split, classes, [], config, test=False)
        self._rows = rows
        self._load = Compose([{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}])
        self._flip = {
            flips: TRANSFORMS.build({"type": "RandomFlip", "prob": 1.0, "direction": direction})
            for flips, direction in FLIPS.items()
        }
        self._pack = TRANSFORMS.build({"type": "PackDetInputs"})
        self._position = {self._images.get_data_info(i)["img_id"]: i for i in range(len(self._images))}
        self.metainfo = self._images.metainfo

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        sample = self._load(self._images.get_data_info(self._position[row.image_id]))
        resize = {"type": "Resize", "scale": (row.width, row.height), "keep_ratio": False}
        sample = TRANSFORMS.build(resize)(sample)
        flip = self._flip.get((row.flip, row.vertical_flip))
        return self._pack(sample if flip is None else flip(sample))


class EpochSampler(Sampler):
    """The rows of one epoch, in their order."""

    def __init__(self, rows: int):
        self._rows, self._epoch = rows, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; mmengine calls this before each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Any:
        return iter(range(self._epoch * self._rows, (self._epoch + 1) * self._rows))


class CheckWeights(Hook):
    """Check that a new run starts from exactly the job's weights."""

    def __init__(self, weights: str):
        self._weights = weights

    def before_train(self, runner: Runner) -> None:
        """Raise ValueError if a tensor is missing, unexpected or different."""
        if runner.iter:  # resumed
            return
        expected = load_file(self._weights)
        found = runner.model.state_dict()
        found = {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}
        differing = [name for name in {*expected, *found} if not _equal(expected.get(name), found.get(name))]
        if differing:
            raise ValueError(f"{self._weights}: these tensors differ from the model's: {', '.join(sorted(differing))}")


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


class WriteCurve(Hook):
    """Write one line per step."""

    priority = "VERY_LOW"

    def __init__(self, path: Path):
        self._path = path
        self._learning_rate = 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the learning rate that this step uses."""
        self._learning_rate = runner.optim_wrapper.get_lr()["lr"][0]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Append the losses of the step."""
        row = {"step": runner.iter + 1, "learning_rate": self._learning_rate}
        row |= {name: float(value) for name, value in outputs.items()}
        scalars = runner.message_hub.log_scalars
        if "train/grad_norm" in scalars:
            row["grad_norm"] = float(scalars["train/grad_norm"].current())
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
