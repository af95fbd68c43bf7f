"""What is said of prepared data, against brute force over all chunks; and the page, against a parser."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deltalm_jax import prepare as command
from deltalm_jax.data.blocks import Input
from deltalm_jax.data.chunks import PreparedData, read_manifest, write_manifest
from deltalm_jax.data.description import figures, wording
from deltalm_jax.data.description.measurement import Histogram
from deltalm_jax.data.description.numbers import Description, describe
from deltalm_jax.data.description.page import as_html
from deltalm_jax.data.piece_table import PieceTable
from deltalm_jax.data.preparation import prepare
from deltalm_jax.data.readers import read_cc100, read_ccaligned
from deltalm_jax.data.stream import Objective, Stream
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, UNK_ID, Vocabulary
from deltalm_jax.objectives import make_objective
from tests.support.toy_data import SAMPLE_VOCABULARY

STEPS = 7
HOSTILE = '<script>alert("1")</script> & </p><img src=x onerror=alert(2)>'
OBJECTIVES = {
    name: Objective(make_objective(name), 16, 0.5) for name in ("span_corruption", "translation_span_corruption")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Documents in three scripts and pairs in two, with hostile text, rows that are dropped and rare characters."""
    folder = tmp_path_factory.mktemp("data")
    texts = {
        "de": [f"Absatz {i} im Text.\nUnd noch einer, {HOSTILE}" for i in range(40)],
        "ar": [f"هذه فقرة رقم {i} في هذا النص\nوفقرة أخرى" for i in range(25)],
        "zz": [f"\U00010330\U00010331 {i} rare \ufffd" for i in range(9)],  # Gothic: spelled in bytes
    }
    inputs = []
    for code, documents in texts.items():
        path = folder / f"{code}.txt"
        path.write_text("\n\n".join(documents))
        script = {"de": "Latn", "ar": "Arab"}.get(code)
        groups = {"script": script} if script else {}
        inputs.append(Input(f"cc100_{code}", "span_corruption", code, read_cc100, (path,), groups=groups))
    rows = {"de": "\n".join(["kaputt"] * 3), "ar": "kaputt"}
    for code in ("de", "ar"):
        path = folder / f"en_XX-{code}_XX.tsv"
        first = texts[code][0].split("\n")[0]
        path.write_text("".join(f"sentence {i} {HOSTILE}\t{first} {i}\n" for i in range(60)) + rows[code] + "\n")
        inputs.append(
            Input(
                f"ccaligned_{code}",
                "translation_span_corruption",
                code,
                read_ccaligned,
                (path,),
                groups={"script": "X"},
            )
        )
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    return prepare(
        inputs, vocabulary, folder / "out", mixture="mix<b>", chunk_length=32, validation_fraction=0.1, block_bytes=1000
    ).data


@pytest.fixture(scope="module")
def description(data: PreparedData) -> Description:
    return describe(data, OBJECTIVES, STEPS, seed=3, sample_chunks=10**6)


def all_chunks(data: PreparedData, name: str) -> list[np.ndarray]:
    index = [task.name for task in data.tasks].index(name)
    count = data.chunk_count(index, "train")
    tokens_BL, lengths_B = data.read("train", np.full(count, index), np.arange(count))
    return [tokens_L[:length] for tokens_L, length in zip(tokens_BL, lengths_B, strict=True)]


def test_numbers_of_tasks_are_those_of_all_their_chunks(data: PreparedData, description: Description) -> None:
    all_pieces = Vocabulary.load(SAMPLE_VOCABULARY).pieces()
    stream = Stream(data, OBJECTIVES, 3)
    described = {task.name: task for objective in description.objectives for task in objective.tasks}
    assert set(described) == {task.name for task in data.tasks}
    totals = Counter[str]()
    for task in data.tasks:
        totals[task.objective] += task.tokens("train")
    for task in data.tasks:
        chunks, found = all_chunks(data, task.name), described[task.name]
        ids = np.concatenate(chunks)
        assert (found.tokens, found.chunks) == (len(ids), len(chunks))
        assert found.padding == 32 * len(chunks) - len(ids)
        assert found.share == pytest.approx(len(ids) / totals[task.objective])
        assert found.sampled.chunks == len(chunks)
        assert found.sampled.tokens == len(ids)
        assert found.sampled.unknown == (ids == UNK_ID).sum()
        pieces = [all_pieces[i - 1] for i in ids.tolist() if i > EOS_ID]
        assert found.sampled.byte_pieces == sum(is_byte for _, is_byte in pieces)
        assert found.sampled.text_tokens == len(pieces)
        # What the pieces spell, byte by byte.
        spelled = b"".join(
            bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode() for piece, is_byte in pieces
        )
        assert found.sampled.utf8_bytes == len(spelled)
        # Chunks may end within a character, so the count by decoding may differ by those.
        assert abs(found.sampled.characters - len(spelled.decode(errors="ignore"))) <= len(chunks)
        drawn = Counter(name for step in range(STEPS) for name in stream.tasks_of(step)[task.objective])
        assert found.epochs == pytest.approx(drawn[task.name] / len(chunks))
        assert found.rate == pytest.approx(stream.rates()[task.objective][task.name])
        held_out = task.splits.get("validation")
        assert found.held_out_tokens == (held_out.tokens if held_out else 0)
    assert described["cc100_zz"].sampled.byte_pieces > 0
    assert described["ccaligned_de"].left.dropped == {"columns": 3}
    assert described["ccaligned_ar"].left.dropped == {"columns": 1}


def test_lengths_and_padding_are_those_of_all_chunks(data: PreparedData, description: Description) -> None:
    stream = Stream(data, OBJECTIVES, 3)
    for objective in description.objectives:
        chunks = [c for task in objective.tasks for c in all_chunks(data, task.name)]
        lengths = [len(chunk) for chunk in chunks]
        edges = objective.chunk_lengths.edges
        assert objective.chunk_lengths.counts == tuple(np.histogram(lengths, [*edges[:-1], edges[-1] - 0.5])[0])
        segments = []
        for chunk in chunks:
            open_at = None
            for place, token in enumerate(chunk.tolist()):
                if token == EOS_ID and open_at is not None:
                    segments.append(place - open_at - 1)
                if token in (BOS_ID, EOS_ID):
                    open_at = place
        for low, high, count in zip(
            objective.segment_lengths.edges,
            objective.segment_lengths.edges[1:],
            objective.segment_lengths.counts,
            strict=False,
        ):
            assert count == sum(low <= segment < high for segment in segments)
        batch = stream.batch(0)[objective.name]
        assert objective.inputs_padding == pytest.approx(np.mean(batch["inputs"] == 0))
        assert objective.targets_padding == pytest.approx(np.mean(batch["targets"] == 0))


def test_examples_put_together_again_are_their_chunks(data: PreparedData, description: Description) -> None:
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    for objective in description.objectives:
        assert [example.script for example in objective.examples][:2] != [""] * 2
        for example in objective.examples:
            spans = dict(re.findall(r"(<mask_\d+>)((?:(?!<mask_\d+>).)*)", example.targets, re.DOTALL))
            whole = re.sub(r"<mask_\d+>", lambda match, spans=spans: spans.pop(match[0]), example.inputs)
            assert not spans
            chunk = vocabulary.decode(all_chunks(data, example.task)[example.chunk])
            if example.language != "zz":  # characters spelled in bytes are torn by the mask
                assert whole.replace(" ", "") == chunk.replace(" ", "")


def test_a_sample_is_a_part_at_equal_distances(data: PreparedData) -> None:
    described = describe(data, OBJECTIVES, STEPS, sample_chunks=5)
    (task,) = (t for o in described.objectives for t in o.tasks if t.name == "cc100_de")
    chunks = all_chunks(data, "cc100_de")
    wanted = [chunks[i * len(chunks) // 5] for i in range(5)]
    assert (task.sampled.chunks, task.sampled.tokens) == (5, sum(map(len, wanted)))


def test_a_histogram_refuses_what_lies_outside() -> None:
    assert Histogram.of(np.array([1, 1, 4]), (1, 2, 5)) == Histogram((1, 2, 5), (2, 1))
    with pytest.raises(ValueError, match="values from 1 to 5 in bins from 1 to 5"):
        Histogram.of(np.array([1, 5]), (1, 5))


def test_the_table_of_pieces_spells_what_sentencepiece_decodes() -> None:
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    table = PieceTable.of(vocabulary)
    text = "Grüße 世界 مرحبا \U00010330"
    ids = vocabulary.encode(text)
    # The space that begins a text is in no text.
    assert table.characters_V[ids].sum() == len(text) + 1
    assert table.bytes_V[ids].sum() == len(text.encode()) + 1
    assert table.is_byte_V[ids].sum() == 4
    assert table.characters_V[[0, UNK_ID, BOS_ID, EOS_ID, vocabulary.mask_id]].sum() == 0


class Page(html.parser.HTMLParser):
    """Elements of a page; raises where tags do not match."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_loads_nothing(description: Description) -> None:
    text = as_html(description)
    page = Page(text)
    tags = Counter(tag for tag, _ in page.elements)
    assert not tags.keys() & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert tags["svg"] == 6  # rates and two histograms each; no filter has dropped anything, only the reader has
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "data", "action"):
                assert value
                assert value.startswith("#"), (tag, value)
    assert "url(" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for t, a in page.elements if t == "a"} <= {f"#{name}" for name in ids}
    shown = "".join(page.texts)
    (pairs,) = (objective for objective in description.objectives if objective.name.startswith("translation"))
    assert sum(sum(task.left.dropped.values()) for task in pairs.tasks) > 0
    assert shown.count("Nothing was dropped.") == shown.count("Dropped where the characters were not counted: ") == 1
    for task in (task for objective in description.objectives for task in objective.tasks):
        assert f"{task.tokens:,}" in shown
    assert [a.get("scope") for t, a in page.elements if t == "th"].count("row") == 5
    for code in description.languages():
        assert code in page.texts
    # Text of the data is text, not elements; the mixture's name too.
    assert 'alert("1")</script> &' in shown
    assert "mix<b>" in shown
    assert "<img src=x" not in text
    assert {a.get("dir") for t, a in page.elements if t == "p" and "dir" in a} == {"auto"}
    assert {a["dir"] for t, a in page.elements if t == "div" and "dir" in a} == {"ltr", "rtl"}


def with_left(data: PreparedData, folder: Path, changes: dict[str, dict[str, object]]) -> Description:
    """A description of the data with other manifest entries of what was left out."""
    shutil.copytree(data.folder, folder)
    manifest = read_manifest(data.folder)
    del manifest["format"], manifest["digest"]
    for name, entry in changes.items():
        splits = manifest["tasks"][name]["splits"]
        for split in splits.values():
            split |= {"dropped": {}, "dropped_characters": {}, "before": {"units": 0, "characters": 0}}
        splits["train"] |= entry
    write_manifest(folder, manifest)
    return describe(PreparedData.open(folder), OBJECTIVES, STEPS)


def test_what_was_dropped_is_a_share_of_the_characters_where_they_were_counted(
    data: PreparedData, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, object]] = {
        "cc100_de": {
            "dropped": {"language": 30, '<evil> & "x"': 10},
            "dropped_characters": {"language": 250, '<evil> & "x"': 50},
            "before": {"units": 80, "characters": 1000},
        },
        "cc100_ar": {"dropped": {"language": 1}, "dropped_characters": {"language": 10}, "before": {"characters": 500}},
    }
    described = with_left(data, tmp_path / "left", changes)
    (objective, _) = described.objectives
    shares = {task.language: wording.dropped_shares(task) for task in objective.tasks}
    assert shares["de"] == ({"language": 0.25, '<evil> & "x"': 0.05}, "characters")
    assert shares["ar"] == ({"language": 0.02}, "characters")
    assert shares["zz"][0] == {}
    picture = figures.dropped(objective.tasks, figures.reasons_of(described.objectives))
    page = Page(picture)
    widths = [float(a["width"] or 0) for t, a in page.elements if t == "rect"]
    assert len(widths) == 3
    assert widths[1] / widths[0] == pytest.approx(0.2, rel=0.01)
    assert widths[2] / widths[0] == pytest.approx(0.08, rel=0.01)
    Page(as_html(described))
    assert '<evil> & "x"' in "".join(page.texts)


def test_the_command_shows_and_writes(data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    flags = [f"--describe={data.folder}", f"--html={page}", f"--json={numbers}", "--steps=7", "--batch_size=16"]
    assert command.main([*flags, "--sampling_exponent=0.5", "--sample_chunks=1000000"]) == 0
    printed = capsys.readouterr().out
    assert "cc100_ar, chunk" in printed
    assert "<mask_0>" in printed
    described = describe(data, OBJECTIVES, STEPS, sample_chunks=10**6)
    # Epochs go by the steps planned for; nothing else differs from what the function says.
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(dataclasses.asdict(described)))
    assert page.read_text() == as_html(described)
    assert command.main([f"--describe={tmp_path}"]) == 2
    assert "expected a folder with manifest.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([f"--describe={data.folder}", "--steps=0"])
    with pytest.raises(SystemExit):
        command.main([])
    assert "--output is needed" in capsys.readouterr().err
