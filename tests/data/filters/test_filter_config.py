"""The settings: what they refuse, how they are said at the command line, and in gin files."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.flags import FilterFlagError, filter_flags, parse_filters
from deltalm_jax.fields import is_operational
from deltalm_jax.training.gin_files import ConfigError, load

# Of every field, a value that is not its default.
OTHER: dict[str, Any] = {
    "remove_format_characters": True, "normalize": "NFKC", "paragraph_min_letters": 5, "paragraph_max_characters": 9,
    "paragraph_min_letter_share": 0.5, "paragraph_min_script_share": 1.0, "scripts": {"sr": "Cyrl,Latn"},
    "document_max_duplicate_paragraphs": 0.3, "document_max_duplicate_characters": 0.2,
    "document_max_top_ngrams": (0.2, 0.18), "document_min_letters": 7, "document_max_characters": 10,
    "side_min_letters": 2, "side_max_characters": 3, "side_min_letter_share": 0.4, "pair_drop_swapped": True,
    "side_min_script_share": 0.25, "pair_drop_copies": True, "pair_max_overlap": 0.8, "pair_max_length_ratio": 3.0,
    "pair_min_margin": 1.06, "language_identifier": "my_module:identify", "language_min_score": 0.7,
    "language_level": "paragraph", "test_sets": ("a b.txt", "c.tsv.xz"), "test_set_ngram": 8, "deduplicate_documents": True,
    "deduplicate_paragraphs": True, "deduplicate_pairs": True, "minhash_bands": 9, "minhash_rows": 13, "minhash_ngram": 3,
}  # fmt: skip


def test_nothing_is_filtered_by_default_and_nothing_is_identity() -> None:
    assert FilterConfig().changed() == {}
    assert all(map(is_operational, dataclasses.fields(FilterConfig)))
    assert set(OTHER) == {field.name for field in dataclasses.fields(FilterConfig)}


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_flags_say_every_field(name: str, value: Any) -> None:
    config = FilterConfig(**{name: value})
    assert config != FilterConfig()
    assert list(config.changed()) == [name]
    (flag,) = filter_flags(config)
    assert parse_filters([flag]) == config
    assert parse_filters(filter_flags(FilterConfig(**OTHER))) == FilterConfig(**OTHER)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("document_max_top_ngrams=0.2,0.18,0.16", "document_max_top_ngrams", (0.2, 0.18, 0.16)),
        ("document_max_top_ngrams=0.2", "document_max_top_ngrams", (0.2,)),
        ("test_sets=/a/b.txt,c.xz", "test_sets", ("/a/b.txt", "c.xz")),
        ("test_sets=c.xz", "test_sets", ("c.xz",)),
        ("normalize=NFC", "normalize", "NFC"),
        ("language_identifier=my_module:identify", "language_identifier", "my_module:identify"),
        ("pair_min_margin=None", "pair_min_margin", None),
    ],
)
def test_flags_take_bare_words_and_lists(flag: str, name: str, value: Any) -> None:
    assert getattr(parse_filters([f"--filter.{flag}"]), name) == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["paragraph_min_letter=3"], "no filter 'paragraph_min_letter'; did you mean 'paragraph_min_letters'"),
        (["zzz=3"], "no filter 'zzz'; known: remove_format"),
        (["paragraph_min_letters"], "write --filter.paragraph_min_letters=VALUE"),
        (["paragraph_min_letters=2", "paragraph_min_letters=3"], "is given twice"),
        (["paragraph_min_letters=many"], "--filter.paragraph_min_letters must be int, found 'many'"),
        (["paragraph_min_letters=1.5"], "must be int, found 1.5"),
        (["paragraph_min_letter_share=1.5"], "must be between 0 and 1, found 1.5"),
        (["pair_max_length_ratio=0.5"], "must be at least 1, found 0.5"),
        (["minhash_bands=0"], "must be between 1 and 256"),
        (["normalize=NFD"], "must be one of NFC, NFKC, found 'NFD'"),
        (["language_level=line"], "must be one of document, paragraph, found 'line'"),
        (["language_identifier=my_module"], '"module:function"'),
        (["language_identifier=my-module:f"], '"module:function"'),
        (["document_max_top_ngrams=0.2,18"], "must hold shares between 0 and 1"),
        (["remove_format_characters=yes"], "must be bool, found 'yes'"),
    ],
)
def test_what_cannot_be_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(FilterFlagError) as error:
        parse_filters([f"--filter.{flag}" for flag in flags])
    assert message in str(error.value)


def test_gin_binds_filters_and_guards_code(tmp_path) -> None:
    file = tmp_path / "mine.gin"
    file.write_text(
        'include "pretrain_tiny.gin"\nFilterConfig.document_max_top_ngrams = [0.2, 0.18]\n'
        'FilterConfig.scripts = {"sr": "Cyrl,Latn"}\nFilterConfig.language_identifier = "my_lid:identify"\n'
    )
    with pytest.raises(ConfigError, match=r"mine.gin:4: FilterConfig.language_identifier.*--allow_import=my_lid"):
        load([str(file)])
    config = load([str(file)], ["FilterConfig.pair_max_length_ratio=3"], allow_imports=["my_lid"])
    assert config.filters == FilterConfig(
        document_max_top_ngrams=(0.2, 0.18),
        scripts={"sr": "Cyrl,Latn"},
        language_identifier="my_lid:identify",
        pair_max_length_ratio=3,
    )
    assert not any(key.startswith("FilterConfig") for key in config.identity())
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        load(["pretrain_tiny.gin"], ["FilterConfig.pair_max_overlap=2"])
