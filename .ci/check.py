"""Fail where the tree is not as the house wants it: export, parameters, notebooks, links, names, weight.

It judges the project, never the experiment: any valid params.yaml and any results in runs/ pass.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|farm)/\w")
PARTICIPLES = {
    "told",
    "made",
    "said",
    "seen",
    "left",
    "judged",
    "chosen",
    "settled",
    "shown",
    "widened",
    "extrapolated",
    "shared",
    "asking",
    "reading",
    "fitting",
    "asked",
    "leftovers",
    "everything",
    "counterfeit",
    "knobs",
}
WIDTH, NOTEBOOK_KB, TRACKED_MB = 120, 300, 10


def project_files(*patterns: str) -> list[Path]:
    """The project's own files, without outputs of runs."""
    return sorted(p for pattern in patterns for p in HOME.glob(pattern) if ".ipynb_checkpoints" not in p.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(HOME))


def changed_by(command: list[str], *patterns: str) -> list[str]:
    """Files that a command would change, add or remove; afterwards the tree is as it was."""
    before = {p: p.read_bytes() for p in project_files(*patterns)}
    subprocess.run(command, cwd=HOME, check=True)
    after = {p: p.read_bytes() for p in project_files(*patterns)}
    changed = sorted(p for p in before | after if before.get(p) != after.get(p))
    for path in changed:
        if path in before:
            path.write_bytes(before[path])
        else:
            path.unlink()
    return [name_of(p) for p in changed]


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def prose(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")


def dead_links() -> Iterator[str]:
    """Relative links in prose whose target is not there; results of runs may be absent in a fresh clone."""
    for path in project_files("*.md", ".github/**/*.md", "nbs/**/*.ipynb", "nbs/**/*.md", "docs/**/*.md"):
        folder = HOME / "runs/report" if path.name == "page.md" else path.parent  # the template of the report
        for target in LINK.findall(prose(path)):
            place = Path(os.path.normpath(folder / target))  # `folder` itself may be absent
            missing = "://" not in target and not target.startswith("mailto:") and not place.exists()
            if missing and not place.is_relative_to(HOME / "runs"):
                yield f"{name_of(path)}: {target}"


def outputs_of(cell: dict) -> list[dict]:
    return cell.get("outputs", [])


def dirty_outputs() -> Iterator[str]:
    """Saved errors, standard error, paths of a machine, and picture cells without their picture."""
    for path in project_files("nbs/**/*.ipynb"):
        for i, cell in enumerate(cells(path)):
            where, source, outputs = f"{name_of(path)}, cell {i}", "".join(cell["source"]), outputs_of(cell)
            if any(o["output_type"] == "error" for o in outputs):
                yield f"{where}: an error is saved"
            if any(o.get("name") == "stderr" for o in outputs):
                yield f"{where}: standard error is saved"
            if outputs and "stages" in path.parts:
                yield f"{where}: outputs of a stage, which DVC keeps in runs/"
            if MACHINE_PATH.search(json.dumps(outputs) + source):
                yield f"{where}: a path of some machine"
            picture = any(kind.startswith("image/") for o in outputs for kind in o.get("data", {}))
            if "plt.show()" in source and "stages" not in path.parts and not picture:
                yield f"{where}: a picture cell without its picture; run the notebook and save it"


def long_lines() -> Iterator[str]:
    """Lines of prose over the width; ruff sees those of code. A table's row, a link and a formula cannot be broken."""
    for path in project_files("nbs/**/*.ipynb"):
        for i, cell in enumerate(cells(path)):
            for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
                if len(line) > WIDTH and not line.startswith("|"):
                    yield f"{name_of(path)}, cell {i}: {len(line)} columns: {line[:60]} ..."


def stored_names(tree: ast.AST) -> Iterator[str]:
    """Names that code gives: to functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def participles() -> Iterator[str]:
    """Names that are participles of the house's list, in library, notebooks and tests."""
    for path in project_files("nbs/**/*.ipynb", "tests/*.py", "docs/*.py", ".ci/*.py"):
        sources = (
            [path.read_text()]
            if path.suffix == ".py"
            else ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
        )
        names = {name for source in sources for name in stored_names(ast.parse(source))}
        if bad := sorted(names & PARTICIPLES):
            yield f"{name_of(path)}: {', '.join(bad)}"


def too_heavy() -> Iterator[str]:
    """Notebooks over their size, and all tracked files together."""
    for path in project_files("nbs/**/*.ipynb"):
        if path.stat().st_size > 1000 * NOTEBOOK_KB:
            yield f"{name_of(path)}: {path.stat().st_size // 1000} kB, {NOTEBOOK_KB} are allowed"
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True)
    tracked = [HOME / name for name in listing.stdout.split("\0") if name]
    if (size := sum(p.stat().st_size for p in tracked if p.is_file())) > 1e6 * TRACKED_MB:
        yield f"tracked files: {size / 1e6:.1f} MB, {TRACKED_MB} are allowed"


def main() -> None:
    parameters = [sys.executable, "-m", "clarep.pipeline.prepare", "--parameters"]
    problems = {
        "nbdev-export changes the library (edit notebooks, not clarep/; run `make export`; commit both)": changed_by(
            ["nbdev-export"], "clarep/**/*.py"
        ),
        "parameters cells differ from presets/default.yaml (edit that; run `make export`)": changed_by(
            parameters, "nbs/stages/*.ipynb"
        ),
        "notebooks are not clean (run `nbdev-clean`; saving in `make lab` does it)": changed_by(
            ["nbdev-clean"], "nbs/**/*.ipynb"
        ),
        "links that lead nowhere (mend the path in the notebook or page)": [*dead_links()],
        "outputs that should not be saved (in `make lab` run all cells, save)": [*dirty_outputs()],
        f"prose over {WIDTH} columns (break the lines)": [*long_lines()],
        "participles as names (rename them)": [*participles()],
        "too heavy (smaller pictures; what runs make stays out of Git)": [*too_heavy()],
    }
    for problem, places in problems.items():
        if places:
            print(f"error: {problem}:", *places, sep="\n  ", file=sys.stderr)
    if any(problems.values()):
        sys.exit(1)
    print("export leaves no diff; parameters, outputs, links, lines, names and sizes are as they should be")


if __name__ == "__main__":
    main()
