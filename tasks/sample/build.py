"""Builds the shipped sample from the texts of the Declaration of Human Rights and of Django's translations.

    python -m tasks.sample.build --udhr DIR --django DIR

`DIR/CODE.tsv` of `--udhr` holds `key TAB paragraph` in document order (`preamble.1`, `art1.1`, …; equal keys are
translations of each other); `DIR/en-CODE.tsv` of `--django` holds `English TAB translation`. The output is in the
formats of CC100 and CCAligned, and the same bytes for the same input.

Held out in every language and in both corpora: articles 21 to 30 of the declaration, and the tenth of Django's messages
that the hash of the English message chooses. Training text that equals a held-out text of any language is left out.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltalm_jax.data.blocks import is_held_out
from tasks.corpora import SAMPLE_DIR
from tasks.languages import Language, load_languages

HELD_OUT_ARTICLES = range(21, 31)
HELD_OUT_MESSAGES = 0.1
# Interface strings have no documents; runs of this length in file order stand for them.
MESSAGES_PER_DOCUMENT = 12
# CCAligned's third column is a LASER margin. None was computed for these translations made by people.
MARGIN = "1.1000"

# The texts' own codes, where the table's differ.
_CODES = {"zh": "zh-Hans", "zh-hant": "zh-Hant"}
# Fixed, so that equal input gives equal bytes. The files are small: the preset's window of 64 MiB would only cost time.
_XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20}]
_ARTICLE = re.compile(r"art(\d+)(\.\d+)?")


def split_declaration(rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Key → paragraph for "train" (preamble, articles 1 to 20) and "validation" (21 to 30), in document order."""
    splits: dict[str, dict[str, str]] = {"train": {}, "validation": {}}
    for key, paragraph in rows:
        article = _ARTICLE.fullmatch(key)
        if not article and not key.startswith("preamble"):
            raise ValueError(f"expected a key like preamble.1 or art12.1, found {key!r}")
        held_out = article is not None and int(article[1]) in HELD_OUT_ARTICLES
        splits["validation" if held_out else "train"][key] = paragraph
    return splits


def split_messages(messages: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """(English, translation) for "train" and "validation", in file order, by hash of the English message."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for english, other in dict.fromkeys(messages):
        splits["validation" if is_held_out(english, HELD_OUT_MESSAGES) else "train"].append((english, other))
    return splits


def monolingual(
    declaration: dict[str, dict[str, str]], messages: dict[str, list[str]], held_out: set[str]
) -> dict[str, list[list[str]]]:
    """Documents per split: the declaration's part, then runs of messages; no training paragraph is in `held_out`."""
    documents: dict[str, list[list[str]]] = {}
    for split in ("train", "validation"):
        skip = held_out if split == "train" else set()
        strings = [text for text in dict.fromkeys(messages[split]) if text not in skip]
        runs = [strings[i : i + MESSAGES_PER_DOCUMENT] for i in range(0, len(strings), MESSAGES_PER_DOCUMENT)]
        documents[split] = [[text for text in declaration[split].values() if text not in skip], *runs]
    return {split: [document for document in parts if document] for split, parts in documents.items()}


def bilingual(
    english: dict[str, dict[str, str]],
    other: dict[str, dict[str, str]],
    messages: dict[str, list[tuple[str, str]]],
    held_out: set[str],
) -> dict[str, list[tuple[str, str]]]:
    """(English, other) pairs per split: paragraphs with equal keys, then messages; untranslated ones are left out.

    No side of a training pair is in `held_out`.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for split in ("train", "validation"):
        paragraphs = [(text, other[split][key]) for key, text in english[split].items() if key in other[split]]
        pairs[split] = [pair for pair in dict.fromkeys([*paragraphs, *messages[split]]) if pair[0] != pair[1]]
    pairs["train"] = [pair for pair in pairs["train"] if held_out.isdisjoint(pair)]
    return pairs


def held_out_texts(
    declarations: Iterable[dict[str, dict[str, str]]], messages: Iterable[dict[str, list[tuple[str, str]]]]
) -> set[str]:
    """Every validation text of every language: Bosnian and Croatian, say, have strings in common."""
    paragraphs = {text for declaration in declarations for text in declaration["validation"].values()}
    return paragraphs | {side for splits in messages for pair in splits["validation"] for side in pair}


def build(udhr: Path, django: Path, output: Path) -> None:
    """Writes `output/cc100` and `output/ccaligned`, replacing what is there.

    Raises:
      ValueError: a row without exactly two columns, a control character, an unknown key or language code.
    """
    table = load_languages()
    declarations = {_code(path.stem): split_declaration(_read_rows(path)) for path in sorted(udhr.glob("*.tsv"))}
    messages = {
        _code(path.stem.removeprefix("en-")): split_messages(_read_rows(path))
        for path in sorted(django.glob("en-*.tsv"))
    }
    if unknown := sorted({*declarations, *messages} - set(table)):
        raise ValueError(f"languages missing in tasks/languages.csv: {', '.join(unknown)}")
    held_out = held_out_texts(declarations.values(), messages.values())
    for folder in (output / "cc100", output / "ccaligned"):
        if folder.exists():
            shutil.rmtree(folder)
    nothing: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for code, declaration in declarations.items():
        language_messages = messages.get(code, nothing)
        if code == "en":
            strings = {s: [p[0] for m in messages.values() for p in m[s]] for s in ("train", "validation")}
        else:
            strings = {s: [p[1] for p in language_messages[s]] for s in ("train", "validation")}
        for split, documents in monolingual(declaration, strings, held_out).items():
            text = "\n".join("".join(f"{paragraph}\n" for paragraph in document) for document in documents)
            _write(_place(output / "cc100", split) / f"{code}.txt.xz", text)
        if code == "en":
            continue
        for split, pairs in bilingual(declarations["en"], declaration, language_messages, held_out).items():
            name, english_is_first = _pair_name(table[code])
            sides: Sequence[tuple[str, str]] = pairs if english_is_first else [(b, a) for a, b in pairs]
            _write(_place(output / "ccaligned", split) / name, "".join(f"{a}\t{b}\t{MARGIN}\n" for a, b in sides))


def _code(code: str) -> str:
    return _CODES.get(code, code)


def _place(folder: Path, split: str) -> Path:
    return folder if split == "train" else folder / split


def _pair_name(language: Language) -> tuple[str, bool]:
    """File name, and whether English is the first column: the code that sorts first stands first."""
    first, second = sorted(("en_XX", language.ccaligned_code))
    return f"{first}-{second}.tsv.xz", first == "en_XX"


def _read_rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(path.read_bytes().decode("utf-8").removesuffix("\n").split("\n"), 1):
        columns = line.split("\t")
        if len(columns) != 2 or re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]", line):
            raise ValueError(f"{path}, line {number}: expected two columns without control characters, found {line!r}")
        rows.append((columns[0].strip(), columns[1].strip()))
    return rows


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode("utf-8"), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_XZ_FILTERS))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--udhr", type=Path, required=True, help="folder with CODE.tsv: key TAB paragraph")
    parser.add_argument("--django", type=Path, required=True, help="folder with en-CODE.tsv: English TAB translation")
    parser.add_argument("--output", type=Path, default=SAMPLE_DIR, help="default: tasks/sample")
    arguments = parser.parse_args()
    build(arguments.udhr, arguments.django, arguments.output)


if __name__ == "__main__":
    main()
