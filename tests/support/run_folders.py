"""Folders as runs leave them, made in an instant by the writers that a run has, and pages on them taken apart."""

from __future__ import annotations

import html
import html.parser
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.training.checkpoint_record import write_record
from deltalm_jax.training.config import Config
from deltalm_jax.training.data_order import DataOrder
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.guards import LossSpike
from deltalm_jax.training.metrics import METRICS, MetricsFile, TensorBoardFile
from deltalm_jax.training.resuming import note_rewind

OBJECTIVES = ("span_corruption", "translation_span_corruption")
SCRIPTS = ("Arab", "Cyrl", "Deva", "Hans", "Latn", "Thai")
LEVELS = ("high", "low", "medium")


def line(step: int, **more: Any) -> dict[str, Any]:
    """A step's numbers, no two of a step the same."""
    return {
        "step": step,
        "loss": 4.0 + 5.0 / step,
        "loss/span_corruption": 4.25 + 5.0 / step,
        "loss/translation_span_corruption": 3.75 + 5.0 / step,
        "learning_rate": 1e-3 / step,
        "grad_norm": 0.5 + 1.0 / step,
        "tokens_per_second": 1000.0 + step,
        "target_tokens_per_second": 400.0 + step,
        "padding_share": 0.02 + 0.001 * (step % 3),
        "data_wait_fraction": 0.001 * (step % 2),
        "step_seconds": 0.5,
        "mfu": None,
        "mfu_full_attention": None,
        "hfu": None,
        "skipped": 0,
        "skipped_in_a_row": 0,
        "mfu_reason": "no peak known for float32 products",
        "batch_digest": f"{step:016x}",
    } | more


def validation(step: int, lower: float = 0.0) -> dict[str, float]:
    """What a validation adds to a line."""
    found: dict[str, float] = {}
    for place, objective in enumerate(OBJECTIVES):
        found |= {
            f"eval/{objective}/loss": 4.5 + place + 1.0 / step - lower,
            f"eval/{objective}/text_loss": 5.5 + place + 1.0 / step - lower,
            f"eval/{objective}/unigram_loss": 7.5 + place,
        }
        for kind, groups in (("resource_level", LEVELS), ("script", SCRIPTS)):
            for number, group in enumerate(groups):
                prefix = f"eval/{objective}/{kind}/{group}"
                text = 5.25 + place + 0.125 * number + 1.0 / step - lower
                found |= {f"{prefix}/loss": text - 1.0, f"{prefix}/text_loss": text}
    return found | {"epochs/cc100_sw": 0.01 * step, "epochs/ccaligned_sw": 0.02 * step}


def make_run(folder: Path, lines: Sequence[Mapping[str, Any]], *overrides: str) -> Path:
    """A run with these lines of metrics, the configuration of `pretrain_tiny.gin`, and two tasks."""
    folder.mkdir(parents=True)
    metrics = MetricsFile(folder / METRICS, 0)
    for one in lines:
        metrics.write(dict(one))
    metrics.close()
    write_config(folder, load(["pretrain_tiny.gin"], overrides))
    tasks = {
        task: {"objective": objective, "rate": 1.0, "epochs": epochs}
        for task, objective, epochs in zip(("cc100_sw", "ccaligned_sw"), OBJECTIVES, (12.5, 25.0), strict=True)
    }
    write_atomically(folder / "data.json", json.dumps(tasks))
    return folder


def write_config(folder: Path, config: Config) -> None:
    content = {"values": config.values(), "origins": config.origins}
    write_atomically(folder / "config.json", json.dumps(content, indent=1) + "\n")


def add_checkpoint(folder: Path, step: int) -> None:
    """A checkpoint's record, of a model with 3 × 5 + 7 parameters; its arrays are not there."""
    place = folder / "checkpoints" / str(step)
    place.mkdir(parents=True)
    leaves = {"params/a": [[3, 5], "float32"], "params/b": [[7], "float32"], "optimizer/a": [[3, 5], "float32"]}
    about = {"identity": {"compute_dtype": "float32"}, "versions": {"jax": "0.10.2", "python": "3.11.7"}}
    write_record(
        place, {"written": "2026-01-02T03:04:05Z", "step": step, "leaves": leaves, "about": about, "files": {}}
    )


def add_start(folder: Path, step: int, second: int) -> None:
    """What a start from a step leaves, in the name of a file by this second since 1970."""
    TensorBoardFile(folder / "tensorboard", step).close()
    newest = max((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.rename(newest.with_name(re.sub(r"[0-9]{10}", f"{second:010}", newest.name, count=1)))


def add_rewind(folder: Path, step: int, loss: float, back_to: int, second: int) -> None:
    """A loss spike at `step`, for which the run went back."""
    note_rewind(LossSpike(step, loss, 4.5), back_to, (back_to, step), DataOrder(((back_to, step),)), folder)
    add_start(folder, back_to, second)


class Page(html.parser.HTMLParser):
    """A page taken apart: its text, its elements, and its charts by heading and title."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.styles, self.words, self._inside, self._heading = "", "", "", ""
        self._json, self._names = "", []
        self.feed(text)
        figures = json.loads(self._json) if self._json else []
        self.charts = dict(zip(self._names, figures, strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self._inside = "json" if tag == "script" and found.get("id") == "charts" else tag
        if found.get("class") == "plot":
            self._names.append((self._heading, found["aria-label"]))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "json":
            self._json += data
        elif self._inside == "style":
            self.styles += data
        elif self._inside != "script":
            if self._inside == "h2":
                self._heading = data
            self.words += data + "\n"


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows of a page's tables, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [
        [
            html.unescape(re.sub(r"<[^>]+>", "", cell))
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def traces(figure: dict[str, Any], part: str, run: int = 0) -> list[dict[str, Any]]:
    """The traces of a chart that show one part of one run."""
    return [trace for trace in figure["data"] if trace["meta"] == {"run": run, "part": part}]
