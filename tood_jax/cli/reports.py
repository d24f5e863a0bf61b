"""Where programs write the report of an evaluation, and when."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tood_jax.api.missed import cause_rows, count_settings, describe_options, follow_objects, setting_rows
from tood_jax.api.subject import Subject
from tood_jax.cli.outputs import check_output_folder
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import Dataset
from tood_jax.evaluation.evaluate import Evaluation
from tood_jax.evaluation.matches import has_report_packages
from tood_jax.report.analysis import Analysis
from tood_jax.report.history import write_history
from tood_jax.report.page import Section, Shown, paragraph, table
from tood_jax.report.write import FILES, PAGE, write_report
from tood_jax.untrusted.printable import printable


def report_folder(run: Path, step: int) -> Path:
    """Return the folder of the report of a step."""
    return run / "eval" / str(step)


def check_report_folder(folder: Path) -> None:
    """Refuse a folder in which the report would replace files of other origin. Raises ConfigError."""
    check_output_folder("--report_out", folder)
    written = WrittenFiles(folder)
    for name in FILES:
        if (folder / name).exists() and not written.has(name):
            raise ConfigError(
                f"{printable(folder / name)} was changed or not written by a report, which would replace it: name "
                "another folder with --report_out, or set --report=False."
            )


def write_reports(
    config: Config, step: int, evaluation: Evaluation, dataset: Dataset, is_last: bool, log: Callable[[str], object]
) -> None:
    """Write results.csv and results.png into the folder of a run, and after the last evaluation its report."""
    run = Path(config.workdir)
    write_history(run)
    if is_last and dataset.has_annotations:
        folder = report_folder(run, step)
        check_report_folder(folder)
        if make_report(folder, evaluation, dataset, config, step, log):
            log(f"Report: {folder / PAGE}")


def make_report(
    folder: Path,
    evaluation: Evaluation,
    dataset: Dataset,
    config: Config,
    step: int,
    log: Callable[[str], object],
    more_sections: Callable[[], Sequence[Section]] = tuple,
) -> Analysis | None:
    """Write the report of an evaluation into a folder that `check_report_folder` accepted.

    Args:
        more_sections: returns the sections of other analyses; called only if a report is written.

    Returns:
        Its numbers; None, after a note, if the packages of the extra `report` are not installed.
    """
    if not has_report_packages():
        log("Note: there is no report without the packages of tood_jax[report] (pip install hotcoco matplotlib).")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "worst").mkdir(exist_ok=True)
    written = WrittenFiles(folder)
    names = set()

    def write(name: str, data: bytes) -> None:
        written.write(name, data)
        names.add(name)

    analysis = write_report(
        write,
        evaluation,
        dataset,
        name=config.name,
        step=step,
        source=config.data.val.source,
        bit_depth=config.data.bit_depth,
        more_sections=more_sections(),
    )
    for name in FILES:
        if name not in names:  # of a former report with more pictures
            (folder / name).unlink(missing_ok=True)
    return analysis


def missed_section(subject: Subject) -> Section:
    """Return why objects were missed, and what other settings would find: two passes over the images."""
    detect = subject.config.detect
    causes = [
        [name, count, Shown(share, f"{100 * share:.1f} %"), iou, score]
        for name, count, share, iou, score in cause_rows(follow_objects(subject))
    ]
    settings = [
        [name, found, Shown(change, f"{change:+d}"), detections]
        for name, found, change, detections in setting_rows(count_settings(subject), detect)
    ]
    return Section(
        "Missed objects",
        paragraph(
            "Where the best prediction of each object ended. This counts all detections above detect.score_threshold, "
            "the tables above those above the best threshold of their class."
        )
        + table(("cause", "objects", "share", "mean IoU", "mean score"), causes)
        + paragraph(f"Present setting: {describe_options(detect)}. What other settings would find:")
        + table(("setting", "found", "change", "detections"), settings),
    )
