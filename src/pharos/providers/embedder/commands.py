"""`pharos models prepare` and the process `pharos embedder`."""

from __future__ import annotations

import typer

from pharos.infra.logs import configure_logs
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, error_console

app = typer.Typer()
models = typer.Typer(help="The local models.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command()
def prepare(as_json: AsJson = False, dry_run: DryRun = False) -> None:
    """Build the local model from its published weights; does nothing when it is there and whole."""
    from pharos.providers.embedder import build
    from pharos.providers.embedder.minilm import MODEL_NAME
    from pharos.providers.embedder.model import model_folder

    settings = Settings()
    if dry_run:
        was_built, said = False, "is prepared" if build.is_prepared(settings.models_dir) else "would be built"
    else:
        with error_console.status("Preparing the local model"):
            was_built = build.prepare_model(settings.models_dir)
        said = "was built" if was_built else "is prepared"
    folder = model_folder(settings.models_dir)
    if as_json:
        echo_json({"model": MODEL_NAME, "state": said, "folder": str(folder), "built": was_built})
    else:
        echo_line(f"The model {MODEL_NAME} {said} in {folder}.")


@app.command()
def embedder() -> None:
    """Turn texts into vectors for the other processes (started by `pharos up`)."""
    from pharos.providers.embedder.server import serve

    settings = Settings()
    configure_logs(settings.log_level)
    serve(settings)
