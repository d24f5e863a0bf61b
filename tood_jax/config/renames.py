"""Config fields that have new names: stored configs and command lines may still use the old ones."""

from collections.abc import Mapping
from typing import Any

from tood_jax.config.conversion import ConfigError

RENAMED = {  # old full name to new full name, of a field or a whole group; fields before the group that holds them
    "learning.assigner": "assigner.kind",
    "learning": "assigner",
}


RENAMED_CLASSES = {"LearningConfig": "AssignerConfig"}  # old name to new name


def renamed_fields(group: str) -> dict[str, str]:
    """Return the old names of the fields of a group (current name; "" for the whole config), with the new ones."""
    names = {old.rpartition(".")[2]: new.rpartition(".") for old, new in RENAMED.items()}
    return {old: leaf for old, (parent, _, leaf) in names.items() if parent == group}


def current_name(name: str) -> str:
    """Return the current full name of a field: `learning.topk` becomes `assigner.topk`."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Move the values of a stored config to the current names.

    Args:
        values: nested dictionaries as `to_dict` returns them, of any age; left as they are.

    Returns:
        (the values under current names, the renamed fields for a note to the user; "" if none is).

    Raises:
        ConfigError: a field has a value under its old name and one under its new name.
    """
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    renamed = []
    for old, new in RENAMED.items():
        group, _, leaf = old.rpartition(".")
        parent = tree.get(group) if group else tree
        if isinstance(parent, dict) and leaf in parent:
            _insert(tree, new, parent.pop(leaf), old)
            renamed.append(f"{old} is now {new}")
    return tree, ", ".join(renamed)


def _insert(tree: dict[str, Any], new: str, value: Any, old: str) -> None:
    """Put a value at a full name; a group is merged with the group that is there."""
    group, _, leaf = new.rpartition(".")
    parent = tree.setdefault(group, {}) if group else tree
    if isinstance(parent, dict) and leaf not in parent:
        parent[leaf] = value
        return
    present = parent.get(leaf) if isinstance(parent, dict) else None
    if not isinstance(value, dict) or not isinstance(present, dict) or value.keys() & present.keys():
        raise ConfigError(f"The config has values under {old} and under {new}, its new name: keep one of them.")
    parent[leaf] = {**present, **value}
