"""How Sphinx makes the site of these pages; `make docs` calls it. Nothing on the site comes from elsewhere."""

from pygments.lexers.python import PythonLexer
from sphinx.application import Sphinx

project = "deltalm_jax"
html_title = "deltalm_jax"
# Markdown and notebooks.
extensions = ["myst_nb"]
# Notebooks are shown as they are stored; tests/documentation/test_notebook.py runs them.
nb_execution_mode = "off"
# Anchors of headings as GitHub has them.
myst_heading_anchors = 3
# The first page is index.rst, which includes it.
exclude_patterns = ["start.md"]
# A line of shell with an ellipsis in it is no error.
suppress_warnings = ["misc.highlighting_failure"]
html_theme = "furo"
# Values in quotation marks are there to be copied.
smartquotes = False
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
# What pdoc has written, as api/.
html_extra_path = ["../build/pdoc"]


def setup(app: Sphinx) -> None:
    """gin's grammar is near enough to Python's to be coloured like it."""
    app.add_lexer("gin", PythonLexer)
