"""pit serve: improves drafts over HTTP, through OpenAI's API and on a page, for many clients at a time."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pitcli.console import note, warn
from pitcli.errors import RunError, SettingsError
from pitcli.runs.earlier import warn_if_not_calibrated
from pitcli.settings.serving import ServeConfig

if TYPE_CHECKING:
    from pitcli.serving.guard import App

KEY_VARIABLE = "PIT_API_KEY"
KEEP_ALIVE_S = 75
STALLED_S = 30.0  # without the client reading a byte of its reply; then the kernel drops the connection
CONNECTIONS = 4  # most open connections, as a multiple of --max-requests


def run(config: ServeConfig) -> None:
    """Serve until a signal: then the requests in progress are finished within --grace seconds."""
    if missing := [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise SettingsError(f"pit serve needs {', '.join(missing)}; install them: pip install 'pitcli[serve]'")
    api_key = checked_key(config)
    with listening_socket(config) as listener, open_app(config, api_key) as app:
        serve(app, listener, config)


def checked_key(config: ServeConfig) -> str | None:
    """Return the key that clients must send, of --api-key or of the environment."""
    key = config.api_key or os.environ.get(KEY_VARIABLE, "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable() and key.split() == [key]):
        raise SettingsError("--api-key: expected printable ASCII characters without spaces")
    if key is None and config.host not in ("127.0.0.1", "localhost", "::1"):
        warn(f"--host {config.host} lets other machines use this server without a key; --api-key requires one")
    return key


def listening_socket(config: ServeConfig) -> socket.socket:
    """Return a socket that listens: a port in use is an error before the model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
    try:
        listener.bind((config.host, config.port))
        listener.listen(1024)
    except OSError as problem:
        listener.close()
        if problem.errno == errno.EADDRINUSE:
            message = (
                f"--port: {config.port} is in use by another program; use another port, or --port 0 for a free one"
            )
            raise RunError(message) from None
        if problem.errno == errno.EACCES:
            raise RunError(f"--port: {config.port} needs root; use one above 1023") from None
        raise SettingsError(f"--host: cannot listen on {config.host}: {problem.strerror or problem}") from None
    return listener


@contextmanager
def open_app(config: ServeConfig, api_key: str | None) -> Iterator["App"]:
    """Load the models and yield the application; imported here, because torch takes seconds."""
    from pitcli.engine.improving.models import find_models, with_threshold
    from pitcli.engine.improving.opening import open_scheduler
    from pitcli.engine.models.opening import open_base
    from pitcli.serving.answering import Answering
    from pitcli.serving.app import Server, application
    from pitcli.serving.engine import Engine
    from pitcli.serving.guard import Limits
    from pitcli.serving.page import PageFacts, render
    from pitcli.serving.pairs import PairFile
    from pitcli.serving.upstream import Upstream

    pairs = PairFile(config.collect) if config.collect else None
    upstream = Upstream(config.upstream, config.request_timeout) if config.upstream else None
    improving = config.improving()
    models = find_models(improving)
    improving = with_threshold(improving, models)
    base = open_base(config, models.runs())
    note(base.describe())
    if models.gap_run:
        warn_if_not_calibrated(models.gap_run)
    facts = PageFacts(
        collects=pairs is not None,
        needs_key=api_key is not None,
        has_upstream=upstream is not None,
        max_iters=improving.max_iters,
        threshold=improving.threshold,
        base=base.identity.name,
        run=str(models.writer.folder) if models.writer else "",
    )
    limits = Limits(api_key, config.max_body * 1024, config.host)
    with open_scheduler(improving, base, models, None) as scheduler:
        answering = Answering(Engine(scheduler, base.max_length), upstream, config.request_timeout)
        server = Server(answering, render(facts), pairs, config.log_prompts)
        yield application(server, limits, config.max_requests)


def serve(app: "App", listener: socket.socket, config: ServeConfig) -> None:
    """Run the application until a signal."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="on",
        limit_concurrency=CONNECTIONS * config.max_requests + 64,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(config.grace),
        server_header=False,
    )
    note(f"serving on http://{shown}:{port} (the page) and http://{shown}:{port}/v1 (OpenAI's API); Ctrl-C stops")
    asyncio.run(uvicorn.Server(settings).serve(sockets=[listener]))
