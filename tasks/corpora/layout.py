"""Whose language each file of a corpus's folder is, by its name.

Functions (folder, codes) → (language, file), in the order of their paths. Files whose names say nothing (a README) are left
out where a corpus is somebody's publication; in the folders of one's own text, what looks like text and has no language in
its name is an error, so that nothing is forgotten unnoticed. `validation` is not looked into: it is a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from deltalm_jax.data.readers import ENGLISH, CorpusError, pair_codes
from deltalm_jax.data.readers.names import codes_in, is_english
from deltalm_jax.data.readers.parallel import ENGLISH_SIDE, aligned_code, column_codes, english_beside, is_columns
from deltalm_jax.data.readers.wikipedia import SHARD_NAME
from tasks.languages import Codes

VALIDATION = "validation"

_CODE = r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*"
_DOCUMENTS = re.compile(rf"^({_CODE})\.txt(\.xz|\.gz)?$")
_CC_NET = re.compile(rf"^({_CODE}?)_(head|middle|tail|all)(_\d{{4,}})?\.json(\.gz|\.xz)?$")
_OPUS = re.compile(r"\.(txt\.zip|tmx(\.gz|\.xz)?)$")
_WIKIPEDIA = re.compile(r"^(\d{8})\.([a-z][a-z0-9-]*)$")
_NOT_TEXT = re.compile(r"^(\.|(README|LICEN[CS]E|NOTICE|CHANGES)\b)", re.IGNORECASE)
_OTHER_PACKING = re.compile(r"\.(zst|bz2|lz4|7z|rar|zip|tar|tgz|tar\.gz|tar\.xz)$")
# CCAligned's codes that are nobody else's.
_CCALIGNED_ODDITIES = {"cb_IQ": "ckb", "my_MM_zaw": "my_zaw", "sz_PL": "szl"}


def cc100(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`de.txt.xz`: CC100's code, or any other, in the name."""
    for path in sorted(folder.iterdir()):
        match = _DOCUMENTS.match(path.name)
        if match and path.is_file():
            yield codes.find(match[1]), path


def cc_net(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`de_head_0000.json.gz`, in the folder or in one for each crawl."""
    for path in _files_below(folder):
        if match := _CC_NET.match(path.name):
            yield codes.find(match[1]), path


def wikipedia(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`20230601.de/1.0.0/` with all its shards.

    Raises:
      CorpusError: two dumps of one Wikipedia, or shards missing.
    """
    shards: dict[str, dict[Path, list[re.Match[str]]]] = {}
    for path in _files_below(folder):
        config, shard = _WIKIPEDIA.match(path.parent.parent.name), SHARD_NAME.match(path.name)
        if config and shard:
            shards.setdefault(config[2], {}).setdefault(path.parent, []).append(shard)
    for name, dumps in shards.items():
        if len(dumps) > 1:
            raise CorpusError(f"expected one dump of the Wikipedia {name!r}, found {' and '.join(map(str, dumps))}.")
        ((version, found),) = dumps.items()
        numbers, total = {int(shard["number"]) for shard in found}, int(found[0]["total"])
        if len(found) != total or numbers != set(range(total)):
            missing = sorted(set(range(total)) - numbers)
            raise CorpusError(
                f"{version}: expected {total:,} shards of one format, found {len(found):,}"
                + (f"; number {missing[0]:05d} is missing." if missing else ".")
                + " Copy the whole folder, or build the data set again."
            )
        for shard in found:
            yield codes.find(name), version / shard.string


def text(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`sw.txt`, or the `.txt` files below a folder `sw`.

    Raises:
      CorpusError: names without a language, text that is packed in another way, or a folder without text.
    """
    for entry in sorted(folder.iterdir()):
        if _NOT_TEXT.match(entry.name) or entry.name == VALIDATION:
            continue
        if entry.is_dir():
            if not re.fullmatch(_CODE, entry.name):
                raise CorpusError(f"{entry}: expected a folder named by a language code, such as {folder / 'sw'}.")
            found = [path for path in _files_below(entry) if _is_text(path)]
            if not found:
                raise CorpusError(f"{entry}: expected files *.txt (also .txt.gz, .txt.xz) in it, found none.")
            yield from ((codes.find(entry.name), path) for path in found)
        elif _is_text(entry):
            match = _DOCUMENTS.match(entry.name)
            if not match:
                raise CorpusError(
                    f"{entry}: expected a language code as its name, such as {folder / 'sw.txt'}; or put the files of a "
                    f"language into a folder of that name, such as {folder / 'sw' / entry.name}."
                )
            yield codes.find(match[1]), entry


def ccaligned(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`de_DE-en_XX.tsv.xz`: CCAligned's codes, which are their own."""
    for path in sorted(folder.iterdir()):
        if not re.search(r"\.tsv(\.xz|\.gz)?$", path.name):
            continue
        code = next(code for code in pair_codes(path) if code != ENGLISH)
        yield _of_ccaligned(code, codes), path


def opus(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """Moses archives and translation memories; anything may stand before the two codes, and in folders above.

    Raises:
      CorpusError: a name without two codes, or without English; the same pairs in both formats.
    """
    for path in _files_below(folder):
        if not _OPUS.search(path.name):
            continue
        found = codes_in(_OPUS.sub("", path.name))
        if found is None or is_english(found[0]) == is_english(found[1]):
            raise CorpusError(
                f"{path}: expected a name that ends in two codes, one of them en: de-en.txt.zip or "
                "Books_v1_moses_en-fr.txt.zip. Pairs without English cannot be used."
            )
        yield codes.find_regional(found[0] if is_english(found[1]) else found[1]), path


def parallel(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """Files of two columns, and line-aligned ones with their English side, of which every language has its own mention.

    Raises:
      CorpusError: a `.tsv` without codes; an English side without another, or the reverse; text that is packed in another
        way.
    """
    paired: set[Path] = set()
    sides: set[Path] = set()
    for path in _files_below(folder):
        if _NOT_TEXT.match(path.name):
            continue
        _check_packing(
            path, lambda name: is_columns(Path(name)) or codes.find(aligned_code(Path(name)) or "") in codes.table
        )
        if is_columns(path):
            pair = column_codes(path)
            yield codes.find_regional(pair[0] if is_english(pair[1]) else pair[1]), path
            continue
        code = aligned_code(path)
        if code == ENGLISH_SIDE:
            sides.add(path)
        elif code is not None:
            english = english_beside(path)
            language = codes.find_regional(code)
            if english is not None:
                paired.add(english)
                yield language, english
                yield language, path
            elif language in codes.table:
                raise CorpusError(
                    f"{path}: expected its English side beside it, its name with .{ENGLISH_SIDE} for .{code}; it is not "
                    "there."
                )
    if alone := sorted(sides - paired):
        raise CorpusError(
            f"{alone[0]}: expected another side beside it, such as {alone[0].name.replace(f'.{ENGLISH_SIDE}', '.sw')}, "
            "found none."
        )


def examples(folder: Path, codes: Codes) -> Iterator[tuple[str, Path]]:
    """`NAME.tsv`, such as `de-en.tsv`: the name takes the place of a language.

    Raises:
      CorpusError: a name that no task can have, or a file that is packed in another way.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        _check_packing(path, lambda name: is_columns(Path(name)))
        if not is_columns(path):
            continue
        name = path.name.split(".tsv")[0]
        if not re.fullmatch(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*", name):
            raise CorpusError(f"{path}: expected a name of letters, digits, - and _, such as {folder / 'de-en.tsv'}.")
        yield name, path


def _files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders but `validation`, sorted by path; hidden ones left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == VALIDATION:
            continue
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _is_text(path: Path) -> bool:
    _check_packing(path, lambda name: name.endswith(".txt"))
    return bool(re.search(r"\.txt(\.xz|\.gz)?$", path.name)) and not _NOT_TEXT.match(path.name)


def _check_packing(path: Path, is_text: Callable[[str], bool]) -> None:
    unpacked = _OTHER_PACKING.sub("", path.name)
    if unpacked != path.name and is_text(unpacked):
        raise CorpusError(f"{path}: expected text that is plain, .xz or .gz; pack it again as one of them.")


def _of_ccaligned(code: str, codes: Codes) -> str:
    for language in codes.table.values():
        if language.ccaligned_code == code:
            return language.code
    found = codes.find(_CCALIGNED_ODDITIES.get(code, code))
    if found != code:
        return found
    # Not a published name. `eu_ES` can only be Basque, for which nothing is published; `az_IR` is not `az_AZ`.
    base = code.split("_")[0]
    found = codes.find(base)
    return found if found != base or base not in codes.table or not codes.table[base].ccaligned_file else code
