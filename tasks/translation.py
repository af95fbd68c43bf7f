"""WMT-10: translation between English and ten languages (Wang et al. 2020, XLM-T, DeltaLM), in 20 directions.

It is a choice among WMT's training corpora, not a published package; the exact selection was never released. So the years
and sizes below are a table that can be corrected. What must not go wrong is the test sets: from 2019 on, and for the French
one of 2015, the set from English is another one than the set into English. So a test set is only ever read from files of its
own direction: from sacreBLEU or WMT, never from a data set of TFDS, whose test splits are into English.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deltalm_jax.data.readers import CorpusError, clean
from deltalm_jax.data.readers.names import codes_in
from deltalm_jax.paths import as_path
from tasks.downstream_places import Examples, Place, Read, Row, files, packed_file, tfds_examples, tfds_folders
from tasks.downstream_readers import read_aligned, read_columns, read_sgm_pair
from tasks.downstream_source import DownstreamSource, Publication
from tasks.downstream_spec import DownstreamSpec
from tasks.sampling_by_hash import Pair, sample

ENGLISH = "en"
# Before sources that are to be translated from English; made of the vocabulary's own pieces, so nothing is added to it.
TARGET_TAG = "__{target}__ "
LENGTH = 256
# No language has more than this many pairs; which ones is decided by hash.
MAX_PAIRS = 10_000_000
# Training pairs beyond these are taken for misaligned, or for no sentences.
MAX_CHARACTERS = 2_000
MAX_RATIO = 4.0
SHORT_SIDE = 20
# Mixtures draw a language in proportion to its pairs to the power of 1/5 (XLM-T, Ma et al. 2020).
TEMPERATURE = 5.0

_COLUMNS = re.compile(r"\.tsv(\.gz|\.xz)?$")
_PACKED = re.compile(r"\.(gz|xz)$")
_TERMS = (
    "each corpus has its own; most are for research only, CzEng and HindEnCorp are not for commercial use and need a "
    "registration. This project ships none of them."
)


@dataclasses.dataclass(frozen=True)
class Wmt10Language:
    """One language of WMT-10.

    Attributes:
      code: "cs".
      year: of its test set, and of the training data that go with it.
      train_pairs: about how many pairs the paper's selection has.
      test_set: WMT's name, "newstest2018".
      test_rows: of the sets into English and from English.
      tfds: TFDS's builder of that year has the language.
    """

    code: str
    year: int
    train_pairs: int
    test_set: str
    test_rows: tuple[int, int]
    tfds: bool = True

    @property
    def sacrebleu(self) -> str:
        """sacreBLEU's name of the year's test sets."""
        return f"wmt{self.year % 100:02d}"


WMT10 = (
    Wmt10Language("fr", 2015, 10_000_000, "newsdiscusstest2015", (1500, 1500)),
    Wmt10Language("cs", 2018, 10_000_000, "newstest2018", (2983, 2983)),
    Wmt10Language("de", 2018, 4_600_000, "newstest2018", (2998, 2998)),
    Wmt10Language("fi", 2018, 4_800_000, "newstest2018", (3000, 3000)),
    Wmt10Language("lv", 2017, 1_400_000, "newstest2017", (2001, 2001)),
    Wmt10Language("et", 2018, 700_000, "newstest2018", (2000, 2000)),
    Wmt10Language("ro", 2016, 500_000, "newstest2016", (1999, 1999)),
    Wmt10Language("hi", 2014, 260_000, "newstest2014", (2507, 2507)),
    Wmt10Language("tr", 2018, 180_000, "newstest2018", (3000, 3000)),
    Wmt10Language("gu", 2019, 80_000, "newstest2019", (1016, 998)),
)


def wmt10(data_dir: str | Path, languages: Sequence[Wmt10Language], target_tag: str | None) -> list[DownstreamSpec]:
    """The tasks `wmt10_cs_en` and `wmt10_en_cs` of each language. Nothing is looked for yet."""
    specs = []
    for language in languages:
        for source, target in ((language.code, ENGLISH), (ENGLISH, language.code)):
            tag = (target_tag or "").format(target=target) if source == ENGLISH else ""
            # 13a, which published figures are by, leaves the danda of these two with its word.
            more = ("bleu_intl",) if target in ("hi", "gu") else ()
            name = f"wmt10_{source}_{target}"
            specs.append(
                DownstreamSpec(
                    name=name,
                    source=_source(name, as_path(data_dir), language, source, target),
                    language=f"{source}-{target}",
                    metrics=("bleu", "chrf++", *more),
                    source_length=LENGTH,
                    target_length=LENGTH,
                    source_prefix=tag,
                )
            )
    return specs


def wmt10_rates(languages: Sequence[Wmt10Language]) -> dict[str, dict[str, float]]:
    """Mixture → task → rate; the rates of a mixture sum to 1. In `wmt10_all` both directions have a half."""
    weights = {language.code: min(language.train_pairs, MAX_PAIRS) ** (1 / TEMPERATURE) for language in languages}
    total = sum(weights.values())
    into = {f"wmt10_{code}_en": weight / total for code, weight in weights.items()}
    out_of = {f"wmt10_en_{code}": weight / total for code, weight in weights.items()}
    both = {name: rate / 2 for name, rate in (into | out_of).items()}
    return {"wmt10_x2en": into, "wmt10_en2x": out_of, "wmt10_all": both}


def _source(name: str, data_dir: Path, language: Wmt10Language, source: str, target: str) -> DownstreamSource:
    code, year = language.code, language.year
    folder = data_dir / "wmt10" / f"{code}-en"
    oriented = functools.partial(_oriented, english_first=source == ENGLISH)
    builder = f"wmt{year % 100:02d}_translate/{code}-en"
    places: dict[str, list[Place]] = {}
    for split in ("train", "validation"):
        places[split] = [_own_files(folder, split, code, oriented)]
        if language.tfds:
            read = functools.partial(_read_tfds, code=code, train=split == "train", oriented=oriented)
            places[split].append(tfds_examples(tfds_folders(data_dir), builder, split, read))
    places["test"] = _test_places(folder, language, source, target)
    rows = language.test_rows[0 if target == ENGLISH else 1]
    own = f"Put line-aligned files or .tsv there, or prepare TFDS's {builder}; docs/tasks.md has the names."
    walled = {"cs": " CzEng asks for a registration.", "hi": " HindEnCorp asks for a registration."}
    echo = f"sacrebleu -t {language.sacrebleu} -l {source}-{target} --echo"
    stem = folder / f"test.{source}-{target}"
    publication = Publication(
        title=f"WMT {year}, {code}-en",
        homepage=f"https://www.statmt.org/wmt{year % 100:02d}",
        terms=_TERMS,
        how={
            "train": own + walled.get(code, ""),
            "validation": own,
            "test": f"{echo} src > {stem}.{source}; {echo} ref > {stem}.{target}. Not the set of the other direction.",
        },
        # What is trained on is a selection of one's own: only the test set's size is a fact.
        rows={"test": rows},
    )
    return DownstreamSource(name, places, publication)


Oriented = Callable[[Iterator[Pair]], Iterator[Row]]


def _oriented(pairs: Iterator[Pair], english_first: bool) -> Iterator[Row]:
    """Rows of pairs (other, English)."""
    for other, english in pairs:
        yield Row(english, other) if english_first else Row(other, english)


def _test_places(folder: Path, language: Wmt10Language, source: str, target: str) -> list[Place]:
    """Files of this direction and no other."""
    pair = f"{source}-{target}"
    # Until 2014 WMT named both directions' files after one: newstest2014-hien-src.en.sgm is a source in English.
    joined = f"{source}{target}" if language.year > 2014 else f"{language.code}{ENGLISH}"
    sacrebleu = Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu")) / language.sacrebleu
    plain = [folder / f"test.{pair}.{source}", folder / f"test.{pair}.{target}"]
    sgm = [
        folder / f"{language.test_set}-{joined}-src.{source}.sgm",
        folder / f"{language.test_set}-{joined}-ref.{target}.sgm",
    ]
    echoed = [sacrebleu / f"{language.sacrebleu}.{pair}.{side}" for side in ("src", "ref")]

    def aligned(paths: list[Path], counts: Counter[str]) -> Iterator[Row]:
        return (Row(first, second) for first, second in read_aligned(paths, counts))

    def segments(paths: list[Path], counts: Counter[str]) -> Iterator[Row]:
        return (Row(*row) for row in read_sgm_pair(paths[0], paths[1], counts))

    return [files(plain, aligned), files(sgm, segments), files(echoed, aligned)]


def _own_files(folder: Path, split: str, code: str, oriented: Oriented) -> Place:
    """`train.cs` with `train.en`, `train.europarl.cs` with `train.europarl.en`, `train.paracrawl.cs-en.tsv`; all together."""

    def find() -> Read | None:
        if not folder.is_dir():
            return None
        names = sorted(path.name for path in folder.iterdir() if path.name.startswith(split + "."))
        sides = [_PACKED.sub("", name).rpartition(".") for name in names]
        stems = sorted({stem for stem, _, side in sides if side in (code, ENGLISH)})
        columns = [folder / name for name in names if _COLUMNS.search(name)]
        if len({_PACKED.sub("", path.name) for path in columns}) < len(columns):
            raise CorpusError(f"{folder}: a .tsv is there twice, packed and not: {', '.join(p.name for p in columns)}.")
        if not stems and not columns:
            return None
        aligned = [_both(folder, stem, code) for stem in stems]
        english_first = [_english_first(path, code) for path in columns]
        lenient = split == "train"

        def pairs(counts: Counter[str]) -> Iterator[Pair]:
            for both in aligned:
                yield from ((other, english) for other, english in read_aligned(both, counts, lenient=lenient))
            for path, first in zip(columns, english_first, strict=True):
                for left, right in read_columns(path, counts, lenient=lenient):
                    yield (right, left) if first else (left, right)

        return (
            (lambda counts: oriented(selected(pairs, counts))) if lenient else (lambda counts: oriented(pairs(counts)))
        )

    aligned_names = f"{folder}/{split}.[NAME.]{code} with {split}.[NAME.]{ENGLISH}"
    return Place((f"{aligned_names} (or .gz, .xz)", f"{folder}/{split}.[NAME.]{code}-en.tsv (or .gz, .xz)"), find)


def _both(folder: Path, stem: str, code: str) -> list[Path]:
    found = [packed_file(folder / f"{stem}.{side}") for side in (code, ENGLISH)]
    if found[0] is None or found[1] is None:
        raise CorpusError(f"{folder}: expected {stem}.{code} and {stem}.{ENGLISH}, found only one of them.")
    return [found[0], found[1]]


def _english_first(path: Path, code: str) -> bool:
    codes = codes_in(_COLUMNS.sub("", path.name))
    if codes is None or set(codes) != {code, ENGLISH}:
        raise CorpusError(
            f"{path}: expected a name that ends in {code}-en.tsv or en-{code}.tsv: it says which column is English."
        )
    return codes[0] == ENGLISH


def _read_tfds(
    examples: Examples, where: str, counts: Counter[str], code: str, train: bool, oriented: Oriented
) -> Iterator[Row]:
    """Rows of TFDS's examples, one text by language code."""

    def pairs(counts: Counter[str]) -> Iterator[Pair]:
        for number, example in enumerate(examples()):
            try:
                other, english = (clean(bytes(example[name]).decode()) for name in (code, ENGLISH))
            except UnicodeDecodeError as error:
                if not train:
                    raise CorpusError(f"{where}, example {number:,}: expected UTF-8, found {error.reason}.") from error
                counts["invalid_utf8"] += 1
                continue
            if other and english:
                yield other, english
            else:
                counts["empty"] += 1

    return oriented(selected(pairs, counts)) if train else oriented(pairs(counts))


def selected(read: Callable[[Counter[str]], Iterator[Pair]], counts: Counter[str]) -> Iterator[Pair]:
    """Training pairs that fit, and of more than `MAX_PAIRS` about so many: they are counted first, in a reading of their own.

    Args:
      read: counts → pairs; called twice.
      counts: grows by the reasons of `fitting`, and "over_the_limit".
    """
    total = sum(1 for _ in fitting(read(Counter()), Counter()))
    return sample(fitting(read(counts), counts), MAX_PAIRS / max(total, 1), counts)


def fitting(pairs: Iterator[Pair], counts: Counter[str]) -> Iterator[Pair]:
    """Pairs that look like sentences and their translations.

    Dropped, and counted as "too_long": a side of over `MAX_CHARACTERS`; as "ratio": one side over `MAX_RATIO` times as many
    characters as the other, unless both have at most `SHORT_SIDE`.
    """
    for first, second in pairs:
        shorter, longer = sorted((len(first), len(second)))
        if longer > MAX_CHARACTERS:
            counts["too_long"] += 1
        elif longer > SHORT_SIDE and longer > MAX_RATIO * shorter:
            counts["ratio"] += 1
        else:
            yield first, second
