"""How numbers, names and sentinels are written, in the terminal and on the page alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from deltalm_jax.data.description.numbers import Description, ObjectiveDescription, TaskDescription

SENTINEL = re.compile(r"<mask_\d+>")
_SPECIAL = re.compile(r"(<mask_\d+>|</s>|<s>|<unk>|<mask>|<unused_\d+>)")


def pieces_of(text: str) -> Iterator[tuple[str, bool]]:
    """A decoded text in order: (part, whether it is a special such as `<mask_3>` or `</s>`); empty parts are left out."""
    for i, part in enumerate(_SPECIAL.split(text)):
        if part:
            yield part, i % 2 == 1


def percent(share: float) -> str:
    """A share in percent, with as many digits as tell small ones apart: 12.3 %, 0.45 %, 0 %."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    if value < 0.005:
        return "< 0.01 %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def short(number: float) -> str:
    """A large number, rounded: 950, 12.3 k, 4.56 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def epochs(number: float) -> str:
    """Epochs: 0.13, 5.6, 1,234."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def ratio(above: float, below: float) -> str:
    """A quotient with two digits, or a dash."""
    return f"{above / below:.2f}" if below else "–"


def title(name: str) -> str:
    """An objective's or a reason's name in words."""
    return name.removeprefix("filter_").replace("_", " ")


def labels(tasks: Sequence[TaskDescription]) -> dict[str, str]:
    """Task name → what it is called in a table: its language; its name, where several tasks are of one language."""
    languages = Counter(task.language for task in tasks)
    return {task.name: task.language if languages[task.language] == 1 else task.name for task in tasks}


def segments(objective: ObjectiveDescription) -> str:
    """What `segment_lengths` are lengths of."""
    return "paragraphs" if objective.unit == "documents" else f"sides of {objective.unit}"


def corruption(objective: ObjectiveDescription) -> str:
    """What becomes of a chunk, in one line."""
    return (
        f"{objective.chunk_length} tokens → {objective.inputs_length} inputs, {objective.targets_length} targets "
        f"({objective.corruption})"
    )


def training(description: Description) -> str:
    """The training that rates and epochs speak of, in one line."""
    batches = " + ".join(f"{o.batch_size:,} of {title(o.name)}" for o in description.objectives)
    exponents = sorted({o.sampling_exponent for o in description.objectives})
    return f"{description.steps:,} steps of {batches}; rates ∝ tokens ^ {' and '.join(f'{e:g}' for e in exponents)}"


def dropped_shares(task: TaskDescription) -> tuple[dict[str, float], str]:
    """Share of a task's text that was left out, by reason, and what it is a share of.

    Of its characters where the preparation counted those; else of what it counted: the pieces of input that were left out
    (lines, rows, documents) and the units that were kept.
    """
    left = task.left
    if left.characters_before:
        return {reason: n / left.characters_before for reason, n in left.dropped_characters.items()}, "characters"
    whole = sum(left.dropped.values()) + task.units + task.held_out_units
    return {reason: n / max(whole, 1) for reason, n in left.dropped.items()}, "lines, rows, documents and pairs"
