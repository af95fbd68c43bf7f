"""An evaluation as one HTML page: the numbers, and the texts they come from; no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from deltalm_jax.data.description.page import document
from deltalm_jax.evaluation.texts import EvaluationSet

# Texts shown: the first ones, and those farthest from their references.
_FIRST, _WORST = 25, 25
_ABOUT = {
    "empty": "outputs without text",
    "copies_of_source": "copies of the source",
    "repetitive": "outputs that repeat four words four times",
    "sources_cut": "sources that were cut",
}


def as_html(result: dict[str, Any], texts: EvaluationSet, hypotheses: Sequence[str]) -> str:
    """The page of what `scoring.evaluate` found. All text is escaped, and stands from right to left where it does."""
    title = escape(f"{texts.name} {texts.split}".strip())
    cards = "".join(
        f'<div class="card"><b>{found["score"]:.1f}</b><span>{escape(name)}</span></div>'
        for name, found in result["scores"].items()
    )
    about = result["outputs"]
    notes = [f"{about[key]:,} {what}" for key, what in _ABOUT.items() if about[key]]
    notes.append(f"length {about['length_ratio']:.2f} times the references'")
    signatures = html_table(
        ("score", "", "signature"),
        (
            (escape(n), f"{s['score']:.2f}", f"<code>{escape(s['signature'])}</code>")
            for n, s in result["scores"].items()
        ),
    )
    worst = _farthest(texts, hypotheses)
    return document(
        title,
        f'<header class="top"><h1>{title}</h1><p class="soft"><code>{escape(result["checkpoint"])}</code>, '
        f"{result['examples']:,} examples, {escape(result['written'])}</p>"
        f'<div class="cards">{cards}</div></header>\n<main>\n'
        f"<section><h2>Scores</h2>{signatures}<p>{escape('; '.join(notes))}.</p>"
        f'<p class="soft">Decoded with {escape(_settings(result["decoding"]))}.</p></section>\n'
        f"<section><h2>The first {min(_FIRST, len(hypotheses))}</h2>"
        f"{_examples(texts, hypotheses, range(min(_FIRST, len(hypotheses))))}</section>\n"
        f'<section><h2>Farthest from their references</h2><p class="soft">By chrF of the single output, worst first.</p>'
        f"{_examples(texts, hypotheses, worst)}</section>\n"
        "</main>\n<footer>Made by <code>python -m deltalm_jax.evaluate</code>.</footer>\n",
    )


def _settings(decoding: dict[str, Any]) -> str:
    shown = {name: value for name, value in decoding.items() if name != "output_format"}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "the defaults"


def _examples(texts: EvaluationSet, hypotheses: Sequence[str], chosen: Iterable[int]) -> str:
    rows = (
        (
            str(index + 1),
            _text(texts.sources[index]),
            _text(hypotheses[index]),
            "<hr>".join(map(_text, texts.references[index])),
        )
        for index in chosen
    )
    return html_table(("", "source", "output", "reference"), rows)


def _text(text: str) -> str:
    return f'<div dir="auto">{escape(text)}</div>' if text.strip() else '<span class="soft">(empty)</span>'


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="texts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="panel" style="margin-top:12px"><div class="scroll">{table}</div></div>'


def _farthest(texts: EvaluationSet, hypotheses: Sequence[str]) -> list[int]:
    """Places of the outputs with the lowest chrF."""
    import sacrebleu

    scores = [
        sacrebleu.sentence_chrf(hypothesis, list(references)).score
        for hypothesis, references in zip(hypotheses, texts.references, strict=True)
    ]
    return sorted(range(len(scores)), key=lambda index: (scores[index], index))[:_WORST]
