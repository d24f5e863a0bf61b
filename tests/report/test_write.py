"""The report of an evaluation: files, their numbers, and a page that shows text of any content."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from tests.report.conftest import HOSTILE, evaluation_of, imperfect_results
from tood_jax.cli.reports import check_report_folder, make_report
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import ClassInfo
from tood_jax.evaluation.matches import count_classes, match
from tood_jax.report.page import Section
from tood_jax.report.write import FIGURES, FILES, write_report


def write(dataset, evaluation, **more):
    files = {}
    analysis = write_report(
        files.__setitem__, evaluation, dataset, name="tiny", step=7, source="the <val> split", **more
    )
    return files, analysis


@pytest.fixture(scope="module")
def report(shapes, evaluated):
    return write(shapes, evaluated, more_sections=[Section("More", "<p>the end</p>")])


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def rows_of(data):
    return list(csv.DictReader(io.StringIO(data.decode())))


class Page(HTMLParser):
    """Tags, their attributes, and text outside of scripts and styles."""

    def __init__(self, data):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(data.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data


def test_all_files_are_written_and_all_pictures_can_be_decoded(report):
    files, _ = report
    assert set(files) == set(FILES)
    assert all(decoded(files[name]) is not None for name in files if name.endswith((".png", ".jpg")))


def test_tables_hold_the_numbers(report, shapes, evaluated):
    files, _ = report
    counts = count_classes(match(shapes.ground_truth(), evaluated.results))
    summary = json.loads(files["metrics.json"])
    rows = rows_of(files["per_class.csv"])
    low, high = summary["intervals"]["AP"]
    assert low < summary["metrics"]["AP"] == evaluated.metrics.AP < high
    for row, entry, count, ap in zip(rows, summary["classes"], counts, evaluated.metrics.class_ap, strict=True):
        assert float(row["AP"]) == pytest.approx(ap, abs=1e-6)
        assert float(row["AP low"]) <= float(row["AP"]) <= float(row["AP high"])
        assert float(row["best threshold"]) == pytest.approx(count.threshold, abs=1e-6)
        assert int(row["objects"]) == count.objects
        assert entry["f1"] == count.f1
    confusion = np.array([[int(x) for x in list(row.values())[1:]] for row in rows_of(files["confusion.csv"])])
    assert confusion[:-1].sum() == summary["objects"]  # each object is found once or missed


def test_the_page_needs_no_other_file_and_runs_no_text_of_the_data(report):
    files, _ = report
    page = Page(files["report.html"])
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert sum(tag == "img" for tag, _ in page.tags) == len(FIGURES) + 16
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any("onerror" in attrs for _, attrs in page.tags)
    for shown in (HOSTILE[0], HOSTILE[1], r"=1+1,\n$\frac{", HOSTILE[3], "the <val> split", "the end"):
        assert shown in page.text
    assert re.search(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", page.text)


def test_the_worst_pictures_show_the_image_with_colored_boxes(report, shapes):
    files, analysis = report
    errors = [len(one.wrong) + len(one.missed) for one in analysis.worst]
    assert errors == sorted(errors, reverse=True)
    picture = decoded(files["worst/01.jpg"])[..., ::-1].astype(int)
    first = analysis.worst[0]
    factor = picture.shape[1] / 64
    x, y, _, height = first.wrong[-1]["bbox"]
    left = picture[round((y + height / 2) * factor), max(0, round(x * factor) - 2) : round(x * factor) + 3]
    assert (left[:, 0] > left[:, 1] + 60).any()  # the left side of a wrong box is red


@pytest.mark.parametrize("case", ["no detections", "no objects", "one class"])
def test_unusual_evaluations_have_a_report(shapes, case):
    dataset, results = shapes, imperfect_results(shapes)
    if case == "no detections":
        results = []
    elif case == "no objects":
        dataset = dataclasses.replace(shapes, annotations=())
    else:
        only = shapes.classes[0].id
        annotations = [one for one in shapes.annotations if one["category_id"] == only]
        dataset = dataclasses.replace(shapes, classes=shapes.classes[:1], annotations=tuple(annotations))
        results = [one for one in results if one["category_id"] == only]
    files, _ = write(dataset, evaluation_of(dataset, results))
    assert {"report.html", "metrics.json", *FIGURES} <= set(files)
    json.loads(files["metrics.json"], parse_constant=pytest.fail)


def test_images_that_cannot_be_read_have_no_picture(shapes, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = tuple(dataclasses.replace(one, path=broken) if i % 2 else one for i, one in enumerate(shapes.images))
    dataset = dataclasses.replace(shapes, images=images)
    files, _ = write(dataset, evaluation_of(dataset, imperfect_results(dataset)))
    assert 0 < sum(name.startswith("worst/") for name in files) <= 12


def test_a_report_replaces_only_files_of_a_former_report(shapes, evaluated, tmp_path):
    folder = tmp_path / "eval" / "7"
    assert make_report(folder, evaluated, shapes, Config(), 7, print) is not None
    check_report_folder(folder)
    nothing = evaluation_of(dataclasses.replace(shapes, annotations=()), [])
    make_report(folder, nothing, dataclasses.replace(shapes, annotations=()), Config(), 7, print)
    assert not list((folder / "worst").iterdir())  # the former pictures are gone
    (folder / "per_class.csv").write_text("edited")
    with pytest.raises(ConfigError, match=r"per_class\.csv was changed or not written by a report"):
        check_report_folder(folder)


def test_without_its_packages_there_is_a_note_and_no_report(shapes, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("tood_jax.cli.reports.has_report_packages", lambda: False)
    notes = []
    assert make_report(tmp_path / "new", evaluated, shapes, Config(), 7, notes.append) is None
    assert "pip install hotcoco matplotlib" in notes[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_eighty_classes_have_a_report(shapes):
    classes = tuple(ClassInfo(100 + i, f"class {i}") for i in range(80 - len(shapes.classes)))
    dataset = dataclasses.replace(shapes, classes=shapes.classes + classes)
    files, _ = write(dataset, evaluation_of(dataset, imperfect_results(shapes)))
    assert len(rows_of(files["per_class.csv"])) == 80
    assert decoded(files["confusion.png"]).shape[0] > 500


@pytest.mark.slow
def test_a_browser_shows_the_page_without_errors(report, tmp_path):
    """Chromium runs the sorting script on the first heading, and counts pictures that did not load."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    check = """<script>window.onload = () => {
      document.querySelector("#classes th:nth-child(2) button").click();
      const bad = [...document.images].filter(one => !one.naturalWidth).length;
      const wide = document.documentElement.scrollWidth > innerWidth;
      const order = [...document.querySelectorAll("#classes td:nth-child(2)")].map(one => +one.dataset.value);
      document.title = `bad ${bad} wide ${wide} falling ${order.every((x, i) => !i || order[i - 1] >= x)}`;
    }; window.onerror = text => document.body.append(`FAILED ${text}`);</script></head>"""
    page = tmp_path / "report.html"
    page.write_bytes(report[0]["report.html"].replace(b"</head>", check.encode(), 1))
    for width in (500, 1400):  # Chromium's windows are not narrower
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        assert "<title>bad 0 wide false falling true</title>" in done.stdout
        assert "FAILED" not in done.stdout.replace("FAILED ${text}", "")
