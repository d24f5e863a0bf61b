"""The typed configuration of a run: schema, presets, validation, and conversion to and from JSON."""

from typing import Any

from tood_jax.config.conversion import ConfigError
from tood_jax.config.old_names import warn_renamed
from tood_jax.config.renames import RENAMED_CLASSES
from tood_jax.config.schema import (
    AssignerConfig,
    BackboneConfig,
    Config,
    DetectConfig,
    HeadConfig,
    LossConfig,
    ModelConfig,
    NeckConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from tood_jax.config.schema_data import DataConfig, SplitConfig
from tood_jax.config.serialization import from_dict, load_config_json, save_config, to_dict


def __getattr__(name: str) -> Any:
    """Return a class by its old name."""
    if name not in RENAMED_CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(name, RENAMED_CLASSES[name], stacklevel=2)
    return globals()[RENAMED_CLASSES[name]]


__all__ = [
    "AssignerConfig",
    "BackboneConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DetectConfig",
    "HeadConfig",
    "LossConfig",
    "ModelConfig",
    "NeckConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "SplitConfig",
    "TrainConfig",
    "from_dict",
    "load_config_json",
    "save_config",
    "to_dict",
]
