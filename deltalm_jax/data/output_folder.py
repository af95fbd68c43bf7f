"""Prepared data that are there already: the very ones asked for, or in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data import partial
from deltalm_jax.data.blocks import TextSource
from deltalm_jax.data.chunks import MANIFEST, PreparedData, PreparedDataError
from deltalm_jax.data.partial import PreparationError


def existing(
    output: Path, header: Mapping[str, Any], inputs: Sequence[TextSource], overwrite: bool
) -> PreparedData | None:
    """Prepared data that are already at `output` and are just what is asked for; None if they have to be made.

    Args:
      output: the folder.
      header: the manifest's first entries, as they would be written now.
      inputs: of the tasks. Their text is digested (that of seqio Tasks: read) only if everything else agrees.
      overwrite: whether prepared data that are there may be replaced.

    Raises:
      PreparationError: something else is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if partial.was_being_published(output):
        return None
    if not (output / MANIFEST).is_file():
        raise PreparationError(f"{output}: exists and is no prepared data. Choose another --output, or move it away.")
    if overwrite:
        return None
    try:
        found = PreparedData.open(output)
    except PreparedDataError as error:
        raise PreparationError(str(error)) from error
    differences = list(_differences(found.manifest, header, inputs))
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise PreparationError(
            f"{output}: prepared before, and differently: {'; '.join(differences[:5])}{more}. "
            "Choose another --output, or replace it with --overwrite."
        )
    return found


def _differences(manifest: Mapping[str, Any], header: Mapping[str, Any], inputs: Sequence[TextSource]) -> Iterator[str]:
    """Each difference between a manifest and what is asked for, as "what: … there, … asked for"."""
    pairs: list[tuple[str, Any, Any]] = [
        ("mixture", manifest.get("mixture"), header["mixture"]),
        ("languages", manifest.get("languages"), header["languages"]),
        *(
            (f"chunk_length of {name}", manifest["chunk_lengths"].get(name), header["chunk_lengths"].get(name))
            for name in sorted({*manifest["chunk_lengths"], *header["chunk_lengths"]})
        ),
        ("vocabulary", manifest["vocabulary"].get("fingerprint"), header["vocabulary"]["fingerprint"]),
        ("ids of the golden sentences", manifest["vocabulary"].get("golden_encodings"), _golden(manifest, header)),
    ]
    settings, wanted = manifest.get("settings", {}), header["settings"]
    pairs += [(name, settings.get(name), value) for name, value in wanted.items() if name != "filters"]
    # Only fields that differ from their defaults are there.
    filters, wanted_filters = settings.get("filters", {}), wanted.get("filters", {})
    for name in dict.fromkeys([*filters, *wanted_filters]):
        pairs.append((f"filter {name}", filters.get(name, "default"), wanted_filters.get(name, "default")))
    there = {
        (task, split): [{key: value for key, value in part.items() if key != "xxh3"} for part in found]
        for task, entry in manifest["tasks"].items()
        for split, found in entry.get("inputs", {}).items()
    }
    asked = {
        (source.task, split): [source.origin(split, part) for part in range(source.parts(split))]
        for source in inputs
        for split in source.splits
    }
    for key in [*asked, *(key for key in there if key not in asked)]:
        was, now = there.get(key, []), asked.get(key, [])
        if was != now:
            pairs.append((f"{key[0]} {key[1]} text", _shown(was, now), _shown(now, was)))
    for source in inputs:
        entry = manifest["tasks"].get(source.task, {})
        for name in ("objective", "language", "groups") if entry else ():
            pairs.append((f"{source.task} {name}", entry.get(name), getattr(source, name)))
    different = [f"{what}: {was} there, {now} asked for" for what, was, now in pairs if was != now]
    if different:
        yield from different
        return
    if list(manifest["tasks"]) != [source.task for source in inputs]:
        yield "the order of the tasks"
    for source in inputs:
        for split in source.splits:
            found = manifest["tasks"][source.task]["inputs"][split]
            if any(source.digest(split, part) != entry["xxh3"] for part, entry in enumerate(found)):
                yield f"{source.task} {split} text: other content in {source.where(split)}"


def _golden(manifest: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    """The digest of golden encodings that is asked for, and what has changed them if it is not the one there."""
    was, now = manifest["vocabulary"], header["vocabulary"]
    asked = str(now["golden_encodings"])
    if was.get("golden_encodings") == asked or was.get("fingerprint") != now["fingerprint"]:
        return str(was.get("golden_encodings"))
    return f"{asked} (SentencePiece {was.get('sentencepiece_version')} there, {now['sentencepiece_version']} here)"


def _shown(origins: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    """What is in `TextSource.origin` of all parts and not in those of `others`, for messages."""
    shown: list[str] = []
    known = [file for other in others for file in other.get("files", [])]
    for origin in origins:
        if "seqio_task" in origin:
            shown.append(f"seqio task {origin['seqio_task']}, split {origin['split']}")
        for file in origin.get("files", []):
            if file not in known:
                name, size, *piece = file
                shown.append(", ".join([f"{name} of {size:,} bytes", *piece]))
    more = f" and {len(shown) - 2} more" if len(shown) > 2 else ""
    return ", ".join(shown[:2]) + more if shown else "nothing more" if origins else "nothing"
