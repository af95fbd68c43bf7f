"""Pictures of a description, as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape

from deltalm_jax.data.description import wording
from deltalm_jax.data.description.measurement import Histogram
from deltalm_jax.data.description.numbers import ObjectiveDescription, TaskDescription

# Classes c1 … c8 of the style sheet; further reasons share the last.
COLOURS = 8
_PAGE_WIDTH = 1100.0
_DROPPED_ROWS = 40


def rates(tasks: Sequence[TaskDescription]) -> str:
    """Of each language, the share that it has (ring) and the share that training draws (dot), on a logarithmic scale."""
    names = wording.labels(tasks)
    longest = max(map(len, names.values()))
    left, top, height, bottom = 52.0, 10.0, 220.0, 14.0 + 6.2 * longest
    # A page's width; more where the names would not fit under it, less where few would stand far apart.
    width = min(max(_PAGE_WIDTH, left + 9.5 * len(tasks)), left + max(28.0 * len(tasks), 600.0))
    step = (width - left - 12) / len(tasks)
    values = [value for task in tasks for value in (task.share, task.rate)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) - 1e-9)
    high = max(high, low + 1)

    def y(share: float) -> float:
        return top + height * (high - math.log10(share)) / (high - low)

    parts = []
    for power in range(low, high + 1):
        line = y(10.0**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8:.1f}" y1="{line:.1f}" y2="{line:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{line + 4:.1f}" text-anchor="end">{_power(power)}</text>')
    for i, task in enumerate(tasks):
        x = left + step * (i + 0.5)
        name = escape(names[task.name])
        tip = f"{name}: {wording.percent(task.share)} of the tokens, drawn {wording.percent(task.rate)}"
        parts.append(
            f'<g><title>{tip}</title><line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{y(task.share):.1f}" '
            f'y2="{y(task.rate):.1f}"/><circle class="ring" cx="{x:.1f}" cy="{y(task.share):.1f}" r="3.2"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y(task.rate):.1f}" r="3.2"/>'
            f'<text class="tick" transform="translate({x + 3:.1f} {top + height + 10:.1f}) rotate(-90)" '
            f'text-anchor="end">{name}</text></g>'
        )
    return _svg(width, top + height + bottom, "Share of the tokens and sampling rate of each language", parts)


def histogram(values: Histogram, name: str, reference: int | None = None) -> str:
    """Bars of equal width, one a bin, with the bins' bounds below.

    Args:
      values: the counts.
      name: what is counted, for those who cannot see it.
      reference: a bin that begins at or before this number is marked (the full length, say).
    """
    left, top, height, width = 44.0, 14.0, 150.0, 520.0
    count = len(values.counts)
    step = (width - left - 8) / count
    total, most = max(sum(values.counts), 1), max(max(values.counts), 1)
    parts = []
    for share in _nice_shares(most / total):
        line = top + height * (1 - share * total / most)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{line:.1f}" y2="{line:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{line + 4:.1f}" text-anchor="end">{100 * share:g} %</text>')
    every = 1 if count <= 12 else 2
    for i, number in enumerate(values.counts):
        low, high = values.edges[i], values.edges[i + 1] - 1
        x, tall = left + step * i, height * number / most
        bounds = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        marked = " full" if reference is not None and low <= reference <= high else ""
        parts.append(
            f"<g><title>{bounds}: {number:,} ({wording.percent(number / total)})</title>"
            f'<rect class="bar{marked}" x="{x + 1:.1f}" width="{step - 2:.1f}" y="{top + height - tall:.1f}" '
            f'height="{tall:.1f}" rx="1.5"/>'
            f'<rect class="hit" x="{x:.1f}" width="{step:.1f}" y="{top}" height="{height}"/></g>'
        )
        if i % every == (count - 1) % every:
            parts.append(
                f'<text class="tick" x="{x + step / 2:.1f}" y="{top + height + 16:.1f}" text-anchor="middle">{low:,}</text>'
            )
    parts.append(f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{top + height}" y2="{top + height}"/>')
    return _svg(width, top + height + 26, name, parts)


def reasons_of(objectives: Sequence[ObjectiveDescription]) -> dict[str, int]:
    """Reason for dropping → number of its colour, 1 to `COLOURS`; the same in all figures of a page, heaviest first."""
    shares = Counter[str]()
    for objective in objectives:
        for task in objective.tasks:
            shares.update(wording.dropped_shares(task)[0])
    ranked = sorted(shares, key=lambda reason: (-shares[reason], reason))
    return {reason: min(i, COLOURS) for i, reason in enumerate(ranked, start=1)}


def dropped(tasks: Sequence[TaskDescription], colours: dict[str, int]) -> str:
    """Of each language with something dropped, a bar of its share, stacked by reason; the largest first."""
    names = wording.labels(tasks)
    rows = [(task, wording.dropped_shares(task)[0]) for task in tasks]
    rows = [(task, shares) for task, shares in rows if sum(shares.values()) > 0]
    rows.sort(key=lambda row: (-sum(row[1].values()), row[0].name))
    rows = rows[:_DROPPED_ROWS]
    if not rows:
        return ""
    left = 16.0 + 7.0 * max(len(names[task.name]) for task, _ in rows)
    top, row_height, width, right = 20.0, 19.0, 760.0, 64.0
    largest = sum(rows[0][1].values())
    ticks = _nice_shares(largest)
    scale = (width - left - right) / max(largest, ticks[-1])
    parts = []
    for share in ticks:
        x = left + scale * share
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + row_height * len(rows):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{x:.1f}" y="{top - 6}" text-anchor="middle">{100 * share:g} %</text>')
    for i, (task, shares) in enumerate(rows):
        y, x = top + row_height * i, left
        parts.append(
            f'<text class="label" x="{left - 8:.1f}" y="{y + 14:.1f}" text-anchor="end">{escape(names[task.name])}</text>'
        )
        for reason in sorted(shares, key=lambda reason: list(colours).index(reason)):
            wide = scale * shares[reason]
            parts.append(
                f'<rect class="c{colours[reason]}" x="{x:.2f}" y="{y + 3:.1f}" width="{wide:.2f}" height="{row_height - 5}">'
                f"<title>{escape(names[task.name])}, {escape(wording.title(reason))}: "
                f"{wording.percent(shares[reason])}</title></rect>"
            )
            x += wide
        total = wording.percent(sum(shares.values()))
        parts.append(f'<text class="tick" x="{x + 6:.1f}" y="{y + 14:.1f}">{total}</text>')
    return _svg(width, top + row_height * len(rows) + 4, "What was left out, by language and reason", parts)


def _nice_shares(most: float) -> list[float]:
    """0 and up to five round numbers up to `most`."""
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [step * i for i in range(int(most / step + 1e-9) + 1)]


def _power(power: int) -> str:
    return f"{10 ** (power + 2):g} %"


def _svg(width: float, height: float, name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(name)}" '
        f'style="--width:{width:.0f}px">{"".join(parts)}</svg>'
    )
