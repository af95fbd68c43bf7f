from __future__ import annotations


def write_companions(folder, config, vocabulary):
    pass
