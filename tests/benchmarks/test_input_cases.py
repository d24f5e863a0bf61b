"""The cases input_pipeline and image_decoding."""

import pytest

from benchmarks.cases import image_decoding, input_pipeline
from tests.benchmarks.timings import check_timing


def test_input_pipeline(measured, tmp_path):
    report = measured(
        input_pipeline,
        *("--images=4", "--batch=2", "--threads", "1", "2", "--workers", "0", "--size", "96", "80"),
        *("--short_side=64", "--canvas", "64", "96", f"--folder={tmp_path}/images"),
    )
    assert [(row["threads"], row["workers"]) for row in report["results"]] == [(1, 0), (2, 0)]
    for row in report["results"]:
        check_timing(row["seconds_an_image"])
        assert row["canvas"] == [64, 96]
        assert row["images_per_second"] > 0
        assert row["images_per_core_second"] > 0


def test_image_decoding(measured, capsys):
    report = measured(
        image_decoding, "--images=4", "--short_side=64", "--canvas", "64", "96", "--threads", "1", "--workers"
    )
    rows = {(row["source"], row["decoder"]): row for row in report["results"]}
    for row in rows.values():
        check_timing(row["decoding"])
        check_timing(row["whole"])
        assert row["mean_difference"] < 8
    for source in {source for source, _ in rows}:
        assert rows[source, "cv2 (used here)"]["mean_difference"] == 0
        assert rows[source, "cv2, scaled (data.scaled_decoding)"]["mean_difference"] > 0
    weights = {source: row["mean_file_bytes"] for (source, _), row in rows.items()}
    assert weights["640 × 480, as heavy as COCO's"] == pytest.approx(image_decoding.COCO_BYTES, rel=0.1)
    assert [row["place"] for row in report["places"]][:2] == ["file", "ArrayRecord"]
    (pipeline,) = report["pipelines"]
    chip = next(row for row in report["cores"] if row["chip"] == "TPU v5e")
    assert chip["images_per_second"] == pytest.approx(0.37 * 197 / 1.2)
    assert chip["cores_by_threads"] == pytest.approx(chip["images_per_second"] / pipeline["images_per_core_second"])
    assert chip["cores_by_workers"] is None
    assert "Cores that feed a chip at 37% of its peak" in capsys.readouterr().out
