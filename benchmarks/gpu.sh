#!/usr/bin/env bash
# All that is worth measuring on a machine with a GPU, without the network, in eight minutes: see benchmarks/gpu.py.
#
#   benchmarks/gpu.sh OUT.json [WHEELS] [-- OPTIONS of benchmarks/gpu.py]
#
# WHEELS: a folder of wheels that the machine lacks; they are installed beside the packages that Python there has (torch,
# Triton, NumPy). Without it, `python` must have what saeforest needs, and pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?where to write the JSON}; shift
python=${PYTHON:-python3}
if [ $# -gt 0 ] && [ "$1" != -- ]; then
  "$python" -m venv --system-site-packages .venv-gpu
  python=.venv-gpu/bin/python
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile "$1"/*.whl
  shift
fi
[ "${1:-}" = -- ] && shift
export PYTHONPATH="src:tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu --out "$out" "$@"
