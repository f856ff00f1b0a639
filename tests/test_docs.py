"""The site and JupyterLab of a fresh clone; in headless Chromium where there is one, as far as possible without."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import HOME, copy_of_project, run_all, run_in
from traitlets.config import Config

from clarep import __version__
from clarep.pipeline.stage import STAGES

sys.path.insert(0, str(HOME / "docs"))
import browse  # noqa: E402

needs_browser = pytest.mark.skipif(bool(browse.why_not()), reason=browse.why_not())
FOREIGN = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^>]*>""")
FOREIGN_STYLE = re.compile(r"""(?:url\(|@import )["']?(?:https?:)?//[^)]*""")


def foreign(site: Path) -> list[str]:
    """What pages and styles would fetch from another host."""
    pages = [m for p in site.rglob("*.html") for m in FOREIGN.findall(p.read_text(encoding="utf-8"))]
    return pages + [m for p in site.rglob("*.css") for m in FOREIGN_STYLE.findall(p.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A fresh clone."""
    return copy_of_project(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def site(home) -> Path:
    """The site of the fresh clone; it takes half a minute."""
    run_all(home, ("python", "docs/build.py"))
    return home / "_docs" / "html"


def test_a_fresh_clone_has_a_whole_site(site):
    notebooks = [p for p in (HOME / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    pages = browse.all_pages(site)
    assert len(pages) > len(notebooks) and {"index", "tour", "results", "api/clarid", "stages/report"} <= {*pages}
    assert "Not executed in this checkout" in (site / "stages/clareps.html").read_text()
    assert (site / "index.html").read_text().count("<img") > 20
    assert "<math" in (site / "clarid/01_jacobian.html").read_text()


def test_api_has_every_exported_name_with_its_source(site):
    for module, text in (("clarid.jacobian", "api/clarid.html"), ("files", "api/files.html")):
        page = (site / text).read_text()
        source = (HOME / "clarep" / f"{module.replace('.', '/')}.py").read_text()
        names = re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", source, re.MULTILINE)
        assert names and all(f"{name}</span></code>" in page for name in names)
    for target, anchor in re.findall(r'href="\.\./([\w/]+\.html)#([^"]+)">Source', page):
        assert f'id="{anchor}"' in (site / target).read_text()


def test_no_page_asks_another_host(site):
    assert foreign(site) == []


def test_a_page_that_asks_another_host_is_seen(tmp_path):
    tags = '<script src="https://a.org/x.js"></script><img alt="" src=\'//b.org/x.png\'><a href="https://c.org">c</a>'
    (tmp_path / "x.html").write_text(tags)
    (tmp_path / "x.css").write_text("@import url(https://d.org/x.css);")
    assert len(foreign(tmp_path)) == 3


@needs_browser
def test_every_page_in_the_browser(site):
    assert [*browse.problems(site, browse.all_pages(site)), *browse.habits(site)] == []


@needs_browser
def test_the_browser_sees_what_is_wrong(tmp_path):
    code = f'<pre style="overflow:auto">{"x" * 400}</pre><div style="width:800px">wide</div><img alt="" src="none.png">'
    script = '<script>console.error("oops"); undefined_name()</script><script src="http://127.0.0.2:9/x.js"></script>'
    (tmp_path / "bad.html").write_text(f'<html><meta name="viewport" content="width=device-width">{code}{script}')
    text = "\n".join(browse.problems(tmp_path, ["bad"]))
    for problem in ("oops", "undefined_name", "another host", "404", "1 code blocks scroll", "wider than 390"):
        assert problem in text, (problem, text)


def test_from_a_number_to_its_notebook_in_one_click():
    """Every section of the report's template links notebooks that exist; the results page leads to their pages."""
    template = (HOME / "nbs/report/page.md").read_text().split("<!-- text:")[0]
    for section in re.split(r"^## ", template, flags=re.MULTILINE)[1:]:
        made_by = re.findall(r"\((\.\./\.\./nbs/[^)]*\.ipynb)\)", section)
        files = [HOME / os.path.normpath(f"runs/report/{path}") for path in made_by]  # before a run there is no runs/
        assert files and all(file.is_file() for file in files), (section[:40], files)
    linked = runpy.run_path(str(HOME / "docs/build.py"))["linked"]
    text = "[select](../../nbs/stages/select.ipynb), [gone](../gone.md)"
    assert linked(text, HOME / "runs/report", "results") == "[select](stages/select.ipynb), gone"


@pytest.mark.skipif(not (HOME / "CITATION.cff").exists(), reason="a project that `make new` made cites its own work")
def test_the_citation_has_the_version():
    assert f"\nversion: {__version__}\n" in (HOME / "CITATION.cff").read_text()


def test_a_save_cleans(monkeypatch):
    """The hook of `make lab`: nbdev's, no standard error, no outputs of a stage."""
    monkeypatch.chdir(HOME)
    hook = runpy.run_path(str(HOME / ".jupyter/jupyter_server_config.py"), {"get_config": Config})["clean"]
    for path, kept in (("nbs/02_images.ipynb", ["stdout"]), ("nbs/stages/tune.ipynb", [])):
        outputs = [nbformat.v4.new_output("stream", name=name, text="1") for name in ("stdout", "stderr")]
        cell = nbformat.v4.new_code_cell("1", execution_count=7, outputs=outputs, metadata={"trusted": True})
        hook(model={"type": "notebook", "content": nbformat.v4.new_notebook(cells=[cell])}, path=path)
        assert [o["name"] for o in cell.outputs] == kept and cell.execution_count is None and cell.metadata == {}


def test_a_stage_by_hand_is_small_and_writes_to_scratch(home):
    run_all(home, ("python", ".jupyter/by_hand.py"))
    cells = {s: nbformat.read(home / "by-hand" / f"{s}.ipynb", 4).cells for s in STAGES}
    sources = {s: next(c.source for c in part if c.metadata.get("tags") == ["parameters"]) for s, part in cells.items()}
    assert all(f'out = ".scratch/by-hand/{stage}"' in source for stage, source in sources.items())
    assert "epochs = 4" in sources["student"] and "train_steps = 60" in sources["teacher"]
    run_all(home, ("jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "by-hand/data.ipynb"))
    assert (home / ".scratch/by-hand/data/splits/train.safetensors").is_file()
    assert not (home / "data/prepared/splits").exists() and run_in(home, "git", "status", "--short").stdout == ""


CELLS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells].map(c => c.toJSON())"""
READY = """() => window.jupyterapp?.shell.currentWidget?.context?.isReady
  && window.jupyterapp.shell.currentWidget.context.sessionContext.session?.kernel?.status == 'idle'"""


@pytest.fixture
def lab(home):
    """The address of `make lab` in the copy."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token= --LabApp.expose_app_in_browser=True"
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {"PYTHONPATH": str(home), "VIRTUAL_ENV": sys.prefix, "JUPYTER_DATA_DIR": str(home / ".scratch")}
    env["PATH"] = scripts + os.pathsep + env["PATH"]
    (home / ".scratch").mkdir(exist_ok=True)
    with (home / ".scratch" / "lab.log").open("w") as log:
        process = subprocess.Popen(
            ["make", "lab", f"LAB={options}"], cwd=home, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def run_and_save(page) -> list[dict]:
    """Restart the kernel of the open notebook, run all cells, save; its cells as they are then."""
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.restartKernel()")
    page.wait_for_function(READY)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(READY)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    return page.evaluate(CELLS)


def without_outputs(path: Path) -> dict:
    notebook = json.loads(path.read_text())
    return {**notebook, "cells": [{**c, "outputs": []} for c in notebook["cells"]]}


@needs_browser
def test_the_tour_in_jupyterlab(home, lab):
    tour = home / "nbs" / "index.ipynb"
    before = without_outputs(tour)
    with browse.browser_page(viewport=browse.WIDE) as page:
        page.set_default_timeout(600_000)
        page.goto(lab)
        page.wait_for_function(READY)  # `make lab` opens the tour
        cells = run_and_save(page)
        assert without_outputs(tour) == before  # saving cleans; what stays is what the cells show on this machine
        commit = "-c user.name=t -c user.email=t@example.org commit -qam run --allow-empty"
        run_all(home, ("git", *commit.split()))
        run_and_save(page)
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert any(kind.startswith("image/") for o in outputs for kind in o.get("data", {}))
    assert all(c["execution_count"] for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip())
    assert run_in(home, "git", "status", "--short").stdout == ""
