"""Fail when an export would change the library, a notebook is not clean, or a link inside the project leads nowhere."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def tracked(*patterns: str) -> list[Path]:
    """The project's own files, without outputs of runs."""
    return sorted(p for pattern in patterns for p in HOME.glob(pattern) if ".ipynb_checkpoints" not in p.parts)


def state(files: list[Path]) -> dict[Path, str]:
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def changed_by(command: list[str], *patterns: str) -> list[str]:
    """Files that a command changes, adds or removes."""
    before = state(tracked(*patterns))
    subprocess.run(command, cwd=HOME, check=True)
    after = state(tracked(*patterns))
    return [str(p.relative_to(HOME)) for p in sorted(set(before) | set(after)) if before.get(p) != after.get(p)]


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def dead_links() -> list[str]:
    """Relative links in prose whose target is not there."""
    found = []
    for path in tracked("*.md", "nbs/**/*.ipynb", "docs/*.md"):
        for target in LINK.findall(text_of(path)):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                found.append(f"{path.relative_to(HOME)}: {target}")
    return found


def settings_that_are_not_the_default() -> list[str]:
    """params.yaml, where it differs from the default preset: the committed results are those of the default."""
    from clarep.params import load_params
    return [] if load_params(HOME / "params.yaml") == load_params(HOME / "presets/default.yaml") else ["params.yaml"]


def main() -> None:
    problems = {
        "nbdev-export changes the library (edit the notebook, run `make export`, commit both)": changed_by(["nbdev-export"], "clarep/**/*.py"),
        "notebooks are not clean (`make export` cleans them)": changed_by(["nbdev-clean"], "nbs/**/*.ipynb"),
        "links that lead nowhere": dead_links(),
        "settings differ from presets/default.yaml (`make preset` puts them back)": settings_that_are_not_the_default(),
    }
    for problem, where in problems.items():
        if where:
            print(f"error: {problem}:", *where, sep="\n  ", file=sys.stderr)
    if any(problems.values()):
        sys.exit(1)
    print("export leaves no diff, notebooks are clean, links lead somewhere, settings are the default")


if __name__ == "__main__":
    main()
