"""Copy the students' headline tests from runs/report/report.md into README.md; with --check, fail when they differ."""

import re
import sys
from pathlib import Path

from clarep.params import load_params

HOME = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
ARMS = re.compile(r"<!-- arms -->\n(.*?)\n<!-- /arms -->", re.DOTALL)
COLUMNS = ("arm", "clean", "mixed-rand", "BG-gap", "PGD")


def headline_table(report: str) -> str:
    """Of the report's first table the columns `COLUMNS`, as far as they are there; a wide table has several parts."""
    block = ARMS.search(report)
    if not block:
        sys.exit("error: runs/report/report.md has no table after <!-- arms -->; run `dvc repro report`")
    columns = {}
    for part in block[1].split("\n\n"):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines()]
        columns |= {head: cells for head, *cells in zip(*rows, strict=True)}
    names = [name for start in COLUMNS for name in columns if name.startswith(start)]
    rows = zip(*([name, *columns[name]] for name in names), strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def main() -> None:
    if load_params(HOME / "params.yaml") != load_params(HOME / "presets/default.yaml"):
        print("README.md shows the default experiment; params.yaml is another one, so it stays as it is")
        return
    readme = HOME / "README.md"
    old, report = readme.read_text(encoding="utf-8"), (HOME / "runs/report/report.md").read_text(encoding="utf-8")
    table = headline_table(report)
    new = BLOCK.sub(lambda m: m[1] + "\n" + table + "\n" + m[2], old)
    if "--check" not in sys.argv:
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("error: README.md does not show what runs/report/report.md holds; run `make readme`")


if __name__ == "__main__":
    main()
