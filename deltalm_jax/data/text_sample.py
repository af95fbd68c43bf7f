"""A sample of a mixture's text in bounded memory: so many bytes, languages balanced by temperature, chosen by hash.

Of each language the texts with the smallest hashes are kept, up to its budget: every text has the same chance, whatever
its place in its file, copies count once, and the sample is a function of the texts, the budget and the seed alone.

Budgets follow from the text that was read: of `total_bytes`, a language gets a part proportional to (its bytes) **
exponent. They are known only when all is read, but a language's part can only fall while others are read. So a language
is cut back to its part of what is known as soon as its files are read; English, which every pair adds to, is kept
last. That makes three times `total_bytes` the most that is held: of those that are done, of one that is read, of English.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence

import xxhash

from deltalm_jax.data.blocks import TextSource, read_blocks
from deltalm_jax.errors import UserError

ENGLISH = "en"
# Texts come in blocks of this size, of which only the training text is used.
_BLOCK_BYTES = 1 << 20
HELD_OUT_FRACTION = 0.001


class TextSampleError(UserError, ValueError):
    """Text that cannot be sampled: no languages, or nothing in one of them."""


@dataclasses.dataclass(frozen=True)
class LanguageSample:
    """The sample of one language.

    Attributes:
      language: its code.
      texts: paragraphs and sides of pairs, by hash; no two are equal.
      text_bytes: UTF-8 bytes of them.
      bytes_read: of all texts that were read.
      size: what its rate follows from: `bytes_read`; or, where reading stopped early, the bytes of its files on disk if
        those are more.
      in_full: all of its files were read to their end.
      complete: every text that was read is in the sample: its budget was larger.
      budget: bytes that it might have had.
    """

    language: str
    texts: tuple[str, ...]
    text_bytes: int
    bytes_read: int
    size: int
    in_full: bool
    complete: bool
    budget: int


class _Pool:
    """The texts of smallest hash seen so far whose bytes, in the order of their hashes, come to at most `bound`."""

    def __init__(self, bound: int):
        self.bound = bound
        self.text_bytes = 0
        self._heap: list[tuple[int, str]] = []
        self._kept: set[int] = set()
        self._end = 1 << 64  # what has this hash or a larger one has no place any more

    def add(self, text: str, size: int, key: int) -> None:
        if key >= self._end or key in self._kept:
            return
        heapq.heappush(self._heap, (-key, text))
        self._kept.add(key)
        self.text_bytes += size
        self.shrink(self.bound)

    def shrink(self, bound: int) -> None:
        self.bound = bound
        while self.text_bytes > self.bound:
            key, text = heapq.heappop(self._heap)
            self._end = -key
            self._kept.remove(-key)
            self.text_bytes -= len(text.encode())

    @property
    def complete(self) -> bool:
        """Nothing was left out but copies."""
        return self._end == 1 << 64

    def texts(self) -> tuple[str, ...]:
        return tuple(text for _, text in sorted(self._heap, reverse=True))


class _Language:
    def __init__(self, bound: int):
        self.pool = _Pool(bound)
        self.bytes_read = self.bytes_on_disk = 0
        self.in_full = True

    @property
    def size(self) -> int:
        return self.bytes_read if self.in_full else max(self.bytes_read, self.bytes_on_disk)


def sample_texts(
    inputs: Sequence[TextSource],
    total_bytes: int,
    exponent: float,
    *,
    read_limit: int,
    seed: int = 0,
    held_out_fraction: float = HELD_OUT_FRACTION,
) -> list[LanguageSample]:
    """Samples the training text of some tasks.

    Args:
      inputs: the tasks. The other side of a pair counts to its task's language, the English side to English.
      total_bytes: UTF-8 bytes of text in all, at most.
      exponent: a language's budget is proportional to (its bytes) ** exponent; 1 is by size, 0 uniform.
      read_limit: bytes of text that are read of a task, at most: from the beginning of each of its parts as much.
      seed: of the hashes.
      held_out_fraction: as of the preparation, so that its held-out text stays unseen.

    Returns:
      One entry for each language, sorted by code; the same whatever the order of the texts.

    Raises:
      TextSampleError: no tasks, or a task without training text.
      UserError, OSError: from the readers.
    """
    if not inputs:
        raise TextSampleError("no tasks to read text from")
    languages: dict[str, _Language] = {}

    def budgets() -> dict[str, int]:
        weights = {code: language.size**exponent for code, language in languages.items() if language.size}
        return {code: int(total_bytes * weight / sum(weights.values())) for code, weight in weights.items()}

    # All tasks of a language one after the other; English, which pairs add to until the end, keeps its whole bound.
    for source in sorted(inputs, key=lambda source: (source.language, source.task)):
        for code in {source.language, ENGLISH} if source.unit == "pairs" else {source.language}:
            if code not in languages:
                languages[code] = _Language(total_bytes)
        _read(source, languages, read_limit, seed, held_out_fraction)
        for code, budget in budgets().items():
            if code not in (ENGLISH, source.language):
                languages[code].pool.shrink(budget)
    samples = []
    for code, budget in sorted(budgets().items()):
        language = languages[code]
        language.pool.shrink(budget)
        samples.append(
            LanguageSample(
                code, language.pool.texts(), language.pool.text_bytes, language.bytes_read, language.size,
                language.in_full, language.pool.complete, budget,
            )
        )  # fmt: skip
    return samples


def _read(
    source: TextSource, languages: dict[str, _Language], read_limit: int, seed: int, held_out_fraction: float
) -> None:
    """Reads a task's training text, a part after the other, into the pools of its languages."""
    pairs, parts = source.unit == "pairs", source.parts("train")
    read: Counter[str] = Counter()
    in_full = True
    for part in range(parts):
        left = read_limit // parts
        for text, code in _texts(source, part, held_out_fraction):
            encoded = text.encode()
            read[code] += len(encoded)
            left -= len(encoded)
            languages[code].pool.add(text, len(encoded), xxhash.xxh3_64_intdigest(encoded, seed))
            if left <= 0:
                in_full = False
                break
    if not read:
        raise TextSampleError(
            f"no training text in {source.where('train')}: check its format, or leave {source.task} out"
        )
    for code in read:
        languages[code].bytes_read += read[code]
        languages[code].bytes_on_disk += source.size("train") // (2 if pairs else 1)
        languages[code].in_full &= in_full


def _texts(source: TextSource, part: int, held_out_fraction: float) -> Iterator[tuple[str, str]]:
    """Texts of a part that are for training, and the language of each."""
    blocks = read_blocks(source, "train", part, held_out_fraction, _BLOCK_BYTES, Counter(), xxhash.xxh3_128())
    for split, _, items in blocks:
        if split != "train":
            continue
        for item in items:
            if source.unit == "pairs":
                yield item[0], ENGLISH
                yield item[1], source.language
            else:
                for paragraph in item:
                    yield paragraph, source.language
