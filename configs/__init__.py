"""Shipped gin files, one an experiment. `--gin_file=NAME` finds them from any folder."""
