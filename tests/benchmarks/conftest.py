"""What tests of several benchmarks share."""

import json

import pytest

TINY = (  # options of train.py for the smallest network on images of 64×64
    "--train.batch_size=4 --train.eval_batch_size=4 --backbone.width=8 --neck.channels=16 --head.channels=16 "
    "--head.norm_groups=4 --head.num_convs=1 --data.train_short_side=64,64 --data.eval_short_side=64 "
    "--data.max_long_side=64 --data.buckets=64x64"
)
HEAD = {"benchmark", "date", "command", "commit", "machine", "versions", "options", "memory", "results"}


@pytest.fixture
def measured(tmp_path):
    """Run a benchmark with two repeats; its report, which must be what the file holds."""

    def run(module, *argv):
        out = tmp_path / "deep" / "report.json"
        # The cache of the tests stays on: compile times aren't looked at.
        report = module.main([*argv, "--repeats=2", f"--out={out}", "--compilation_cache"])
        assert json.loads(out.read_text(encoding="utf-8")) == report
        assert set(report) >= HEAD
        assert report["machine"]["cores"] >= 1
        assert report["versions"]["jax"]
        assert report["command"].startswith(f"python -m {module.__name__} ")
        return report

    return run
