"""The processes the supervisor starts; run by hand only to look at one alone."""

from __future__ import annotations

import typer

from pharos.infra.logs import configure_logs
from pharos.infra.settings import Settings
from pharos.infra.terminal import run_async

app = typer.Typer()


@app.command()
def web() -> None:
    """Serve the API and the pages (started by `pharos up`)."""
    from pharos.app import serve

    settings = Settings()
    configure_logs(settings.log_level)
    serve(settings)


@app.command()
def worker() -> None:
    """Run jobs (started by `pharos up`)."""
    from pharos.worker import run

    settings = Settings()
    configure_logs(settings.log_level)
    run_async(run(settings))
