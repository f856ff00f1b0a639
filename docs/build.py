"""Build the documentation: notebooks to pages with Sphinx, MyST-NB and Furo; no Quarto, no network.

Library notebooks become pages with a heading for every public name; stage notebooks are shown as last executed
(`dvc repro` writes them), or without outputs where they have not been; the results page is that of `runs/report`.
"""

import ast
import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat

from clarep.pipeline.stage import ARM_STAGES, STAGES

HOME = Path(__file__).resolve().parent.parent
NBS, RUNS = HOME / "nbs", HOME / "runs"
SOURCE, SITE = HOME / "_docs" / "source", HOME / "_docs" / "html"
FOLDERS = {
    "How to": ["howto"],
    "The method": ["diffusion", "clarid"],
    "Students": ["classifiers", "cadistill"],
    "Measurement": ["evaluate", "report"],
    "The project": [".", "pipeline"],
    "Benchmarks": ["benchmarks"],
    "Findings": ["findings"],
}
CHAPTERS = {
    title: [
        str(p.relative_to(NBS).with_suffix(""))
        for folder in folders
        for p in sorted((NBS / folder).glob("*.ipynb"))
        if p.stem != "index"
    ]
    for title, folders in FOLDERS.items()
}
CHAPTERS["Stages, as last executed"] = [f"stages/{stage}" for stage in STAGES]
OTHERS = sorted(p for p in (HOME / "docs" / "results").glob("*") if p.is_dir())  # reports of other data sets, committed
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ADDRESS = {  # of a file: the page that shows it
    NBS / "index.ipynb": "tour.ipynb",
    RUNS / "report" / "report.md": "results.md",
    **{p: "older.md" for p in [HOME / "docs" / "results" / "README.md"] if p.is_file()},  # of clarep's own project
    **{NBS / f"{page}.ipynb": f"{page}.ipynb" for pages in CHAPTERS.values() for page in pages},
    **{p / "report.md": f"results-{p.name}.md" for p in OTHERS},
    **{p: f"profiles/{p.parent.parent.name}.md" for p in sorted(RUNS.glob("suite/*/profile/profile.md"))},
}


def executed(stage: str) -> Path | None:
    """The stage notebook as DVC last ran it; of a matrix, the first one."""
    places = [HOME / "data/prepared/data.ipynb"] if stage == "data" else [*(RUNS / stage).glob(f"**/{stage}.ipynb")]
    return next((p for p in sorted(places) if p.is_file()), None)


def linked(text: str, folder: Path, page: str) -> str:
    """Markdown of a file in `folder` for a page: links lead to pages, or to copies; of what is not there, the text."""

    def address(match: re.Match) -> str:
        picture, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        name = ADDRESS.get(path)
        if not name and path.is_file() and path.is_relative_to(HOME):
            name = f"files/{path.relative_to(HOME)}" + ".txt" * (path.suffix == ".md")  # no page of its own
            (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, SOURCE / name)
        if not name:
            return f"*{words}: not made yet*" if picture else words
        return f"{picture}[{words}]({os.path.relpath(name, Path(page).parent)}{anchor})"

    return LINK.sub(address, text)


class Entry(NamedTuple):
    """A public name: its signature as written, with the shapes in its comments, and its docstring."""

    name: str
    signature: str
    doc: str


def head(node: ast.AST, lines: list[str]) -> str:
    """The lines of a definition above its body."""
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(lines[start - 1 : max(node.body[0].lineno - 1, node.lineno)])


def entries(source: str) -> list[Entry]:
    """Every public function and class that a cell defines; of a class its fields and public methods."""
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        parts = [head(node, lines)]
        for item in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(item, ast.AnnAssign):
                parts.append("\n".join(lines[item.lineno - 1 : item.end_lineno]))
            elif isinstance(item, ast.FunctionDef) and (item.name == "__init__" or not item.name.startswith("_")):
                doc = ast.get_docstring(item)
                parts.append(head(item, lines) + (f'\n        "{doc.splitlines()[0]}"' if doc else ""))
        owner = f"{node.args.args[0].annotation.id}." if "@patch" in parts[0] else ""
        found.append(Entry(owner + node.name, "\n".join(parts), ast.get_docstring(node) or ""))
    return found


def converted(notebook, stage: str | None, folder: Path, page: str, run: Path):
    """A notebook as a page: no directives, imports folded, a heading before each exported definition."""
    cells, level = [], 1
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, folder, page)
            level = max([level, *(len(m) for m in re.findall(r"^(##?) ", cell.source, re.MULTILINE))])
        elif cell.cell_type == "code":
            exported, source = "#| export" in cell.source, DIRECTIVE.sub("", cell.source).strip()
            if not source:
                continue
            cell.source = source
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if text := output.get("data", {}).get("text/markdown"):
                    output["data"]["text/markdown"] = linked("".join(text), run, page)
            if all(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(source).body):
                cell.metadata["tags"] = ["hide-input"]
            if exported and (found := entries(source)):
                names = ", ".join(f"`{e.name}`" for e in found)
                cells.append(nbformat.v4.new_markdown_cell(f"{'#' * (level + 1)} {names}"))
        cells.append(cell)
    if stage:
        where = f"`{run.relative_to(HOME)}`"
        others = f", one of several: `{run.parent.relative_to(HOME)}` has all" if stage in ARM_STAGES else ""
        note = f"As executed in {where}{others}. [Results](../results.md) shows what became of it."
        if not any(c.get("outputs") for c in cells):
            note = "Not executed in this checkout: `dvc repro` runs it, then `make docs` shows its results."
        cells.insert(1, nbformat.v4.new_markdown_cell(f":::{{note}}\n{note}\n:::"))
    notebook.cells = cells
    return notebook


def api_pages(pages: list[str]) -> list[str]:
    """Write a page per room with every public name, and a table of all; returns the pages."""
    rooms, table = {}, ["(every-name)=\n# Every public name\n"]
    for page in pages:
        notebook = nbformat.read(NBS / f"{page}.ipynb", 4)
        module = next((m[1] for c in notebook.cells if (m := re.search(r"#\| default_exp (\S+)", c.source))), None)
        if module is None:  # a notebook of findings exports nothing
            continue
        room = module.split(".")[0]
        lines = rooms.setdefault(room, [f"# clarep.{room}\n"])
        lines.append(f"\n## clarep.{module}\n\nFrom [{page}.ipynb](../{page}.ipynb).\n")
        table += [f"\n## [clarep.{module}](api/{room}.md)\n", "| name | what it is |", "|---|---|"]
        exported = [c for c in notebook.cells if c.cell_type == "code" and "#| export" in c.source]
        for found in (entries(DIRECTIVE.sub("", c.source)) for c in exported):
            anchor = "-".join(e.name.replace(".", "") for e in found).lower()
            for name, signature, doc in found:
                label = f"{module}.{name}" + "-class" * name[0].isupper()  # labels know no capitals
                source = f"[Source](../{page}.ipynb#{anchor})"
                lines.append(f"\n({label})=\n### `{name}`\n\n{doc}\n\n```python\n{signature}\n```\n\n{source}\n")
                first = doc.split("\n")[0].replace("|", "\\|")
                table.append(f"| [`{name}`](<#{label}>) | {first} |")
    (SOURCE / "api").mkdir()
    for room, lines in rooms.items():
        (SOURCE / "api" / f"{room}.md").write_text("\n".join(lines), encoding="utf-8")
    (SOURCE / "api.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    return [f"api/{room}" for room in rooms]


def card(picture: str, words: str, page: str) -> str:
    return f"- [![{words}]({picture})]({page})\n\n  [{words}]({page})\n"


def gallery(report: str) -> str:
    """The figures of the results, then the first picture of every chapter that has one; each leads to its page."""
    figures = re.findall(r"!\[([^\]]*)\]\((files/[^)]*)\)", report)
    text = "## Figures of the results\n\n{.gallery}\n" + "\n".join(
        card(picture, words[:1].upper() + words[1:], "results.md") for words, picture in figures
    )
    parts = [text if figures else ""]
    for title, pages in CHAPTERS.items():
        cards = []
        for page in pages:
            cells = nbformat.read(SOURCE / f"{page}.ipynb", 4).cells
            data = [o.data for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
            if data:
                picture = SOURCE / "gallery" / f"{page}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.write_bytes(base64.b64decode(data[0]["image/png"]))
                words = cells[0].source.splitlines()[0].lstrip("# ").replace("Stage: ", "")
                cards.append(card(f"gallery/{page}.png", words, f"{page}.ipynb"))
        if cards:
            parts.append(f"\n## {title}\n\n{{.gallery}}\n" + "\n".join(cards))
    return "\n".join(parts)


def toctree(caption: str, pages: list[str]) -> str:
    return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n" + "\n".join(pages) + "\n```\n"


def write_sources() -> None:
    """Fill `SOURCE` with what Sphinx reads."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path, address in ADDRESS.items():
        page = address.removesuffix(".ipynb").removesuffix(".md")
        (SOURCE / page).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            stage = page.removeprefix("stages/") if page.startswith("stages/") else None
            run = stage and executed(stage) or path
            notebook = converted(nbformat.read(run, 4), stage, path.parent, page, run.parent)
            nbformat.write(notebook, SOURCE / address)
        else:
            text = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n\n`dvc repro` makes them.\n"
            (SOURCE / address).write_text(linked(text, path.parent, page), encoding="utf-8")
    library = [p for pages in CHAPTERS.values() for p in pages if not p.startswith("stages/")]
    rooms = api_pages(library)
    front = linked((HOME / "docs" / "front.md").read_text(encoding="utf-8"), HOME / "docs", "index")
    front += gallery((SOURCE / "results.md").read_text(encoding="utf-8"))
    start = [
        "The tour <tour>",
        "Results <results>",
        *(["Older experiments <older>"] if "older.md" in ADDRESS.values() else []),
    ]
    front += toctree("Start", [*start, *(f"results-{p.name}" for p in OTHERS)])
    profiles = sorted(p.removesuffix(".md") for p in ADDRESS.values() if p.startswith("profiles/"))
    front += toctree("Profiles of students", profiles) if profiles else ""
    front += "".join(toctree(title, pages) for title, pages in CHAPTERS.items() if pages)
    front += toctree("Reference", ["api", *sorted(rooms)])
    (SOURCE / "index.md").write_text(front, encoding="utf-8")


def main() -> None:
    write_sources()
    shutil.rmtree(SITE, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(HOME / "docs")]
    if subprocess.run([sys.executable, "-m", "sphinx", *options, str(SOURCE), str(SITE)]).returncode:
        sys.exit("error: Sphinx warned; see above")
    print(f"the site: {(SITE / 'index.html').relative_to(HOME)}")


if __name__ == "__main__":
    main()
