"""The recipes of nbs/howto.ipynb: what tests follow."""

import re
from pathlib import Path
from typing import NamedTuple

import nbformat

HOME = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|yaml|python)\n(?:# ([\w./]+\.(?:yaml|ipynb))\n)?(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    kind: str  # bash, yaml or python
    file: str  # into which it goes; "" for commands
    text: str


def recipes() -> dict[str, list[Step]]:
    """Heading: its blocks; what comes before the first recipe is under `start`."""
    cells = nbformat.read(HOME / "nbs/howto.ipynb", 4).cells
    assert all(cell.cell_type == "markdown" for cell in cells)
    text = "## start\n" + "\n\n".join(cell.source for cell in cells[1:])
    parts = dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE) if part)
    return {title: [Step(*found) for found in BLOCK.findall(body)] for title, body in parts.items()}


RECIPES = recipes()


def append_cell(home: Path, step: Step) -> None:
    """Add a recipe's code to its notebook."""
    notebook = nbformat.read(home / step.file, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(step.text.strip()))
    nbformat.write(notebook, home / step.file)
