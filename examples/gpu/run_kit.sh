#!/bin/sh
# On the machine with the GPU, in the root of a copy of this repository: install what `make gpu-kit` packed into a folder
# of its own, then run. Writes to $OUT, otherwise to runs/gpu-kit. Arguments go to kit.py.
set -eu
KIT=${KIT:-build/gpu-kit}
SITE=${SITE:-/tmp/pit-site}
if [ -d "$KIT/wheels" ]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" "$KIT"/wheels/*.whl
  mkdir -p "$SITE/pitcli-0.dist-info" && cp "$KIT/METADATA" "$SITE/pitcli-0.dist-info/METADATA"
fi
PYTHONPATH="$PWD/src:$SITE${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
python3 -c 'import bitsandbytes, peft, pydantic, typer, pitcli.cli'
if ls "$KIT"/base.part-* >/dev/null 2>&1; then
  cat "$KIT"/base.part-* > "$KIT/smollm2.gguf"
  set -- --base "$KIT/smollm2.gguf" "$@"
fi
if [ -f "$KIT/pairs.jsonl.gz" ]; then
  set -- --data "$KIT/pairs.jsonl.gz" "$@"
fi
exec python3 examples/gpu/kit.py "$@"
