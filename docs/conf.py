"""Settings of the documentation: `make docs`. Nothing here needs the network."""

from importlib.metadata import version as installed_version

project = "finetune"
author = "the finetune authors"
release = version = installed_version("torch-finetune")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Docstrings write names in single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"finetune {release}"
