"""Build the documentation: notebooks to pages with Sphinx, MyST-NB and Furo; no Quarto, no network.

Library notebooks become pages with a heading for every public name; stage notebooks are shown as last executed
(`dvc repro` writes them), or without outputs where they have not been; the results page is that of `runs/report`.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from clarep.pipeline.stage import STAGES

HOME = Path(__file__).resolve().parent.parent
SOURCE, SITE = HOME / "_docs" / "source", HOME / "_docs" / "html"
FOLDERS = {
    "The method": ["diffusion", "clarid"],
    "Students": ["classifiers", "cadistill"],
    "Measurement": ["evaluate", "report"],
    "The project": [".", "pipeline"],
    "Benchmarks": ["benchmarks"],
    "Findings": ["findings"],
}
CHAPTERS = {
    title: [
        str(p.relative_to(HOME / "nbs").with_suffix(""))
        for folder in folders
        for p in sorted((HOME / "nbs" / folder).glob("*.ipynb"))
        if p.stem != "index"
    ]
    for title, folders in FOLDERS.items()
}
CHAPTERS["Stages, as last executed"] = [f"stages/{stage}" for stage in STAGES]
OTHERS = sorted(p for p in (HOME / "docs" / "results").glob("*") if p.is_dir())  # reports of other data sets, committed
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)


def executed(stage: str) -> Path | None:
    """The stage notebook as DVC last ran it; of a matrix, the first one."""
    places = (
        [HOME / "data/prepared/data.ipynb"] if stage == "data" else [*(HOME / "runs" / stage).glob(f"**/{stage}.ipynb")]
    )
    return next((p for p in sorted(places) if p.is_file()), None)


def public_names(source: str) -> list[tuple[str, str]]:
    """Name and first line of the docstring of every public function and class that a cell defines."""
    defined = [
        n
        for n in ast.parse(source).body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    return [(n.name, (ast.get_docstring(n) or "").split("\n")[0]) for n in defined]


def converted(notebook, stage: bool):
    """A notebook as a page: no directives, imports folded, a heading before each exported definition."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exported, source = "#| export" in cell.source, DIRECTIVE.sub("", cell.source).strip()
            if not source:
                continue
            cell.source = source
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            if all(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(source).body):
                cell.metadata["tags"] = ["hide-input"]
            if exported and (names := public_names(source)):
                cells.append(nbformat.v4.new_markdown_cell("### " + ", ".join(f"`{n}`" for n, _ in names)))
        cells.append(cell)
    if stage and not any(c.get("outputs") for c in cells):
        note = "Not executed in this checkout: `dvc repro` runs it, then `make docs` shows its results."
        cells.insert(1, nbformat.v4.new_markdown_cell(f":::{{note}}\n{note}\n:::"))
    notebook.cells = cells
    return notebook


def api_page(pages: list[str]) -> str:
    """A table of every public name, by module."""
    lines = ["# Every public name\n"]
    for page in pages:
        notebook = nbformat.read(HOME / "nbs" / f"{page}.ipynb", 4)
        module = next((m[1] for c in notebook.cells if (m := re.search(r"#\| default_exp (\S+)", c.source))), None)
        if module is None:  # a notebook of findings exports nothing
            continue
        found = [
            (n, doc, "-".join(name for name, _ in names).lower())
            for c in notebook.cells
            if c.cell_type == "code" and "#| export" in c.source
            for names in [public_names(DIRECTIVE.sub("", c.source))]
            for n, doc in names
        ]
        lines += [f"\n## [clarep.{module}]({page}.ipynb)\n", "| name | what it is |", "|---|---|"]
        lines += [f"| [`{n}`]({page}.ipynb#{anchor}) | {doc.replace('|', chr(92) + '|')} |" for n, doc, anchor in found]
    return "\n".join(lines) + "\n"


def toctree(caption: str, pages: list[str]) -> str:
    return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n" + "\n".join(pages) + "\n```\n"


def write_sources() -> None:
    """Fill `SOURCE` with what Sphinx reads."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in ["index", *(p for pages in CHAPTERS.values() for p in pages)]:
        path, stage = HOME / "nbs" / f"{page}.ipynb", page.startswith("stages/")
        if stage:
            path = executed(page.removeprefix("stages/")) or path
        notebook = converted(nbformat.read(path, 4), stage)
        if page == "index":
            for cell in notebook.cells:  # a picture of the results is there after `make repro`
                cell.source = PICTURE.sub(lambda m: m[0] if (HOME / "nbs" / m[1]).is_file() else "", cell.source)
                cell.source = cell.source.replace("../runs/report/report.md", "results.md").replace(
                    "../runs/report/", "results/"
                )
            results = ["results", *(f"results-{p.name}" for p in OTHERS), "api"]
            trees = toctree("Results", results) + "".join(toctree(c, p) for c, p in CHAPTERS.items())
            notebook.cells.append(nbformat.v4.new_markdown_cell(trees))
        (SOURCE / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, SOURCE / f"{page}.ipynb")
    library = [p for name, pages in CHAPTERS.items() for p in pages if not p.startswith("stages/")]
    (SOURCE / "api.md").write_text(api_page(library), encoding="utf-8")
    for report, page in [(HOME / "runs" / "report", "results"), *((p, f"results-{p.name}") for p in OTHERS)]:
        file = report / "report.md"
        text = file.read_text(encoding="utf-8") if file.is_file() else "# Results\n\n`dvc repro` makes them.\n"
        text = re.sub(r"\[(\w+\.csv)\]\(\1\)", lambda m: f"`{(report / m[1]).relative_to(HOME)}`", text)  # noqa: B023
        (SOURCE / page).mkdir(exist_ok=True)
        for picture in report.rglob("*.png"):
            shutil.copy(picture, SOURCE / page)
        (SOURCE / f"{page}.md").write_text(
            re.sub(r"\]\((?:students/)?(\w+\.png)\)", rf"]({page}/\1)", text), encoding="utf-8"
        )
    for picture in (HOME / "nbs").glob("*.png"):
        shutil.copy(picture, SOURCE)


def main() -> None:
    write_sources()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-c",
        str(HOME / "docs"),
        str(SOURCE),
        str(SITE),
    ]
    if subprocess.run(command).returncode:
        sys.exit("error: Sphinx warned; see above")
    print(f"the site: {(SITE / 'index.html').relative_to(HOME)}")


if __name__ == "__main__":
    main()
