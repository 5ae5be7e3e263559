#!/bin/sh
# On the machine with the GPU, in the root of a copy of this repository: install what `make gpu-kit` packed, then run.
# Writes to $OUT, otherwise to runs/gpu-kit. Arguments go to kit.py.
set -u
KIT=${KIT:-build/gpu-kit}
if [ -d "$KIT/wheels" ]; then
  python3 -m pip install --quiet --no-index --no-deps --find-links "$KIT/wheels" "$KIT"/wheels/*.whl || echo "run_kit: not all wheels could be installed" >&2
fi
if ls "$KIT"/base.part-* >/dev/null 2>&1; then
  mkdir -p "$KIT/base" && cat "$KIT"/base.part-* | tar x -C "$KIT/base"
  set -- --base "$KIT/base" "$@"
fi
if [ -f "$KIT/pairs.jsonl.gz" ]; then
  set -- --data "$KIT/pairs.jsonl.gz" "$@"
fi
PYTHONPATH=src exec python3 examples/gpu/kit.py "$@"
