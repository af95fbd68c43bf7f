"""The sample of a mixture's text, against sorting all texts by their hashes."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from deltalm_jax.data.blocks import Input, is_held_out
from deltalm_jax.data.text_sample import TextSampleError, sample_texts

LIMIT = 10**9


def documents(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    for document in path.read_text().split("\n\n"):
        yield document.split("\n")


def pairs(path: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        english, other = line.split("\t")
        yield english, other


@pytest.fixture
def inputs(tmp_path: Path) -> list[Input]:
    """A large language in two files, a small one, one of documents and pairs; English in pairs and in documents."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    def texts(code: str, count: int) -> str:
        return "\n\n".join(f"{code} {i} {'x' * (i % 40)}\nsecond of {code} {i}" for i in range(count))

    big = (write("big1", texts("big", 900)), write("big2", texts("big", 1200)))  # with copies
    rows = "".join(f"english {i} {'y' * (i % 17)}\tsmall {i}\n" for i in range(200))
    return [
        Input("a_big", "span_corruption", "big", documents, big),
        Input("a_en", "span_corruption", "en", documents, (write("en", texts("en", 300)),)),
        Input("a_small", "span_corruption", "small", documents, (write("small", texts("small", 30)),)),
        Input("b_small", "translation_span_corruption", "small", pairs, (write("pairs", rows),)),
    ]


def brute_force(inputs: list[Input], total: int, exponent: float, seed: int) -> dict[str, list[str]]:
    """All training texts by language, sorted by hash, cut where the budget ends."""
    texts: dict[str, set[str]] = defaultdict(set)
    sizes: Counter[str] = Counter()

    def take(code: str, text: str) -> None:
        texts[code].add(text)
        sizes[code] += len(text.encode())

    for source in inputs:
        for path in source.train:
            for item in source.reader(path, Counter()):
                if source.unit == "pairs":
                    if not is_held_out(item[0], 0.001):
                        take("en", item[0])
                        take(source.language, item[1])
                elif not is_held_out("\n".join(item), 0.001):
                    for text in item:
                        take(source.language, text)
    weights = {code: size**exponent for code, size in sizes.items()}
    chosen = {}
    for code in texts:
        left = int(total * weights[code] / sum(weights.values()))
        chosen[code] = []
        for text in sorted(texts[code], key=lambda text: xxhash.xxh3_64_intdigest(text.encode(), seed)):
            left -= len(text.encode())
            if left < 0:
                break
            chosen[code].append(text)
    return chosen


@pytest.mark.parametrize(("total", "exponent", "seed"), [(9_000, 0.3, 0), (30_000, 1.0, 1), (20_000, 0.0, 0)])
def test_the_sample_is_the_beginning_of_all_texts_in_hashed_order(
    inputs: list[Input], total: int, exponent: float, seed: int
) -> None:
    found = sample_texts(inputs, total, exponent, read_limit=LIMIT, seed=seed)
    expected = brute_force(inputs, total, exponent, seed)
    assert {sample.language: list(sample.texts) for sample in found} == expected
    for sample in found:
        assert sample.text_bytes == sum(len(text.encode()) for text in sample.texts) <= sample.budget
        assert sample.in_full
    assert sum(sample.text_bytes for sample in found) <= total
    # The order of tasks is of no account, nor that of the files.
    turned = [dataclasses.replace(source, train=source.train[::-1]) for source in reversed(inputs)]
    assert sample_texts(turned, total, exponent, read_limit=LIMIT, seed=seed) == found


def test_a_small_language_is_taken_as_it_is(inputs: list[Input]) -> None:
    samples = {s.language: s for s in sample_texts(inputs, 10**6, 0.3, read_limit=LIMIT)}
    assert all(sample.complete for sample in samples.values())
    assert len(samples["big"].texts) == 2400
    samples = {s.language: s for s in sample_texts(inputs, 30_000, 0.0, read_limit=LIMIT)}
    assert samples["small"].complete
    assert not samples["big"].complete


def test_reading_stops_at_the_limit_and_says_so(inputs: list[Input], tmp_path: Path) -> None:
    samples = {s.language: s for s in sample_texts(inputs, 10**6, 0.3, read_limit=4_000)}
    assert not samples["big"].in_full
    assert samples["big"].bytes_read <= 4_000 + 60
    assert samples["big"].size == sum((tmp_path / name).stat().st_size for name in ("big1", "big2"))
    assert samples["small"].in_full is False  # its pairs are more
    # Of several parts, the beginning of each.
    in_parts = dataclasses.replace(inputs[0], part_bytes=1)
    assert in_parts.parts("train") == 2
    (sample,) = sample_texts([in_parts], 10**6, 0.3, read_limit=4_000)
    assert any(text.startswith("big 0 ") for text in sample.texts)
    one, two = (next(documents(path, Counter()))[0] for path in in_parts.train)
    assert {one, two} <= set(sample.texts)


def test_tasks_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TextSampleError, match="no tasks"):
        sample_texts([], 1000, 0.3, read_limit=LIMIT)

    def nothing(path: Path, counts: Counter[str]) -> Iterator[Any]:
        return iter(())

    (tmp_path / "x.txt").write_text("x")
    empty = Input("a_x", "span_corruption", "x", nothing, (tmp_path / "x.txt",))
    with pytest.raises(TextSampleError, match=r"no training text in .*x\.txt.*leave a_x out"):
        sample_texts([empty], 1000, 0.3, read_limit=LIMIT)
