"""Tables of a path or text and a label per row."""

import finetune.data.sources as _sources  # noqa: F401  # opens tables, and so has to come first
