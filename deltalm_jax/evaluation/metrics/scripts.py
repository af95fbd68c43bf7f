"""The share of outputs that are written in the right script.

What goes wrong first when a model that was fine-tuned in one language is used in another is the language of its output. This
sees it where the scripts differ; between languages of one script (English and French) it sees nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from deltalm_jax.evaluation.metrics.result import References, Scores, check_texts

# Name in the metric's name → Unicode's scripts whose letters count.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "arabic": ("Arabic",),
    "bengali": ("Bengali",),
    "cyrillic": ("Cyrillic",),
    "devanagari": ("Devanagari",),
    "greek": ("Greek",),
    "gujarati": ("Gujarati",),
    "han": ("Han",),
    "hangul": ("Hangul", "Han"),
    "hebrew": ("Hebrew",),
    "japanese": ("Hiragana", "Katakana", "Han"),
    "latin": ("Latin",),
    "tamil": ("Tamil",),
    "telugu": ("Telugu",),
    "thai": ("Thai",),
}

_LETTER = regex.compile(r"\p{L}")


def script_ratio(script: str, hypotheses: Sequence[str], references: References) -> Scores:
    """`script_SCRIPT`: percentage of the hypotheses of whose letters more than half are of a script.

    One without any letter is not in the script. The references are only counted.

    Args:
      script: a key of `SCRIPTS`.
      hypotheses, references: as `check_texts`.

    Raises:
      MetricError: as `check_texts`.
    """
    name = f"script_{script}"
    check_texts(name, hypotheses, references)
    of_script = regex.compile("[" + "".join(rf"\p{{Script={unicode_name}}}" for unicode_name in SCRIPTS[script]) + "]")
    right = 0
    for hypothesis in hypotheses:
        letters = _LETTER.findall(hypothesis)
        right += 2 * sum(1 for letter in letters if of_script.match(letter)) > len(letters)
    signature = f"letters:over-half|scripts:{'+'.join(SCRIPTS[script])}|average:share-of-outputs"
    return {name: {"score": 100 * right / len(hypotheses), "signature": signature}}
