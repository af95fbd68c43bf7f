"""The evaluation of an encoder from start to end: what is measured, what is written, what is shown."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from deltalm_jax.data.description.page import document
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.evaluation.encoder import (
    CHUNK_LENGTH,
    MIN_PAIRS,
    NOISE_DENSITY,
    SentenceEncoder,
    chunks_of,
    masked_accuracy,
    over_all,
    retrieval,
)
from deltalm_jax.evaluation.held_out import HeldOutText
from deltalm_jax.evaluation.page import html_table
from deltalm_jax.saved_model import SavedModel
from deltalm_jax.weights.state_dict import abstract_params

SCORES, PAGE = "scores.json", "index.html"
# Of more languages than that, the terminal shows some of the best and of the worst.
_MOST_SHOWN, _FROM_EACH_END = 24, 8
_WAYS = {
    "mean": "mean",
    "first": "<s>",
    "projected_inner_product": "projected, inner product",
    "projected_cosine": "projected, cosine",
}
_DIRECTIONS = {"from_english": "en → xx", "to_english": "xx → en"}


def evaluate_encoder(
    saved: SavedModel, held_out: HeldOutText, data: str, folder: Path, limit: int | None = None
) -> dict[str, Any]:
    """Measures an encoder on held-out text: an encoder alone by masked pieces and retrieval, a DeltaLM's by retrieval.

    In `folder`, made if absent: scores.json and index.html.

    Args:
      saved: the model; its vocabulary is known.
      held_out: what `read_held_out` gave.
      data: where that is from, for people.
      folder: where the results go.
      limit: most chunks of each language.

    Returns:
      What scores.json holds.
    """
    assert saved.vocabulary is not None
    folder.mkdir(parents=True, exist_ok=True)
    config, vocabulary = saved.config, saved.vocabulary
    params = jax.tree.map(jnp.asarray, saved.read(abstract_params(config)))
    result: dict[str, Any] = {
        "checkpoint": str(saved.path),
        "origin": saved.origin,
        "data": data,
        "corpora": list(held_out.corpora),
        "split": "validation",
        "limit": limit,
        "written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "num_encoder_layers": config.num_encoder_layers,
    }
    if config.is_encoder and held_out.documents:
        length = min(CHUNK_LENGTH, config.max_length)
        chunks = {
            language: chunks_of(vocabulary, documents, length, limit)
            for language, documents in held_out.documents.items()
        }
        languages = masked_accuracy(config, params, vocabulary, chunks, length)
        result["masked"] = {
            "noise_density": NOISE_DENSITY,
            "chunk_length": length,
            "all": over_all(languages),
            "languages": languages,
        }
    if held_out.pairs:
        found = retrieval(SentenceEncoder(config, params), vocabulary, held_out.pairs)
        result["retrieval"] = {
            "about_pairs": held_out.about_pairs,
            "max_length": config.max_length,
            "min_pairs": MIN_PAIRS,
            "sentence_layer": config.sentence_layer,
            **found,
        }
    write_atomically(folder / SCORES, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / PAGE, as_html(result))
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Prints what `evaluate_encoder` found: over languages by layer, and by language (the ends, where they are many)."""
    for head, rows in _summaries(result):
        _print(console, head, rows)
    head, rows = _by_language(result)
    if len(rows) <= _MOST_SHOWN:
        _print(console, head, rows)
    else:
        gap = tuple("…" for _ in head)
        _print(console, head, (*rows[:_FROM_EACH_END], gap, *rows[-_FROM_EACH_END:]))
    for note in _notes(result):
        console.print(note, highlight=False, markup=False)


def as_html(result: dict[str, Any]) -> str:
    """The page of what `evaluate_encoder` found."""
    cards = "".join(
        f'<div class="card"><b>{value}</b><span>{escape(what)}</span></div>' for value, what in _cards(result)
    )
    tables = "".join(
        f"<section><h2>{title}</h2>{html_table(_escaped(head), map(_escaped, rows))}</section>\n"
        for title, (head, rows) in [
            *(("Over all languages", summary) for summary in _summaries(result)),
            ("By language", _by_language(result)),
        ]
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in _notes(result))
    return document(
        "The encoder, measured",
        '<header class="top"><h1>The encoder, measured</h1>'
        f'<p class="soft"><code>{escape(result["checkpoint"])}</code>, held-out text of {escape(result["data"])}, '
        f'{escape(result["written"])}</p><div class="cards">{cards}</div></header>\n<main>\n{tables}'
        f"<section>{notes}</section>\n"
        "</main>\n<footer>Made by <code>python -m deltalm_jax.evaluate</code>.</footer>\n",
    )


_Rows = Sequence[Sequence[str]]


def _summaries(result: dict[str, Any]) -> Iterable[tuple[Sequence[str], _Rows]]:
    """Tables over all languages: masked pieces, and retrieval by layer."""
    if masked := result.get("masked"):
        everything = masked["all"]
        yield (
            ("masked pieces", "first choice", "nats per piece", "languages"),
            [
                (
                    f"{everything['positions']:,}",
                    _percent(everything["accuracy"]),
                    f"{everything['loss']:.3f}",
                    f"{len(masked['languages'])}",
                )
            ],
        )
    if average := result.get("retrieval", {}).get("average"):
        ways = [way for way in _WAYS if way in average]
        by_layer = [way for way in ways if way in ("mean", "first")]
        rows = [
            (f"hidden state {layer}", *(_percent(average[way][d][layer]) for way in by_layer for d in _DIRECTIONS))
            for layer in range(result["num_encoder_layers"] + 1)
        ]
        yield ("translations found", *(f"{_WAYS[way]}, {d}" for way in by_layer for d in _DIRECTIONS.values())), rows
        if projected := [way for way in ways if way not in by_layer]:
            yield (
                ("sentences as contrast compares them", *_DIRECTIONS.values()),
                [(_WAYS[way], *(_percent(average[way][d][0]) for d in _DIRECTIONS)) for way in projected],
            )


def _by_language(result: dict[str, Any]) -> tuple[Sequence[str], _Rows]:
    """A row for each language, the best masked accuracy first; where there is none, the best retrieval."""
    masked = result.get("masked", {}).get("languages", {})
    found = result.get("retrieval", {}).get("languages", {})
    best = best_layer(result)
    head = ["language"]
    head += ["masked pieces", "first choice", "nats per piece"] if masked else []
    head += ["pairs", *(f"state {best}, {d}" for d in _DIRECTIONS.values())] if found else []
    rows: list[tuple[float, float, list[str]]] = []
    for language in {**masked, **found}:
        row, order = [language], [0.0, 0.0]
        if masked:
            x = masked.get(language)
            row += [f"{x['positions']:,}", _percent(x["accuracy"]), f"{x['loss']:.3f}"] if x else [""] * 3
            order[0] = x["accuracy"] if x else 0.0
        if found:
            y = found.get(language)
            row += [f"{y['pairs']:,}", *(_percent(y["mean"][d][best]) for d in _DIRECTIONS)] if y else [""] * 3
            order[1] = sum(y["mean"][d][best] for d in _DIRECTIONS) if y else 0.0
        rows.append((-order[0], -order[1], row))
    return head, [row for *_, row in sorted(rows)]


def best_layer(result: dict[str, Any]) -> int:
    """The hidden state whose mean finds most translations, both directions together; 0 where none were looked for."""
    average = result.get("retrieval", {}).get("average")
    if not average:
        return 0
    sums = [sum(both) for both in zip(*(average["mean"][d] for d in _DIRECTIONS), strict=True)]
    return sums.index(max(sums))


def _cards(result: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if masked := result.get("masked"):
        yield _percent(masked["all"]["accuracy"]), "of masked pieces are the first choice"
        yield f"{masked['all']['loss']:.2f}", "nats per masked piece"
    if average := result.get("retrieval", {}).get("average"):
        best = best_layer(result)
        for direction, shown in _DIRECTIONS.items():
            yield _percent(average["mean"][direction][best]), f"of translations found by hidden state {best}, {shown}"
        yield _percent(average["chance"]), "would be found by chance"


def _notes(result: dict[str, Any]) -> Iterable[str]:
    if masked := result.get("masked"):
        yield (
            f"Masked: {100 * masked['noise_density']:g} % of the positions of {masked['all']['chunks']:,} chunks of up to "
            f"{masked['chunk_length']} ids; the same masks for every model of this vocabulary."
        )
    if found := result.get("retrieval"):
        if average := found["average"]:
            yield (
                "A hidden state gives a sentence as the mean of its positions, or as its first position, <s>; the nearest is "
                "that of the highest cosine. By language, the mean of the state that finds most."
            )
            yield (
                f"Translations: {found['about_pairs']}, without repeated sentences; on average {average['pairs']:.0f} "
                f"pairs in {len(found['languages'])} languages, each of which counts alike. By chance "
                f"{_percent(average['chance'])}."
            )
        if left_out := found["left_out"]:
            shown = ", ".join(f"{language} ({pairs})" for language, pairs in left_out.items())
            yield f"Left out, with fewer than {found['min_pairs']} different pairs: {shown}."


def _print(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _escaped(cells: Sequence[str]) -> list[str]:
    return [escape(cell) for cell in cells]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
