#!/usr/bin/env bash
# An environment in .venv-peers with mmdetection and Ultralytics, the peers of benchmarks/cases/peer_comparison.py and of
# compare_torch.py --peer mmdet. Of mmcv's operators just those that TOOD needs are compiled (NMS and the deformable
# convolutions, for the CPU), by mmcv's own sources: some minutes; all of them take half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv-peers/bin/python"
build="$PWD/build/mmcv"

[ -x "$python" ] || python3 -m venv .venv-peers
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install torch==2.14.1 torchvision==0.29.1
pip install -r requirements.txt ultralytics==8.4.190 mmengine==0.10.7 mmdet==3.3.0 mmcv-lite==2.1.0
pip install "setuptools<70" wheel ninja  # last: PyTorch wants a newer one to be installed, mmcv's setup.py pkg_resources

mkdir -p "$build"
pip download --no-deps --no-build-isolation --no-binary mmcv mmcv==2.1.0 --dest "$build"
tar -xzf "$build/mmcv-2.1.0.tar.gz" -C "$build"
PATH="$PWD/.venv-peers/bin:$PATH" "$python" scripts/build_mmcv_operators.py "$build/mmcv-2.1.0"
echo "Ready: .venv-peers/bin/python -m benchmarks.cases.peer_comparison …, .venv-peers/bin/python compare_torch.py --peer mmdet …"
