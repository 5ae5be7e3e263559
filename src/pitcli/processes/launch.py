"""Starts one command as several processes on this machine, for recipes."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs `pit` with these arguments as this many processes; returns the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the failed process has printed its error
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pitcli", *arguments)
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        raise (KeyboardInterrupt if stopped.sigval == signal.SIGINT else SystemExit(128 + stopped.sigval)) from None
    return 0
