"""Serve an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import app
from whiten.cli.terminal import say

_POOLS = 2  # of memory: it stays as it is after two thousand requests


@app.command
def serve(
    index: str,
    /,
    *,
    student: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    root: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    token_file: Path | None = None,
    max_upload: float = 20.0,
    max_pixels: float = 50.0,
    waiting: int = 64,
    timeout: float = 30.0,
) -> None:
    """Serve an index: a search page for people, and an interface for programs.

    It is open to this machine alone unless --host says otherwise. A token that clients must show
    is read from the environment variable WHITEN_TOKEN, or from a file.

    Args:
        index: a folder, milvus:URI or pgvector:DSN.
        student: model that queries are embedded with; by default the index's own.
        host: address to listen on; 0.0.0.0 is all of this machine's.
        port: 0 takes any that is free.
        root: folders whose images may be searched for by their path.
        allow_host: names that clients reach the service by.
        token_file: file with the token.
        max_upload: megabytes of a request.
        max_pixels: millions, of an image that is sent.
        waiting: requests that may wait for the model.
        timeout: seconds that a request may take.
    """
    from whiten.serve import Settings, create_app
    from whiten.serve.running import is_loopback, listen, run, url_of
    from whiten.serve.settings import allowed_names, read_token
    from whiten.utils.memory import share_pools

    settings = Settings(
        roots=root,
        hosts=allowed_names(host, allow_host),
        token=read_token(token_file),
        max_upload=int(max_upload * 1e6),
        max_pixels=int(max_pixels * 1e6),
        waiting=waiting,
        timeout=timeout,
    )
    share_pools(_POOLS)
    with listen(host, port) as listening:
        from whiten.embedding.opening import load
        from whiten.index import Index

        opened = Index.open(index, None if student is None else load(student))
        service = create_app(opened, settings)
        if not is_loopback(listening) and settings.token is None:
            say("whiten: warning: everyone who reaches this port can search; set WHITEN_TOKEN")
        url = url_of(listening)

        def ready() -> None:
            say(f"serving {len(opened)} images on {url}")

        run(service, listening, ready, timeout=timeout)
        say("stopped")
