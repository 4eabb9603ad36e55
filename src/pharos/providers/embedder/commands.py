"""The process `pharos embedder`."""

from __future__ import annotations

import typer

from pharos.infra.logs import configure_logs
from pharos.infra.settings import Settings

app = typer.Typer()


@app.command()
def embedder() -> None:
    """Turn texts into vectors for the other processes (started by `pharos up`)."""
    from pharos.providers.embedder.server import serve

    settings = Settings()
    configure_logs(settings.log_level)
    serve(settings)
