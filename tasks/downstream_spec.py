"""A downstream task before it is registered: what the modules of the tasks say, and `tasks.downstream` makes Tasks of."""

from __future__ import annotations

import dataclasses

from tasks.downstream_source import DownstreamSource


@dataclasses.dataclass(frozen=True)
class DownstreamSpec:
    """Arguments of `tasks.downstream.add_downstream_task`, which describes them."""

    name: str
    source: DownstreamSource
    language: str
    metrics: tuple[str, ...]
    source_length: int
    target_length: int
    source_prefix: str = ""
