"""A description as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from deltalm_jax.data.description import wording
from deltalm_jax.data.description.measurement import Histogram
from deltalm_jax.data.description.numbers import Description, Example, ObjectiveDescription
from deltalm_jax.data.description.wording import percent, ratio, short

_BAR, _BARS = 24, " ▏▎▍▌▋▊▉█"
_EXAMPLE_CHARACTERS = 600


def show(description: Description, console: Console) -> None:
    """Prints everything."""
    console.print(as_text(description, console.width))


def as_text(description: Description, width: int) -> RenderableType:
    """Everything, to be printed by rich on so many columns; tables leave out what does not fit."""
    told = description.vocabulary
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    languages = description.languages()
    for name, value in (
        ("prepared data", f"{description.folder}  ({short(description.bytes_on_disk)}B, {description.digest[:12]}…)"),
        ("mixture", f"{description.mixture}: {len(languages)} languages"),
        ("vocabulary", f"{told['file']}: {told['num_pieces']:,} pieces, {told['num_sentinels']} sentinels"),
        ("if trained for", wording.training(description)),
        ("measured", f"on up to {description.sample_chunks} chunks of each task: unknown, bytes, lengths, characters"),
    ):
        head.add_row(name, Text(value))
    parts: list[RenderableType] = [head]
    for objective in description.objectives:
        parts += _objective(objective, width)
    if description.without_validation:
        parts.append(Text(f"\nwithout held-out text: {', '.join(description.without_validation)}"))
    return Group(*parts)


def _objective(objective: ObjectiveDescription, width: int) -> list[RenderableType]:
    tokens = objective.total("tokens")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("chunks", wording.corruption(objective))
    facts.add_row(
        "in all",
        f"{objective.total('units'):,} {objective.unit}, {tokens:,} tokens, {objective.total('chunks'):,} chunks; held out "
        f"{objective.total('held_out_units'):,} {objective.unit}, {objective.total('held_out_tokens'):,} tokens",
    )
    facts.add_row(
        "padding",
        f"{percent(objective.padding_share)} of the chunks; in the first batch {percent(objective.inputs_padding)} of the "
        f"inputs, {percent(objective.targets_padding)} of the targets",
    )
    dropped = sum((Counter(task.left.dropped) for task in objective.tasks), Counter[str]())
    changed = sum((Counter(task.left.changed) for task in objective.tasks), Counter[str]())
    facts.add_row("dropped", _counts(dropped))
    facts.add_row("changed", _counts(changed))
    return [
        Text(),
        Rule(Text(wording.title(objective.name), style="bold"), align="left", style="dim"),
        facts,
        Text(),
        _table(objective, width),
        Text(),
        _histogram("ids in a chunk", objective.chunk_lengths),
        Text(),
        _histogram(f"ids in {wording.segments(objective)}", objective.segment_lengths),
        *(_example(example) for example in objective.examples),
    ]


def _table(objective: ObjectiveDescription, width: int) -> Table:
    """A row a task. Columns go with the space that there is: the third number says from how many columns on."""
    columns = [
        ("", "left", 0), ("script", "left", 118), ("tokens", "right", 0), ("share", "right", 0), ("rate", "right", 0),
        ("", "left", 130),
        ("epochs", "right", 0), ("chunks", "right", 90), ("padding", "right", 100), ("unknown", "right", 0),
        ("bytes", "right", 110), ("chars/token", "right", 110), ("dropped", "right", 0), ("held out", "right", 80),
    ]  # fmt: skip
    shown = [i for i, (_, _, least) in enumerate(columns) if width >= least]
    table = Table(box=None, pad_edge=False, header_style="dim", collapse_padding=True)
    for i in shown:
        name, justify, _ = columns[i]
        table.add_column(name, justify="left" if justify == "left" else "right", no_wrap=True)
    names = wording.labels(objective.tasks)
    most = max(task.rate for task in objective.tasks)
    for task in objective.tasks:
        sampled, (dropped, _) = task.sampled, wording.dropped_shares(task)
        cells = (
            Text(names[task.name], style="bold"), task.script, f"{task.tokens:,}", percent(task.share), percent(task.rate),
            Text(_bar(task.rate / most, 10), style="cyan"), wording.epochs(task.epochs), f"{task.chunks:,}",
            percent(task.padding / (task.tokens + task.padding)), percent(sampled.unknown / sampled.tokens),
            percent(sampled.byte_pieces / sampled.tokens), ratio(sampled.characters, sampled.text_tokens),
            percent(sum(dropped.values())), f"{task.held_out_tokens:,}",
        )  # fmt: skip
        table.add_row(*(cells[i] for i in shown))
    return table


def _histogram(name: str, histogram: Histogram) -> Table:
    table = Table(box=None, pad_edge=False, title=name, title_justify="left", title_style="dim", show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right", style="dim")
    most, total = max(histogram.counts), max(sum(histogram.counts), 1)
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        label = f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}"
        table.add_row(label, Text(_bar(count / max(most, 1), _BAR), style="cyan"), percent(count / total))
    return table


def _bar(share: float, width: int) -> str:
    eighths = round(8 * width * share)
    if share > 0:
        eighths = max(eighths, 1)
    return "█" * (eighths // 8) + (_BARS[eighths % 8] if eighths % 8 else "")


def _example(example: Example) -> RenderableType:
    head = Text(f"\n{example.language}", style="bold")
    head.append(f"  {example.task}, chunk {example.chunk:,}", style="dim not bold")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    # As much of the targets as belongs to the part of the inputs that is shown.
    inputs = _cut(list(wording.pieces_of(example.inputs)))
    last = next((part for part, special in reversed(inputs) if special and wording.SENTINEL.fullmatch(part)), None)
    targets, seen = [], False
    for part, special in wording.pieces_of(example.targets):
        if special and wording.SENTINEL.fullmatch(part) and seen:
            break
        seen = seen or part == last
        targets.append((part, special))
    grid.add_row("inputs", _coloured(inputs, example.inputs))
    grid.add_row("targets", _coloured(targets, example.targets))
    return Group(head, Padding(grid, (0, 0, 0, 2)))


def _cut(parts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    kept: list[tuple[str, bool]] = []
    size = 0
    for part, special in parts:
        if size + len(part) > _EXAMPLE_CHARACTERS and kept:
            break
        kept.append((part, special))
        size += len(part)
    return kept


def _coloured(parts: Sequence[tuple[str, bool]], whole: str) -> Text:
    text = Text()
    for part, special in parts:
        text.append(part, style="" if not special else "bold magenta" if wording.SENTINEL.fullmatch(part) else "dim")
    rest = len(whole) - len(text.plain)
    if rest:
        text.append(f" … {rest:,} more characters", style="dim italic")
    return text


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{wording.title(name)} {count:,}" for name, count in counts.most_common()) or "nothing"
