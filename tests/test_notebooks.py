"""Every library notebook, top to bottom, with its asserts; and what the stage notebooks must have in common."""

import nbformat
import papermill
import pytest
from conftest import HOME
from nbdev.test import test_nb as run_notebook

from clarep.params import load_params, stage_settings
from clarep.pipeline.stage import ARM_STAGES, STAGES

LIBRARY = sorted(
    p for p in (HOME / "nbs").rglob("*.ipynb") if not {"stages", "findings", ".ipynb_checkpoints"} & set(p.parts)
)


def code_cells(stage: str) -> list:
    """The code of a stage notebook, without its generated cell of parameters."""
    cells = nbformat.read(HOME / "nbs" / "stages" / f"{stage}.ipynb", 4).cells
    return [c for c in cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(HOME / "nbs")))
def test_library_notebook(path):
    passed, _ = run_notebook(path, skip_flags=["notest", "slow"], basepath=HOME)
    assert passed, f"a cell of {path} failed; its traceback is above"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_notebook_has_the_parameters_of_its_sections(stage):
    settings = stage_settings(stage, load_params(HOME / "presets" / "default.yaml"))
    cells = papermill.inspect_notebook(str(HOME / "nbs" / "stages" / f"{stage}.ipynb"))
    values = {k: eval(v["default"], {}) for k, v in cells.items()}
    assert set(values) - {"out"} - ({"arm"} if stage in ARM_STAGES else set()) == set(settings)
    assert {k: values[k] for k in settings} == settings


@pytest.mark.parametrize("stage", STAGES)
def test_stage_notebook_is_thin(stage):
    cells = code_cells(stage)
    lines = [line for c in cells for line in c.source.splitlines() if line.strip()]
    assert len(cells) < 12 and len(lines) < 60, (len(cells), len(lines))
    assert not any(line.startswith("class ") for line in lines)
