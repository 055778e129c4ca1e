"""Files: read only if they are regular, and written whole or not at all."""
