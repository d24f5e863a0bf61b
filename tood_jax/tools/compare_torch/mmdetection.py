"""mmdetection as the peer, if it is installed (3.x, with its compiled operators): pip install mmdet mmcv."""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tood_jax.config import Config
from tood_jax.config.conversion import ConfigError
from tood_jax.tools.compare_torch.torch_implementation import architecture_of, real_objects
from tood_jax.tools.compare_torch.torch_reference.boxes import IMAGE_MULTIPLE, STRIDES
from tood_jax.tools.compare_torch.torch_reference.detector import Maps
from tood_jax.types import Batch


def model_dict(config: Config, num_classes: int) -> dict[str, Any]:
    """Return mmdetection's `model = dict(…)` for a config. Raises ConfigError for networks that are not TOOD's."""
    a, head, assigner, detect = architecture_of(config), config.head, config.assigner, config.detect
    backbone: dict[str, Any] = {
        "type": "ResNet" if a.groups == 1 else "ResNeXt",
        "depth": a.depth,
        "base_channels": a.width,
        "stem_channels": a.width,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": a.frozen_stages,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "style": "pytorch",
    }
    if a.groups > 1:
        backbone |= {"groups": a.groups, "base_width": a.width_per_group}
    if a.deformable_stages:
        backbone |= {
            "dcn": {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False},
            "stage_with_dcn": tuple(stage in a.deformable_stages for stage in range(1, 5)),
        }
    activated = {"use_sigmoid": True, "activated": True, "loss_weight": 1.0}
    return {
        "type": "TOOD",
        "backbone": backbone,
        "neck": {
            "type": "FPN",
            "in_channels": [4 * a.width * 2**i for i in range(4)],
            "out_channels": a.neck_channels,
            "start_level": 1,
            "add_extra_convs": "on_output",
            "num_outs": 5,
        },
        "bbox_head": {
            "type": "TOODHead",
            "num_classes": num_classes,
            "in_channels": a.neck_channels,
            "feat_channels": a.head_channels,
            "stacked_convs": a.num_convs,
            "num_dcn": a.deformable_convs,
            "norm_cfg": {"type": "GN", "num_groups": a.norm_groups, "requires_grad": True},
            "anchor_type": "anchor_based" if a.anchor_based else "anchor_free",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": head.anchor_scale,
                "scales_per_octave": 1,
                "strides": list(STRIDES),
            },
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0] * 4,
                "target_stds": list(head.delta_stds),
            },
            "initial_loss_cls": {"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25, **activated},
            "loss_cls": {"type": "QualityFocalLoss", "beta": config.loss.focal_gamma, **activated},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": config.loss.box_loss_weight},
        },
        "train_cfg": {
            "initial_epoch": 1,
            "initial_assigner": {"type": "ATSSAssigner", "topk": assigner.atss_topk},
            "assigner": {"type": "TaskAlignedAssigner", "topk": assigner.topk},
            "alpha": assigner.alpha,
            "beta": assigner.beta,
            "allowed_border": -1,
            "pos_weight": -1,
        },
        "test_cfg": {
            "nms_pre": detect.candidates_per_level,
            "min_bbox_size": 0,
            "score_thr": detect.score_threshold,
            "nms": {"type": "nms", "iou_threshold": detect.nms_iou},
            "max_per_img": detect.max_detections,
        },
    }


class MMDetection:
    """mmdetection's TOOD as a `Network`. Raises ConfigError if mmdetection can't be imported."""

    def __init__(self, config: Config, num_classes: int):
        settings = model_dict(config, num_classes)
        try:
            importlib.import_module("mmdet.models")
            models = importlib.import_module("mmdet.registry").MODELS
            engine, structures, logging = (
                importlib.import_module(name) for name in ("mmengine", "mmengine.structures", "mmengine.logging")
            )
        except Exception as error:  # missing compiled operators raise ImportError, AssertionError and others
            raise ConfigError(
                f"--peer mmdet needs mmdetection 3.x and mmcv with its operators, which can't be imported here "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); "
                f"the peer torch_reference needs only PyTorch."
            ) from None
        engine.registry.init_default_scope("mmdet")
        self._model: Any = models.build(engine.ConfigDict(settings))
        self._model.train()  # its train() sets BatchNorm to running statistics
        self.module: nn.Module = self._model
        self._hub = logging.MessageHub.get_current_instance()
        self._instances = structures.InstanceData

    def maps(self, images: Tensor) -> Maps:
        c = self._model.backbone(images)
        p = self._model.neck(c)
        return Maps(tuple(c), tuple(p), tuple(zip(*self._model.bbox_head(p), strict=True)))

    def losses(self, maps: Maps, batch: Batch, in_tal_phase: bool) -> tuple[Tensor, Tensor, np.ndarray | None]:
        head = self._model.bbox_head
        self._hub.update_info("epoch", int(in_tal_phase))  # the head compares it with initial_epoch = 1
        objects = [self._instances(bboxes=boxes, labels=labels) for boxes, labels in real_objects(batch)]
        scores, boxes = map(list, zip(*maps.head, strict=True))
        losses = head.loss_by_feat(scores, boxes, objects, _image_metas(batch))
        return torch.stack(list(losses["loss_cls"])), torch.stack(list(losses["loss_bbox"])), None

    def detections(self, maps: Maps, batch: Batch) -> list[Any]:
        """Detect in each image on its own padded area, as in mmdetection's evaluation."""
        found = []
        for i, meta in enumerate(_image_metas(batch)):
            height, width, _ = meta["pad_shape"]
            cropped = [
                [m[i : i + 1, :, : -(-height // stride), : -(-width // stride)] for m in level]
                for level, stride in zip(maps.head, STRIDES, strict=True)
            ]
            scores, boxes = map(list, zip(*cropped, strict=True))
            (result,) = self._model.bbox_head.predict_by_feat(scores, boxes, batch_img_metas=[meta], rescale=True)
            found.append(_Detections(result.bboxes, result.scores, result.labels))
        return found


class _Detections:
    def __init__(self, boxes: Tensor, scores: Tensor, labels: Tensor):
        self.boxes, self.scores, self.labels = boxes, scores, labels


def _image_metas(batch: Batch) -> list[dict[str, Any]]:
    """Return mmdetection's metadata of each image."""
    return [
        {
            "img_shape": (int(height), int(width), 3),
            "pad_shape": (_padded(height), _padded(width), 3),
            "scale_factor": (float(scale[1]), float(scale[0])),
        }
        for (height, width), scale in zip(batch.sizes, batch.scales, strict=True)
    ]


def _padded(side: int) -> int:
    return -(-int(side) // IMAGE_MULTIPLE) * IMAGE_MULTIPLE
