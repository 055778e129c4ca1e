"""Configuration of the documentation. `make docs` builds it, offline."""

from finetune import __version__

project = "finetune"
author = "the finetune authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Docstrings mark names with single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 110
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"finetune {release}"
html_theme_options = {"navigation_with_keys": True}
