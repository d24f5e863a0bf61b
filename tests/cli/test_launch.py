"""The launcher with small programs: environment, output, signals, failures. (test_many_processes.py runs train.py.)"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tood_jax.cli import launch

ROOT = Path(__file__).resolve().parents[2]
WHOAMI = "import os; me = int(os.environ['JAX_PROCESS_ID']); "


def start(tmp_path, code, n=2, **environment):
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-m", "tood_jax.cli.launch", "-n", str(n), "--logs", str(tmp_path / "logs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [*command, str(tmp_path / "program.py")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_environment_output_and_status(tmp_path):
    code = WHOAMI + (
        "print(me, os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_NUM_CPU_DEVICES'], "
        "os.environ['JAX_COORDINATOR_ADDRESS'])"
    )
    process = start(tmp_path, code, n=3, JAX_NUM_CPU_DEVICES="8")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    outputs = [out.split(), *((tmp_path / f"logs/process_{i}.log").read_text().split() for i in (1, 2))]
    assert [words[:3] for words in outputs] == [["0", "3", "1"], ["1", "3", "1"], ["2", "3", "1"]]
    assert len({words[3] for words in outputs}) == 1
    assert not (tmp_path / "logs/process_0.log").exists()


def test_the_first_failure_is_named_and_the_others_are_killed(tmp_path):
    """In a process of its own, because the launcher forks and JAX has threads in this one."""
    (tmp_path / "program.py").write_text(
        WHOAMI + "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if me == 1: sys.exit(7)\n"
        "time.sleep(600)"
    )
    code = (
        "import os, sys, pathlib; from tood_jax.cli import launch\n"
        "environments = [{**os.environ, **launch.process_environment('', 3, index)} for index in range(3)]\n"
        "sys.exit(launch.run([sys.executable, 'program.py'], environments, pathlib.Path('logs'), grace=0.5))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 7  # and not after the 600 s of the others
    assert "launch: process 1 ended with status 7; the others get 0.5 s to end." in done.stderr


def test_the_last_lines_of_the_one_that_failed_are_shown(tmp_path):
    process = start(tmp_path, WHOAMI + "import sys; print('out of luck') if me else None; sys.exit(7 * me)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "launch: process 1 ended with status 7" in err
    assert "out of luck" in err


def test_death_by_a_signal_has_the_exit_status_of_a_shell(tmp_path):
    process = start(tmp_path, WHOAMI + "os.kill(os.getpid(), 9 if me else 0)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "process 1 ended by SIGKILL" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_are_sent_to_all_processes_once(tmp_path, number, status):
    """A run that stops on request is not a failure."""
    code = WHOAMI + (
        "import signal, sys, time\n"
        f"received = []\nsignal.signal({int(number)}, lambda *_: received.append(1))\n"
        f"open(f'{tmp_path}/ready_{{me}}', 'w')\n"
        "while not received: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        f"sys.exit({status} if len(received) == 1 else 1)"
    )
    process = start(tmp_path, code)
    while process.poll() is None and not all((tmp_path / f"ready_{i}").exists() for i in (0, 1)):
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "ended" not in err


def test_processes_do_not_outlive_a_killed_launcher(tmp_path):
    code = WHOAMI + "import time; open(f'" + str(tmp_path) + "/pid_{me}', 'w').write(str(os.getpid())); time.sleep(600)"
    process = start(tmp_path, code)
    files = [tmp_path / f"pid_{i}" for i in (0, 1)]
    while process.poll() is None and not all(file.exists() and file.read_text() for file in files):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    for file in files:
        for _ in range(3000):
            if not Path(f"/proc/{file.read_text()}").exists():
                break
            time.sleep(0.02)
        assert not Path(f"/proc/{file.read_text()}").exists()


def test_shares_of_gpus():
    assert launch.gpu_shares([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert launch.gpu_shares([0, 1, 2, 3], 3, 1) == [[0], [1], [2]]
    assert launch.gpu_shares([], 2) == [[], []]
    with pytest.raises(ValueError, match="3 processes need 3 GPUs, but 2 are visible"):
        launch.gpu_shares([0, 1], 3)
    with pytest.raises(ValueError, match="2 processes need 4 GPUs, but 2 are visible"):
        launch.gpu_shares([0, 1], 2, 2)
    assert launch.visible_gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}) == []
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": "4,6"}) == [0, 1]  # numbered among the visible ones
    assert launch.process_environment("h:1", 2, 1, [2, 3]) == {
        "JAX_COORDINATOR_ADDRESS": "h:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
        "JAX_LOCAL_DEVICE_IDS": "2,3",
    }


@pytest.mark.parametrize("words", [["-n", "2"], ["-n", "0", "train.py"], ["train.py"]])
def test_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit) as end:
        launch.main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err
