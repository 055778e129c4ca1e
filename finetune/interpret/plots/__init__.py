"""The plots of an interpretation, one file per kind."""
