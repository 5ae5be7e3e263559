"""One side of a comparison in a separate process: `python worker.py SPEC SIDE`, with one command per line on stdin.

It loads, warms up and then runs on command, so that one side works while the other waits, and each side has its own
peak memory. worker_client.py is the other end of the pipe.
"""

import json
import os
import sys
from pathlib import Path

from gate import Finished, Gate


def main() -> None:
    spec, side = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    gate = Gate(spec["device"])
    if side == "matmul":
        from matmul import run
    elif side in ("ours", "separate", "llama.cpp"):
        from pit_side import run
    elif side == "generate":
        from peer_improve import run
    elif side == "classifier":
        from peer_score import run
    else:
        from peer_trainers import run
    try:
        run(spec, side, gate)
    except Finished:
        sys.stderr.flush()
        os._exit(0)  # skip the exit handlers of libraries


if __name__ == "__main__":
    main()
