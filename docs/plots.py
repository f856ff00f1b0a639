"""`dvc plots show` as a page that works offline: Vega comes from the package vl-convert-python, not from a server.

Arguments are those of `dvc plots show`, such as `runs/student/ce-0/history.csv -x epoch -y ce`.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8">{refresh_tag}<title>DVC plots</title>
<link rel="icon" href="data:,"><script>(() => { SCRIPTS })()</script></head><body>{plot_divs}</body></html>"""


def main() -> None:
    if importlib.util.find_spec("vl_convert") is None:
        sys.exit("error: no vl-convert-python: `pip install vl-convert-python`")
    import vl_convert

    template = HOME / ".scratch" / "plots.html"
    template.parent.mkdir(exist_ok=True)
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.20")
    template.write_text(PAGE.replace("SCRIPTS", scripts), encoding="utf-8")
    command = ["dvc", "plots", "show", "--html-template", str(template), "-o", str(HOME / "_docs" / "plots")]
    sys.exit(subprocess.run([*command, *sys.argv[1:]], cwd=HOME).returncode)


if __name__ == "__main__":
    main()
