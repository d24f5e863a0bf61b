"""The model card of a published detector: README.md with YAML metadata for the Hugging Face Hub."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from tood_jax.untrusted.printable import printable

_METRICS = {  # of `CocoMetrics`, with their names in the table
    "AP": "AP at IoU 0.50–0.95",
    "AP50": "AP at IoU 0.50",
    "AP75": "AP at IoU 0.75",
    "APs": "AP of small objects",
    "APm": "AP of medium objects",
    "APl": "AP of large objects",
}


class Card(NamedTuple):
    """What a model card shows."""

    repo: str  # USER/REPO
    revision: str  # "" for the default branch
    network: str  # in one line
    config_name: str
    step: int
    classes: Sequence[str]
    metrics: dict[str, Any] | None  # as `CocoMetrics.to_dict`; None if the step was not evaluated
    data_name: str  # of the set for `metrics`
    picture: str  # file in the folder; "" without one

    @property
    def name(self) -> str:
        """The name by which tood_jax downloads the model."""
        return f"hf://{self.repo}" + (f"@{quote(self.revision, safe='')}" if self.revision else "")


def card_text(card: Card) -> str:
    """Return the text of README.md."""
    title = card.repo.rpartition("/")[2]
    parts = [
        _metadata(card, title),
        f"# {title}",
        f"An object detector of {len(card.classes)} classes, trained with tood_jax "
        f"(TOOD in JAX, [paper](https://arxiv.org/abs/2108.07755)): {card.network}; config {_cell(card.config_name)}, "
        f"step {card.step}.",
        *([f"![Detections]({card.picture})"] if card.picture else ()),
        "## Use",
        "```bash\n"
        f"tood predict --checkpoint {card.name} --images 'pictures/*.jpg' --out drawn\n"
        f"tood train --config {shlex.quote(printable(card.config_name))} --init_from {card.name}\n"
        "```",
        "```python\n"
        "import tood_jax\n\n"
        f'model = tood_jax.load("{card.name}")\n'
        'found = model("street.jpg", threshold=0.3)\n'
        "print(found.boxes, found.scores, found.names)  # boxes: x0, y0, x1, y1 in pixels\n"
        "```",
        "## Results",
        *_results(card),
        "## Classes",
        ", ".join(_cell(name) for name in card.classes),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(card: Card, title: str) -> str:
    """Return the YAML block; texts are in JSON's form, which YAML has, too."""
    lines = ["library_name: tood_jax", "pipeline_tag: object-detection", "tags: [object-detection, tood, jax]"]
    if card.metrics and card.metrics.get("AP") is not None:
        metrics = [
            f"      - {{type: {key.lower()}, name: {_text(label)}, value: {card.metrics[key]:.4f}}}"
            for key, label in _METRICS.items()
            if card.metrics.get(key) is not None
        ]
        data = _text(printable(card.data_name, 100))
        lines += [
            "model-index:",
            f"- name: {_text(title)}",
            "  results:",
            "  - task: {type: object-detection}",
            f"    dataset: {{type: {data}, name: {data}}}",
            "    metrics:",
            *metrics,
        ]
    return "\n".join(["---", *lines, "---"])


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _results(card: Card) -> list[str]:
    """Return the tables of metrics, or a sentence without them."""
    metrics = card.metrics
    if not metrics or metrics.get("AP") is None:
        return ["This step was not evaluated."]
    rows = [(label, metrics[key]) for key, label in _METRICS.items() if metrics.get(key) is not None]
    tables = [f"On the validation split {_cell(card.data_name)}, in percent:", _table("metric", rows)]
    of_classes = metrics.get("class_ap") or ()
    if len(of_classes) == len(card.classes) > 1:
        rows = [(_cell(name), ap) for name, ap in zip(card.classes, of_classes, strict=True) if ap is not None]
        tables.append(_table("class", rows, "AP"))
    return tables


def _table(first: str, rows: Iterable[tuple[str, float]], second: str = "value") -> str:
    lines = [f"| {first} | {second} |", "|---|---:|", *(f"| {label} | {100 * value:.1f} |" for label, value in rows)]
    return "\n".join(lines)


def _cell(name: str) -> str:
    """Return a name without characters that Markdown or HTML interpret."""
    return "".join(f"&#{ord(one)};" if one in "|<>&`*_[]\\#" else one for one in printable(name, 100))
