"""The verb `serve`."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Device, Model, Runtime, app
from whiten.cli.terminal import say
from whiten.errors import ConfigError, counted
from whiten.models.choice import choose


@app.command
def serve(
    index: Annotated[tuple[str, ...], Parameter(negative=())],
    /,
    *,
    model: Model = None,
    background: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    root: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    allow_host: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    token_file: Path | None = None,
    max_upload: float = 20.0,
    max_pixels: float = 50.0,
    waiting: int = 64,
    timeout: float = 30.0,
    runtime: Runtime = "auto",
    device: Device = "auto",
    writable: bool = False,
    uploads: Path | None = None,
    workers: int = 1,
) -> None:
    """Serve an index: a search page for people, and an interface for programs.

    By default only this machine can reach it. A token that clients must send is read from the
    environment variable WHITEN_TOKEN, or from a file.

    Args:
        index: a folder, milvus:URI or pgvector:DSN; or several, which are searched as one.
        model: model that embeds the queries; by default the model of the index.
        background: index of images that match no query, for searches that subtract the similarity
            to it.
        host: address to listen on; 0.0.0.0 is every address of this machine.
        port: port to listen on; 0 takes any free one.
        root: folders whose images may be queried by path; none by default.
        allow_host: host names that clients may use besides localhost and this machine's name.
        token_file: file with the token.
        max_upload: maximum request size in megabytes.
        max_pixels: maximum size of an uploaded image in millions of pixels.
        waiting: maximum number of requests that wait for the model.
        timeout: maximum time per request in seconds.
        writable: let clients with the token add and remove images.
        uploads: folder that keeps the images that clients upload to be indexed; by default
            NAME-uploads next to the folder NAME of the index.
        workers: processes that answer, each with its own model; they share the vectors.
    """
    from whiten.serve import Settings
    from whiten.serve.running import is_loopback, listen, url_of
    from whiten.serve.settings import allowed_names, read_token

    if writable and len(index) > 1:
        raise ConfigError("several indexes are only searched: leave out --writable, or serve one")
    for name, size in (("max_upload", max_upload), ("max_pixels", max_pixels)):
        if not isfinite(size):
            raise ConfigError(f"{name} must be a number above 0, not {size}")
    choose(runtime, device)
    settings = Settings(
        roots=root,
        hosts=allowed_names(host, allow_host),
        token=read_token(token_file),
        max_upload=int(max_upload * 1e6),
        max_pixels=int(max_pixels * 1e6),
        waiting=waiting,
        timeout=timeout,
        writable=writable,
        uploads=uploads,
    )
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    with listen(host, port) as listening:
        from whiten.serve.workers import Job, serve_with
        from whiten.serve.workers import serve as serve_alone

        if not is_loopback(listening) and settings.token is None:
            say("whiten: warning: everyone who reaches this port can search; set WHITEN_TOKEN")
        url = url_of(listening)

        def ready(images: int) -> None:
            say(f"serving {counted(images, 'image')} on {url}")

        job = Job(index, model, background, settings, runtime, device)
        if workers == 1:
            serve_alone(job, listening, ready)
        else:
            serve_with(workers, job, listening, ready, say)
        say("stopped")
