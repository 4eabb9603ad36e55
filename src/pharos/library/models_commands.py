"""`pharos models prepare`: the model, and the vectors of the handbook."""

from __future__ import annotations

import asyncio

import typer

from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, error_console

app = typer.Typer()
models = typer.Typer(help="The local models.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command()
def prepare(as_json: AsJson = False, dry_run: DryRun = False) -> None:
    """Build the local model from its published weights, and the handbook's vectors; does nothing when all is there."""
    from pharos.library.handbook import handbook_texts
    from pharos.providers.embedder import build
    from pharos.providers.embedder.known import write_known
    from pharos.providers.embedder.minilm import MODEL_NAME
    from pharos.providers.embedder.model import model_folder

    models_dir = Settings().models_dir
    folder, computed = model_folder(models_dir), 0
    if dry_run:
        was_built, said = False, "is prepared" if build.is_prepared(models_dir) else "would be built"
    else:
        with error_console.status("Preparing the local model"):
            was_built = build.prepare_model(models_dir)
            computed = write_known(folder, asyncio.run(handbook_texts(models_dir)))
        said = "was built" if was_built else "is prepared"
    if as_json:
        done = {"model": MODEL_NAME, "state": said, "folder": str(folder), "built": was_built, "computed": computed}
        echo_json(done)
        return
    echo_line(f"The model {MODEL_NAME} {said} in {folder}.")
    if computed:
        echo_line(f"{computed} passages of the handbook were read.")
