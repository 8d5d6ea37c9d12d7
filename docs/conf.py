"""Sphinx configuration; the files of ``examples/`` become tutorials, run at build time."""

import os
from pathlib import Path

import jupytext

import flowkit

project = "flowkit"
copyright = "2026, the flowkit developers"  # noqa: A001
author = "the flowkit developers"
release = version = flowkit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "results/*.json"]
html_theme = "furo"
html_title = f"flowkit {release}"
html_static_path = ["_static"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

here = Path(__file__).parent
os.environ.setdefault("FLOWKIT_EXAMPLES", "small")
tutorials = here / "tutorials"
tutorials.mkdir(exist_ok=True)
for source in sorted((here.parent / "examples").glob("*.py")):
    target = tutorials / f"{source.stem}.ipynb"
    text = jupytext.writes(jupytext.read(source), fmt="ipynb")
    if not target.exists() or target.read_text() != text:
        target.write_text(text)
