"""Filters inside a preparation: duplicates against plain sets, what the manifest says, and what is refused."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltalm_jax.data import deduplication
from deltalm_jax.data.blocks import Digest, Input, read_blocks
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.filtering import BlockFilter, FilterError, Filtering, check_filters, describe, take_margins
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.duplicates import document_keys
from deltalm_jax.data.filters.languages import IdentifierError
from deltalm_jax.data.filters.report import filter_table
from deltalm_jax.data.filters.words import folded
from deltalm_jax.data.preparation import PreparationError, prepare
from deltalm_jax.data.readers import read_cc100, read_ccaligned
from deltalm_jax.data.readers.parallel import read_parallel
from deltalm_jax.data.vocabulary import Vocabulary
from tests.data.filters.texts import TEXTS
from tests.data.test_preparation import SAMPLE_VOCABULARY, files_of

FRACTION = 0.2


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk, for a thousand tiny files, would be most of the time here."""
    monkeypatch.setattr("deltalm_jax.data.shards.sync", lambda path: None)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Input]:
    """Two corpora of German and one of French that share many paragraphs and documents; two corpora of pairs."""
    generator = np.random.default_rng(0)
    words = [f"w{n}" for n in range(60)]
    paragraphs = [" ".join(generator.choice(words, generator.integers(1, 4))) for _ in range(150)]
    long_documents = [[" ".join(generator.choice(words, 120)), str(n)] for n in range(8)]

    def documents(seed: int, count: int) -> str:
        own = np.random.default_rng(seed)
        found = []
        for _ in range(count):
            if own.random() < 0.2:
                first, last = long_documents[own.integers(len(long_documents))]
                found.append(f"{first} {own.integers(99)}\n{last}")
            else:
                found.append("\n".join(own.choice(paragraphs, own.integers(1, 5))))
        return "\n\n".join(found) + "\n"

    def pairs(seed: int, count: int) -> str:
        own = np.random.default_rng(seed)
        rows = [
            (own.choice(paragraphs[:30]), own.choice(paragraphs[:3]), own.choice(["1.01", "1.2"])) for _ in range(count)
        ]
        return "".join("\t".join(row) + "\n" for row in rows)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    latin = {"script": "Latn"}
    first = write("a1.txt", documents(1, 40)), write("a2.txt", documents(2, 30))
    sc, tsc = "span_corruption", "translation_span_corruption"
    return [
        Input("a_de", sc, "de", read_cc100, first, (), latin, 1000),
        Input("b_de", sc, "de", read_cc100, (write("b.txt", documents(3, 60)),), (write("v.txt", documents(4, 20)),), latin),
        Input("c_fr", sc, "fr", read_cc100, (write("c.txt", documents(3, 40)),), (), latin),
        Input("d_de", tsc, "de", read_ccaligned, (write("de_DE-en_XX.tsv", pairs(5, 60)),), (), latin),
        Input("e_de", tsc, "de", read_ccaligned, (write("en_XX-de_DE.tsv", pairs(6, 60)),), (), latin),
    ]  # fmt: skip


def filtering(inputs: list[Input], folder: Path, block_bytes: int = 2000, **settings: Any) -> Filtering:
    config = FilterConfig(**settings)
    folder.mkdir(exist_ok=True)
    return Filtering.start(take_margins(inputs, config), config, folder, FRACTION, block_bytes, 2)


def blocks_of(inputs: list[Input], block_bytes: int) -> dict[tuple[int, str, int, int], list[Any]]:
    """All blocks, held-out ones first, then in order of tasks, parts and numbers."""
    blocks = {}
    for index, source in enumerate(inputs):
        for split in source.splits:
            for part in range(source.parts(split)):
                read = read_blocks(source, split, part, FRACTION, block_bytes, Counter(), Digest())
                blocks.update({(index, target, part, number): items for target, number, items in read})
    return dict(sorted(blocks.items(), key=lambda entry: (entry[0][1] == "train", entry[0][0], entry[0][2:])))


def run(plan: Filtering, block_bytes: int = 2000) -> tuple[dict[tuple[int, str, int, int], list[Any]], Counter[str]]:
    """What a preparation does, without its runner: the passes, their calls in no particular order and some twice."""
    for function, elements in plan.passes():
        calls = elements + elements[:2]
        random.Random(0).shuffle(calls)
        for element in calls:
            function(element)
    block_filter, counts = BlockFilter(plan), Counter[str]()
    found = {
        key: block_filter.apply(*key, items, counts) for key, items in blocks_of(list(plan.inputs), block_bytes).items()
    }
    return found, counts


def without_seen(items: list[Any], seen: set[Any], unit: str) -> list[Any]:
    """Items without those paragraphs, or pairs, whose like has been seen."""

    def new(text: Any) -> bool:
        key = folded(text) if isinstance(text, str) else tuple(map(folded, text))
        is_new = key not in seen
        seen.add(key)
        return is_new

    if unit == "pairs":
        return [pair for pair in items if new(pair)]
    return [left for document in items if (left := [text for text in document if new(text)])]


@pytest.mark.parametrize(("ranges", "block_bytes"), [(1, 1500), (7, 3000), (1, 10**6)])
def test_equal_paragraphs_and_pairs_as_a_set_finds_them(inputs, tmp_path, monkeypatch, ranges, block_bytes) -> None:
    monkeypatch.setattr(deduplication, "_BYTES_A_TEXT", 1)
    monkeypatch.setattr(deduplication, "_KEYS_IN_A_RANGE", 1000 // ranges if ranges > 1 else 10**9)
    plan = filtering(inputs, tmp_path / "work", block_bytes, deduplicate_paragraphs=True, deduplicate_pairs=True)
    assert inputs[0].parts("train") > 2
    assert all((comparison.ranges > 3) == (ranges > 1) for comparison in plan.comparisons)
    found, counts = run(plan, block_bytes)
    seen: dict[tuple[str, str], set[Any]] = {}
    expected = {}
    for key, items in blocks_of(inputs, block_bytes).items():
        source = inputs[key[0]]
        expected[key] = without_seen(items, seen.setdefault((source.unit, source.language), set()), source.unit)
    assert found == expected
    before = sum(len(text) for items in blocks_of(inputs, block_bytes).values() for item in items for text in item)
    after = sum(len(text) for items in found.values() for item in items for text in item)
    kinds = ("paragraphs", "pairs")
    assert before - after == sum(counts[f"characters/filter_deduplicate_{kind}"] for kind in kinds) > 1000
    assert all(counts[f"filter_deduplicate_{kind}"] for kind in kinds)
    # Held-out text is never the one that goes in favour of training text: nothing of it is left in training.
    held = {folded(t) for (i, s, *_), items in found.items() if i < 2 and s == "validation" for d in items for t in d}
    trained = [folded(t) for (i, s, *_), items in found.items() if i < 2 and s == "train" for d in items for t in d]
    assert held
    assert trained
    assert not held & set(trained)
    assert len(trained) == len(set(trained))


def test_similar_documents_as_a_set_of_bands_finds_them_and_paragraphs_after_them(inputs, tmp_path) -> None:
    plan = filtering(inputs, tmp_path / "work", deduplicate_documents=True, deduplicate_paragraphs=True)
    assert {(c.kind, c.step) for c in plan.comparisons} == {("documents", 0), ("paragraphs", 1)}
    found, counts = run(plan)
    bands: dict[str, set[int]] = {}
    paragraphs: dict[str, set[str]] = {}
    expected, dropped = {}, 0
    for key, items in blocks_of(inputs, 2000).items():
        source = inputs[key[0]]
        if source.unit == "pairs":
            expected[key] = items
            continue
        left = []
        for document in items:
            own = set(document_keys([document], 14, 8, 5)[0].tolist())
            seen = bands.setdefault(source.language, set())
            dropped += bool(own & seen)
            left += [] if own & seen else [document]
            seen |= own
        expected[key] = left
    for key, items in expected.items():
        if inputs[key[0]].unit == "documents":
            expected[key] = without_seen(items, paragraphs.setdefault(inputs[key[0]].language, set()), "documents")
    assert found == expected
    assert counts["filter_deduplicate_documents"] == dropped > 10


def test_minhash_fields_reach_the_keys(inputs, tmp_path) -> None:
    def dropped(**settings: Any) -> int:
        name = "-".join(settings) or "default"
        return run(filtering(inputs[:2], tmp_path / name, deduplicate_documents=True, **settings))[1][
            "filter_deduplicate_documents"
        ]

    # Each makes documents that are only alike harder to find.
    most = dropped()
    assert all(dropped(**{name: value}) < most for name, value in MINHASH_STRICTER.items())


MINHASH_STRICTER = {"minhash_bands": 1, "minhash_rows": 100, "minhash_ngram": 150}


def unsteady(texts: list[str], calls: list[int] = [0]) -> list[tuple[str, float]]:  # noqa: B006
    """An identifier that changes its mind."""
    calls[0] += 1
    return [("de" if calls[0] % 2 else "fr", 1.0)] * len(texts)


def test_text_that_differs_the_second_time_is_an_error(inputs, tmp_path) -> None:
    name = f"{__name__}:unsteady"
    with pytest.raises(ValueError, match="twice has given different text.*language_identifier"):
        run(filtering(inputs[:1], tmp_path / "work", language_identifier=name, deduplicate_paragraphs=True))


def made(inputs: list[Input], vocabulary: Vocabulary, output: Path, **changes: Any) -> PreparedData:
    settings: dict[str, Any] = {"mixture": "toy", "chunk_length": 64, "num_workers": 1, "validation_fraction": FRACTION}
    settings |= {"block_bytes": 3000, "blocks_per_shard": 2}
    return prepare(inputs, vocabulary, output, **settings | changes).data


def test_preparation_is_that_of_the_filtered_text_and_says_so(inputs, vocabulary, tmp_path) -> None:
    filters = FilterConfig(
        deduplicate_paragraphs=True, deduplicate_documents=True, deduplicate_pairs=True, paragraph_min_letters=1,
        pair_min_margin=1.1, pair_max_length_ratio=1.5,
    )  # fmt: skip
    data = made(inputs, vocabulary, tmp_path / "filtered", filters=filters)
    plain = made(inputs, vocabulary, tmp_path / "plain")
    assert data.manifest["settings"]["filters"] == filters.changed()
    assert "filters" not in plain.manifest["settings"]
    for task, unfiltered, source in zip(data.tasks, plain.tasks, inputs, strict=True):
        for split, part in task.splits.items():
            entry = data.manifest["tasks"][task.name]["splits"][split]
            whole = unfiltered.splits[split]
            assert part.dropped_characters == entry["dropped_characters"]
            assert whole.dropped_characters == {}
            assert whole.units_before == whole.units
            if (
                source.unit == "documents"
            ):  # pairs of too small a margin are counted in the split that they are read from
                assert part.units_before == entry["before"]["units"] == whole.units
                assert part.characters_before == whole.characters_before
            document_drops = ("filter_deduplicate_documents", "filter_emptied_documents")
            drops = document_drops if source.unit == "documents" else tuple(part.dropped)
            assert part.units == part.units_before - sum(part.dropped.get(name, 0) for name in drops)
            assert part.tokens < whole.tokens
    pairs = data.tasks[3].splits["train"].dropped
    rows = inputs[3].train[0].read_text().splitlines()
    assert pairs["filter_pair_min_margin"] == sum(row.endswith("1.01") for row in rows) > 0
    assert pairs["filter_pair_max_length_ratio"] > 0
    assert pairs["filter_deduplicate_pairs"] > 0
    table = filter_table(data.tasks)
    first = [next(iter(column.cells)) for column in table.columns]
    part = data.tasks[0].splits["train"]
    assert first[:3] == ["a_de", f"{part.units_before:,}", f"{part.units:,}"]
    assert "deduplicate" in first[4]

    # The same again is known; another setting, or the same file with other content, is not.
    assert not prepare_again(inputs, vocabulary, data, filters)
    for other, message in [
        (
            FilterConfig(**filters.changed() | {"paragraph_min_letters": 2}),
            "filter paragraph_min_letters: 1 there, 2 asked",
        ),
        (FilterConfig(), "filter deduplicate_documents: True there, default asked for"),
    ]:
        with pytest.raises(PreparationError, match=message):
            prepare_again(inputs, vocabulary, data, other)
    with pytest.raises(PreparationError, match="filter deduplicate_pairs: default there, True asked for"):
        prepare_again(inputs, vocabulary, plain, FilterConfig(deduplicate_pairs=True))


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(inputs, vocabulary, tmp_path) -> None:
    filters = FilterConfig(deduplicate_paragraphs=True)
    one = made(inputs, vocabulary, tmp_path / "one", filters=filters)
    two = made(inputs, vocabulary, tmp_path / "two", filters=filters, num_workers=2)
    assert files_of(two.folder) == files_of(one.folder)


def prepare_again(inputs: list[Input], vocabulary: Vocabulary, data: PreparedData, filters: FilterConfig) -> bool:
    return prepare(
        inputs, vocabulary, data.folder, mixture="toy", chunk_length=64, num_workers=1, validation_fraction=FRACTION,
        block_bytes=3000, blocks_per_shard=2, filters=filters,
    ).made  # fmt: skip


def test_test_sets_are_known_by_their_content(vocabulary, tmp_path) -> None:
    corpus, test_set = tmp_path / "c.txt", tmp_path / "test.txt"
    corpus.write_text(f"{TEXTS['en']}\n{TEXTS['de']}\n", encoding="utf-8")
    test_set.write_text(TEXTS["en"].lower(), encoding="utf-8")
    inputs = [Input("a", "span_corruption", "en", read_cc100, (corpus,))]
    filters = FilterConfig(test_sets=(str(test_set),), test_set_ngram=12)
    data = made(inputs, vocabulary, tmp_path / "out", filters=filters, validation_fraction=0)
    assert data.tasks[0].splits["train"].dropped == {"filter_test_sets": 1}
    assert data.manifest["settings"]["filters"]["test_sets"] == [["test.txt", describe(filters)["test_sets"][0][1]]]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    there = test_set.rename(moved / "test.txt")
    elsewhere = FilterConfig(test_sets=(str(there),), test_set_ngram=12)
    assert (
        made(inputs, vocabulary, tmp_path / "out", filters=elsewhere, validation_fraction=0).manifest == data.manifest
    )
    there.write_text(TEXTS["de"])
    with pytest.raises(PreparationError, match="filter test_sets:"):
        made(inputs, vocabulary, tmp_path / "out", filters=elsewhere, validation_fraction=0)
    with pytest.raises(FilterError, match=r"test_sets: .*test.txt: No such file"):
        made(inputs, vocabulary, tmp_path / "other", filters=filters, validation_fraction=0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"paragraph_min_script_share": 0.5}, FilterError, "task x: .*script of 'xx' is not known"),
        ({"pair_drop_swapped": True}, FilterError, "task y: .*script of 'yy' is not known"),
        ({"side_min_script_share": 0.5, "scripts": {"yy": "Klin"}}, FilterError, "task y: script 'Klin'"),
        ({"pair_min_margin": 1.1}, FilterError, "none of the corpora of pairs has margins"),
        ({"language_identifier": "no_such_module:f"}, IdentifierError, "no_such_module"),
    ],
)
def test_settings_that_these_tasks_cannot_have(tmp_path, settings, error, message) -> None:
    inputs = [
        Input("x", "span_corruption", "xx", read_cc100, (tmp_path / "x.txt",)),
        Input("y", "translation_span_corruption", "yy", read_cc100, (tmp_path / "y.txt",)),
    ]
    with pytest.raises(error, match=message):
        check_filters(inputs, FilterConfig(**settings))
    check_filters(inputs, FilterConfig(paragraph_min_script_share=0.5, scripts={"xx": "Cyrl,Latn"}))


def test_scripts_of_ones_own_count(inputs, tmp_path) -> None:
    kept = []
    for scripts in ({}, {"de": "Cyrl"}, {"de": "Cyrl,Latn"}):
        plan = filtering(inputs[:1], tmp_path / "work", paragraph_min_script_share=0.5, scripts=scripts)
        kept.append(sum(map(len, run(plan)[0].values())))
    assert kept[0] == kept[2] > kept[1] + 20


def test_work_is_gone_on_with_only_for_the_very_texts_that_were_compared(inputs, tmp_path, monkeypatch) -> None:
    settings = {"deduplicate_paragraphs": True}
    first = filtering(inputs, tmp_path / "work", **settings)
    plain = filtering(inputs, tmp_path / "plain")
    found, _ = run(first)
    # The same again reads no text in the passes.
    with monkeypatch.context() as context:
        context.setattr("deltalm_jax.data.filtering.read_blocks", None)
        for function, elements in filtering(inputs, tmp_path / "work", **settings).passes():
            for element in elements:
                function(element)
    # Another text of the language changes what stays of this one, so its identity; not that of other languages.
    inputs[1].train[0].write_text("Ein neuer Absatz.\n" + inputs[0].train[0].read_text())
    inputs = [Input(*(getattr(source, name) for name in INPUT_FIELDS)) for source in inputs]
    second = filtering(inputs, tmp_path / "work", **settings)
    changed = [first.identity(n, "train", 0) != second.identity(n, "train", 0) for n in range(5)]
    assert changed == [True, True, False, False, False]
    again = filtering(inputs, tmp_path / "plain")
    assert [plain.identity(n, "train", 0) == again.identity(n, "train", 0) for n in range(5)] == [
        True,
        False,
        *[True] * 3,
    ]
    renewed, _ = run(second)
    assert renewed != found
    assert renewed == run(filtering(inputs, tmp_path / "anew", **settings))[0]


INPUT_FIELDS = ("task", "objective", "language", "reader", "train", "validation", "groups", "part_bytes")


def test_texts_without_an_identity_are_compared_anew(inputs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Input, "identity", lambda *_: None)
    plans = [filtering(inputs, tmp_path / "work", deduplicate_pairs=True) for _ in range(2)]
    assert plans[0].identity(3, "train", 0) is None
    assert plans[0].comparisons[0].folder != plans[1].comparisons[0].folder
    assert run(plans[0])[0] == run(plans[1])[0]


def test_a_language_more_moves_the_others_places_and_changes_nothing_of_theirs(inputs, tmp_path) -> None:
    settings = {"deduplicate_paragraphs": True, "deduplicate_pairs": True}
    first, _ = run(filtering(inputs[2:4], tmp_path / "work", **settings))
    more, _ = run(filtering([inputs[0], *inputs[2:4]], tmp_path / "work", **settings))
    assert {(index - 1, *key): items for (index, *key), items in more.items() if index} == first


def test_what_a_killed_worker_was_writing_is_passed_over(inputs, tmp_path) -> None:
    plan = filtering(inputs, tmp_path / "work", deduplicate_pairs=True)
    for comparison in plan.comparisons:
        (comparison.folder / "keys" / ".3-train-0-0.abc.tmp").write_bytes(b"half of it")
    assert run(plan)[0] == run(filtering(inputs, tmp_path / "anew", deduplicate_pairs=True))[0]


def test_what_filters_go_by_is_part_of_a_texts_identity(inputs) -> None:
    source = inputs[2]
    others = [
        dataclasses.replace(source, groups={"script": "Cyrl"}),
        dataclasses.replace(source, language="de"),
        dataclasses.replace(source, options={"min_margin": 1.1}),
    ]
    assert len({one.identity("train", 0) for one in (source, *others)}) == 4


def test_the_english_side_is_part_of_the_identity(tmp_path) -> None:
    (tmp_path / "news.en").write_text("A house.\n")
    (tmp_path / "news.sw").write_text("Nyumba.\n")
    files = tmp_path / "news.en", tmp_path / "news.sw"

    def identities() -> list[str | None]:
        source = Input("p_sw", "translation_span_corruption", "sw", read_parallel, files, part_bytes=1)
        assert source.parts("train") == 2
        return [source.identity("train", part) for part in range(2)]

    before = identities()
    (tmp_path / "news.en").write_text("Another house.\n")
    assert all(a != b for a, b in zip(before, identities(), strict=True))
