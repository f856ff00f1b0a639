"""Write by-hand/: the stage notebooks at smoke size. They read data/ and runs/ and write into .scratch/by-hand."""

from pathlib import Path

import nbformat
from ruamel.yaml import YAML

from clarep.params import apply_preset
from clarep.pipeline.prepare import parameters_cell
from clarep.pipeline.stage import STAGES

HOME = Path(__file__).resolve().parent.parent
FRESH = """

import shutil
from pathlib import Path
folder = Path("..", out)
shutil.rmtree(folder, ignore_errors=True)  # what an earlier run left there
folder.mkdir(parents=True)
"""


def main() -> None:
    folder = HOME / "by-hand"
    folder.mkdir(exist_ok=True)
    settings = folder / "params.yaml"
    apply_preset("smoke", HOME / "presets", settings)
    values = YAML().load(settings.read_text(encoding="utf-8"))
    values["probes"].update(n=1, epochs=1)  # on the data of the whole experiment
    with settings.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    for stage in STAGES:
        notebook = nbformat.read(HOME / "nbs" / "stages" / f"{stage}.ipynb", nbformat.NO_CONVERT)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = parameters_cell(stage, settings) + FRESH
        nbformat.write(notebook, folder / f"{stage}.ipynb")


if __name__ == "__main__":
    main()
