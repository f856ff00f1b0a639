"""Sphinx configuration; docs/build.py calls it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "clarep"
html_title = "clarep"
extensions = ["myst_nb", "offline_math"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_block"]
myst_heading_anchors = 4
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["clarep.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
