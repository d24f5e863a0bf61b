"""eval.py: the twelve COCO numbers of a checkpoint."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tood_jax.cli.common import load_trained, parse_with_checkpoint, said_in_one_sentence, use_compilation_cache
from tood_jax.config import ConfigError
from tood_jax.data.sets import load_set
from tood_jax.evaluation.coco_ap import format_table, write_results
from tood_jax.evaluation.evaluate import evaluate_set
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.training.messages import is_first
from tood_jax.training.processes import join, meet
from tood_jax.training.sharding import make_mesh, put_whole, replicated


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. The config comes from it; every field can be overridden."""
    step: str = "best"
    """best (by AP), latest, or the number of a saved step."""
    out: str = ""
    """Where to write the detections as COCO results JSON; empty means STEP.results.json in the run's folder."""


def main(argv: list[str] | None = None) -> None:
    """The door `eval.py`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Evaluate a checkpoint on the val split of its config, or of overrides."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog="eval.py", description=description)
    use_compilation_cache()
    with said_in_one_sentence("eval.py"):
        join()
        say = print if is_first() else lambda *_: None
        dataset = load_set(config.data.val)
        say(f"val: {dataset.report.summary()}")
        trained = load_trained(checkpoint, config)
        if trained.classes != dataset.classes:
            raise ConfigError(
                f"{config.data.val.place} has the categories {[one.name for one in dataset.classes]}, but the "
                f"checkpoint was trained on {[one.name for one in trained.classes]}; ids and names must agree."
            )
        mesh = make_mesh(space=config.parallel.space)
        meet(mesh)
        detect_step = compile_detect_step(trained.model, config, mesh)
        params, batch_stats = put_whole((trained.params, trained.batch_stats), replicated(mesh))
        evaluation = evaluate_set(detect_step, params, batch_stats, dataset, config, mesh)
        say(f"Step {checkpoint.step} of {args.checkpoint} on {config.data.val.place}:")
        say(format_table(evaluation.metrics, [one.name for one in dataset.classes]))
        if evaluation.left_out:
            say(evaluation.left_out)
        out = Path(args.out) if args.out else checkpoint.folder.parent.parent / f"{checkpoint.step}.results.json"
        if is_first():
            write_results(evaluation.results, out)
        say(f"{len(evaluation.results)} detections in {len(evaluation.found)} images written to {out}")
