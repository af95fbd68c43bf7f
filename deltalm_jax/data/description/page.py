"""A description as one HTML page: no scripts, nothing loaded from elsewhere, readable by day, by night and on a telephone."""

from __future__ import annotations

import unicodedata
from collections import Counter
from html import escape
from pathlib import Path

from deltalm_jax.data.description import figures, wording
from deltalm_jax.data.description.numbers import Description, Example, ObjectiveDescription, TaskDescription
from deltalm_jax.data.description.wording import percent, ratio, short, title

_STYLE = Path(__file__).with_name("page.css")
_MANY_EPOCHS = 8.0


def document(title: str, body: str) -> str:
    """A page of the project's, with its style sheet; `title` and `body` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{body}</body>\n</html>\n"
    )


def as_html(description: Description) -> str:
    """The page. All text of the data is escaped; parts in scripts from right to left stand so."""
    name = escape(f"{description.mixture}, prepared")
    colours = figures.reasons_of(description.objectives)
    sections = "".join(_objective(objective, description, colours) for objective in description.objectives)
    return document(
        name,
        f"{_head(description)}<main>\n{_navigation(description)}{sections}{_origin(description)}</main>\n"
        "<footer>Made by <code>python -m deltalm_jax.prepare --describe</code>. Counts of tokens, chunks and what was "
        f"dropped are exact; what is said of ids was measured on up to {description.sample_chunks:,} chunks of each task."
        "</footer>\n",
    )


def _head(description: Description) -> str:
    objectives = description.objectives
    sampled = [task.sampled for objective in objectives for task in objective.tasks]
    tokens, held_out = (sum(o.total(field) for o in objectives) for field in ("tokens", "held_out_tokens"))
    unknown = sum(s.unknown for s in sampled) / max(sum(s.tokens for s in sampled), 1)
    cards = [
        (short(tokens), "tokens to train on"),
        (f"{len(description.languages()):,}", "languages"),
        (short(sum(o.total("chunks") for o in objectives)), "chunks"),
        (short(held_out), "tokens held out"),
        (f"{short(description.bytes_on_disk)}B", "on disk"),
        (percent(unknown), "unknown tokens"),
    ]
    return (
        f'<header class="top"><h1>{escape(description.mixture)}</h1>'
        f'<p class="soft"><code>{escape(description.folder)}</code></p><div class="cards">'
        + "".join(f'<div class="card"><b>{value}</b><span>{what}</span></div>' for value, what in cards)
        + "</div></header>\n"
    )


def _navigation(description: Description) -> str:
    parts = []
    for objective in description.objectives:
        name = escape(objective.name)
        links = [("rates", "rates"), ("lengths", "lengths"), ("languages", "languages"), ("left", "dropped"),
                 ("examples", "examples")]  # fmt: skip
        anchors = "".join(f'<a href="#{name}-{anchor}">{shown}</a>' for anchor, shown in links)
        parts.append(f"<span><b>{escape(title(objective.name))}</b>{anchors}</span>")
    return f'<nav>{"".join(parts)}<span><a href="#origin">origin</a></span></nav>\n'


def _objective(objective: ObjectiveDescription, description: Description, colours: dict[str, int]) -> str:
    name = escape(objective.name)
    return (
        f'<section id="{name}"><h2>{escape(title(objective.name).capitalize())}</h2>'
        f'<p class="lead">{escape(wording.corruption(objective))}</p>\n'
        f"{_facts(objective)}{_rates(objective, description)}{_lengths(objective)}{_languages(objective, description)}"
        f"{_left(objective, colours)}{_examples(objective)}</section>\n"
    )


def _facts(objective: ObjectiveDescription) -> str:
    facts = [
        (f"{objective.total('units'):,}", objective.unit),
        (f"{objective.total('tokens'):,}", "tokens"),
        (f"{objective.total('chunks'):,}", "chunks"),
        (percent(objective.padding_share), "padding in the chunks"),
        (percent(objective.inputs_padding), "padding in a batch's inputs"),
        (percent(objective.targets_padding), "padding in a batch's targets"),
    ]
    items = "".join(f"<div><dt>{what}</dt><dd><b>{value}</b></dd></div>" for value, what in facts)
    return f'<div class="panel"><dl class="facts">{items}</dl></div>\n'


def _rates(objective: ObjectiveDescription, description: Description) -> str:
    return (
        f'<div class="panel" id="{escape(objective.name)}-rates"><h3>What there is, and what is drawn</h3>'
        f'<p class="note">A language is drawn in proportion to its tokens to the power of {objective.sampling_exponent:g}: '
        f"{objective.batch_size:,} examples a step, for {description.steps:,} steps in all. Logarithmic scale.</p>"
        '<ul class="legend"><li><i class="ring"></i>share of the tokens</li><li><i class="dot"></i>sampling rate</li></ul>'
        f'<div class="scroll">{figures.rates(objective.tasks)}</div></div>\n'
    )


def _lengths(objective: ObjectiveDescription) -> str:
    full = objective.chunk_lengths.counts[-1] / max(sum(objective.chunk_lengths.counts), 1)
    segments = wording.segments(objective)
    low, high = objective.chunk_lengths.edges[-2], objective.chunk_lengths.edges[-1] - 1
    return (
        f'<div class="pair" id="{escape(objective.name)}-lengths">'
        f'<figure class="panel whole" style="margin:0 0 16px"><h3>Ids in a chunk</h3>'
        f"<figcaption>{percent(full)} hold {low:,} to {high:,} of {objective.chunk_length:,}</figcaption>"
        f"{figures.histogram(objective.chunk_lengths, 'ids in a chunk', objective.chunk_length)}</figure>"
        f'<figure class="panel whole" style="margin:0 0 16px"><h3>Ids in {segments}</h3>'
        f"<figcaption>those that lie whole in a chunk; bins double in width</figcaption>"
        f"{figures.histogram(objective.segment_lengths, f'ids in {segments}')}</figure></div>\n"
    )


def _languages(objective: ObjectiveDescription, description: Description) -> str:
    names = wording.labels(objective.tasks)
    columns = (
        "tokens", "share", "rate", "epochs", "chunks", objective.unit, "padding", "unknown", "byte pieces",
        "characters<br>a token", "bytes<br>a token", "dropped", "tokens<br>held out",
    )  # fmt: skip
    head = "".join(f"<th>{column}</th>" for column in columns)
    most = max(task.rate for task in objective.tasks)
    rows = "".join(_row(task, names[task.name], most) for task in objective.tasks)
    sampled = [task.sampled for task in objective.tasks]
    tokens, characters, text_tokens, size, unknown, byte_pieces = (
        sum(getattr(s, field) for s in sampled)
        for field in ("tokens", "characters", "text_tokens", "utf8_bytes", "unknown", "byte_pieces")
    )
    total = [
        f"{objective.total('tokens'):,}", "100 %", "100 %", "", f"{objective.total('chunks'):,}",
        f"{objective.total('units'):,}", percent(objective.padding_share), percent(unknown / max(tokens, 1)),
        percent(byte_pieces / max(tokens, 1)), ratio(characters, text_tokens), ratio(size, text_tokens), "",
        f"{objective.total('held_out_tokens'):,}",
    ]  # fmt: skip
    foot = "".join(f"<td>{value}</td>" for value in total)
    _, whole = wording.dropped_shares(objective.tasks[0])
    return (
        f'<div class="panel" id="{escape(objective.name)}-languages"><h3>Languages</h3><p class="note">Epochs: how often a '
        f"language's chunks come up in {description.steps:,} steps; more than {_MANY_EPOCHS:g} are marked. "
        f"Unknown and byte pieces: shares of the tokens. Dropped: share of the {whole} that were read.</p>"
        f'<div class="scroll"><table><thead><tr><th>language</th><th style="text-align:left">script</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody><tfoot><tr><th>all</th><td></td>{foot}</tr></tfoot></table></div></div>\n"
    )


def _row(task: TaskDescription, name: str, most: float) -> str:
    sampled, dropped = task.sampled, sum(wording.dropped_shares(task)[0].values())

    def share(value: float) -> str:
        return '<td class="zero">0 %</td>' if not value else f"<td>{percent(value)}</td>"

    many = ' class="high"' if task.epochs > _MANY_EPOCHS else ""
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(task.script)}</td><td>{task.tokens:,}</td>'
        f"<td>{percent(task.share)}</td>"
        f'<td class="bar" style="--w:{100 * task.rate / most:.1f}%">{percent(task.rate)}</td>'
        f"<td{many}>{wording.epochs(task.epochs)}</td><td>{task.chunks:,}</td><td>{task.units:,}</td>"
        f"{share(task.padding / (task.tokens + task.padding))}{share(sampled.unknown / sampled.tokens)}"
        f"{share(sampled.byte_pieces / sampled.tokens)}<td>{ratio(sampled.characters, sampled.text_tokens)}</td>"
        f"<td>{ratio(sampled.utf8_bytes, sampled.text_tokens)}</td>{share(dropped)}<td>{task.held_out_tokens:,}</td></tr>\n"
    )


def _left(objective: ObjectiveDescription, colours: dict[str, int]) -> str:
    dropped = sum((Counter(task.left.dropped) for task in objective.tasks), Counter[str]())
    changed = sum((Counter(task.left.changed) for task in objective.tasks), Counter[str]())
    _, whole = wording.dropped_shares(objective.tasks[0])
    picture = figures.dropped(objective.tasks, colours)
    parts = [f'<div class="panel" id="{escape(objective.name)}-left"><h3>What was dropped, and why</h3>']
    if picture:
        legend = "".join(
            f'<li><i class="c{colours[reason]}"></i>{escape(title(reason))} {count:,}</li>'
            for reason, count in dropped.most_common()
            if reason in colours
        )
        parts.append(f'<p class="note">Share of the {whole} that were read.</p><ul class="legend">{legend}</ul>')
        parts.append(f'<div class="whole">{picture}</div>')
    elif not dropped:
        parts.append('<p class="note">Nothing was dropped.</p>')
    if uncounted := {reason: count for reason, count in dropped.items() if reason not in colours}:
        kinds = ", ".join(f"{escape(title(reason))} {count:,}" for reason, count in uncounted.items())
        parts.append(
            f'<p class="note" style="margin:10px 0 0">Dropped where the characters were not counted: {kinds}.</p>'
        )
    if changed:
        kinds = ", ".join(f"{escape(title(reason))} {count:,}" for reason, count in changed.most_common())
        parts.append(f'<p class="note" style="margin:10px 0 0">Changed, and kept: {kinds}.</p>')
    return "".join(parts) + "</div>\n"


def _examples(objective: ObjectiveDescription) -> str:
    shown = "".join(_example(example) for example in objective.examples)
    return (
        f'<div class="panel" id="{escape(objective.name)}-examples"><h3>Examples</h3><p class="note">One chunk of each, '
        f"after corruption: a sentinel stands for what is masked, and the targets say what that was.</p>{shown}</div>\n"
    )


def _example(example: Example) -> str:
    language = escape(example.language, quote=True)
    script = f", {escape(example.script)}" if example.script else ""
    return (
        f'<div class="example"><h4>{escape(example.language)}{script}<span>{escape(example.task)}, chunk '
        f'{example.chunk:,}</span></h4><div class="sides"><div><h5>inputs</h5>'
        f'<div class="chunk" lang="{language}" tabindex="0">{_paragraphs(example.inputs)}</div></div>'
        f'<div><h5>targets</h5><div class="chunk targets" lang="{language}" dir="{_direction(example.targets)}" '
        f'tabindex="0">{_spans(example.targets)}</div>'
        "</div></div></div>\n"
    )


def _paragraphs(text: str) -> str:
    """Inputs: a line for each part that `</s>` closes, in the direction of its first letter.

    Specials are isolated (`bdi`), so that their Latin letters do not decide the direction.
    """
    lines: list[list[str]] = [[]]
    for part, special in wording.pieces_of(text):
        lines[-1].append(_marked(part) if special else escape(part))
        if part == "</s>" and special:
            lines.append([])
    return "".join(f'<p dir="auto">{"".join(line)}</p>' for line in lines if line)


def _spans(text: str) -> str:
    """Targets: each sentinel with what it stands for, held together."""
    spans: list[list[str]] = []
    for part, special in wording.pieces_of(text):
        if not spans or (special and wording.SENTINEL.fullmatch(part)):
            spans.append([])
        spans[-1].append(_marked(part) if special else escape(part))
    return " ".join(f'<span dir="auto">{"".join(span)}</span>' for span in spans)


def _direction(text: str) -> str:
    """That of most of its letters: "rtl" or "ltr"."""
    plain = "".join(part for part, special in wording.pieces_of(text) if not special)
    kinds = Counter(map(unicodedata.bidirectional, plain))
    return "rtl" if kinds["R"] + kinds["AL"] > kinds["L"] else "ltr"


def _marked(special: str) -> str:
    kind = "s" if wording.SENTINEL.fullmatch(special) else "t"
    return f'<bdi class="{kind}" dir="ltr">{escape(special)}</bdi>'


def _origin(description: Description) -> str:
    told = description.vocabulary
    facts: list[tuple[str, str]] = [
        ("vocabulary", f"{told['file']}, {told['num_pieces']:,} pieces, {told['num_sentinels']} sentinels from "
         f"{told['sentinel_start']:,}; {told['size']:,} rows"),
        ("SHA-256 of the model", str(told["sha256"])),
        ("sentencepiece", str(told["sentencepiece_version"])),
        ("digest of the data", description.digest),
        ("training spoken of", wording.training(description)),
    ]  # fmt: skip
    for name, value in description.settings.items():
        several = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
        facts.append((title(name), several or "none"))
    if description.without_validation:
        facts.append(("without held-out text", ", ".join(description.without_validation)))
    return (
        '<section id="origin"><h2>Origin</h2><p class="lead"></p><div class="panel"><dl class="facts">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd></div>" for name, value in facts)
        + "</dl></div></section>\n"
    )
