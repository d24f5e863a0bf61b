"""A split in whatever form the config names: a COCO directory, records, or a data set of TensorFlow Datasets."""

from tood_jax.config import SplitConfig
from tood_jax.data.coco import CocoSet, load_coco
from tood_jax.data.errors import DataError
from tood_jax.data.records import load_records
from tood_jax.data.tfds import load_tfds


def load_set(split: SplitConfig) -> CocoSet:
    """Read a split; records or tfds take the place of images and annotations, which a config may name besides.

    Raises DataError, in one sentence, for whatever can't be used.
    """
    if split.records and split.tfds:
        raise DataError(f"data.*: records={split.records} and tfds={split.tfds} each name the whole split: set one.")
    if split.records:
        return load_records(split.records)
    if split.tfds:
        return load_tfds(split.tfds, split.tfds_split)
    return load_coco(split)
