"""Copy what was found from runs/report/report.md into README.md; with --check, fail when they differ."""

import re
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)


def found() -> str:
    """Findings and table of the report, without its pictures."""
    report = (HOME / "runs" / "report" / "report.md").read_text(encoding="utf-8")
    part = report.split("## What was found")[1].split("![Each test")[0]
    return re.sub(r"\]\((\w+\.csv)\)", r"](runs/report/\1)", part.replace("## Students\n\n", "").strip()) + "\n"


def main() -> None:
    readme = HOME / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda m: m[1] + "\n" + found() + "\n" + m[2], old)
    if "--check" not in sys.argv:
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("error: README.md does not say what runs/report/report.md found; run `make readme`")


if __name__ == "__main__":
    main()
