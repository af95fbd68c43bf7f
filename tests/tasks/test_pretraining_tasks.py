"""The seqio Tasks and Mixtures: examples rebuilt to the text they come from, seeds, rates, registration."""

from __future__ import annotations

import collections
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from deltalm_jax.data.readers import CorpusError, read_cc100, read_ccaligned
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import SAMPLE_DIR, find_files, task_name
from tasks.languages import load_languages
from tasks.source import CorpusDataSource

BOS, EOS = 2, 3
CHUNK = 64
LANGUAGES = ["de", "en", "th", "zh-Hans"]
Example = dict[str, list[int]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_DIR / "vocabulary.model")


@pytest.fixture
def some_languages() -> Iterator[list[str]]:
    yield tasks.register(languages=LANGUAGES)
    tasks.register()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    """16 documents, the same in two languages, and 40 pairs in each."""
    (tmp_path / "cc100").mkdir()
    (tmp_path / "ccaligned").mkdir()
    documents = "\n\n".join(f"Paragraph one of document {i}.\nIts second one, {i * i}." for i in range(16))
    for code in ("de", "fr"):
        (tmp_path / "cc100" / f"{code}.txt").write_text(documents)
        (tmp_path / "cc100/validation").mkdir(exist_ok=True)
        (tmp_path / "cc100/validation" / f"{code}.txt").write_text("Held out.\nAll of it.")
    pairs = "".join(f"sentence number {i}\tSatz Nummer {i}\t1.1\n" for i in range(40))
    (tmp_path / "ccaligned/en_XX-fr_XX.tsv").write_text(pairs)
    (tmp_path / "ccaligned/de_DE-en_XX.tsv").write_text("".join(f"Satz {i}\tsentence {i}\n" for i in range(30)))
    yield tmp_path
    tasks.register()


def examples(name: str, **options: object) -> list[Example]:
    options = {"sequence_length": None, "split": "train", "shuffle": False, "num_epochs": 1, "seed": 3, **options}
    dataset = seqio.get_mixture_or_task(name).get_dataset(**options)
    return [{key: ids.tolist() for key, ids in example.items()} for example in dataset.as_numpy_iterator()]


def rebuild(example: Example, vocabulary: Vocabulary) -> list[int]:
    """The chunk: each sentinel of the inputs gives way to what follows it in the targets."""
    sentinels = range(vocabulary.sentinel_start, vocabulary.sentinel_start + vocabulary.num_sentinels)
    spans: dict[int, list[int]] = {}
    for token in example["targets"]:
        if token in sentinels:
            assert token not in spans
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    assert list(spans) == list(sentinels[: len(spans)])
    assert [token for token in example["inputs"] if token in sentinels] == list(spans)
    return [t for token in example["inputs"] for t in (spans[token] if token in sentinels else [token])]


def mask_of(example: Example, vocabulary: Vocabulary) -> list[int]:
    """Where the spans stand, and how long they are."""
    sentinels = range(vocabulary.sentinel_start, vocabulary.sentinel_start + vocabulary.num_sentinels)
    places = [i for i, token in enumerate(example["inputs"]) if token in sentinels]
    return places + [i for i, token in enumerate(example["targets"]) if token in sentinels]


@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_rebuild_the_documents(some_languages: list[str], vocabulary: Vocabulary, language: str) -> None:
    documents = list(read_cc100(find_files(None, "cc100")[language].train[0]))
    if language == "en":  # more than are joined at a time
        documents = documents[:16]
    stream: list[int] = []
    for document in documents:
        stream += [BOS, *(t for paragraph in document for t in (*vocabulary.encode(paragraph), EOS))]
    made = examples("cc100_" + language.replace("-", "_"))
    chunks = [rebuild(example, vocabulary) for example in made]
    whole = -(-len(stream) // 512)
    assert list(itertools.chain.from_iterable(chunks[:whole])) == stream
    assert all(len(chunk) == 512 for chunk in chunks[: whole - 1])
    # Every full chunk has exactly the lengths of the objective: 15 % of 512 is 76, in 25 spans.
    assert {(len(e["inputs"]), len(e["targets"])) for e in made[: whole - 1]} == {(461, 101)}
    assert vocabulary.decode(chunks[0]).startswith("<s> " + documents[0][0][:20])


@pytest.mark.parametrize("language", ["de", "th", "zh-Hans"])
def test_examples_rebuild_the_pairs(some_languages: list[str], vocabulary: Vocabulary, language: str) -> None:
    pairs = list(read_ccaligned(find_files(None, "ccaligned")[language].train[0]))
    expected = collections.Counter(frozenset(tuple(vocabulary.encode(side)[:254]) for side in pair) for pair in pairs)
    found: collections.Counter[frozenset[tuple[int, ...]]] = collections.Counter()
    english = {tuple(vocabulary.encode(pair[0])[:254]) for pair in pairs}
    english_first = 0
    for example in examples("ccaligned_" + language.replace("-", "_")):
        chunk = rebuild(example, vocabulary)
        assert chunk[0] == BOS
        assert chunk[-1] == EOS
        assert len(chunk) <= 512
        sides = [tuple(group) for is_end, group in itertools.groupby(chunk[1:], lambda t: t == EOS) if not is_end]
        for first, second in zip(sides[::2], sides[1::2], strict=True):
            found[frozenset((first, second))] += 1
            english_first += first in english
        assert len(example["inputs"]) <= 341
        assert len(example["targets"]) <= 341
    assert found == expected
    assert 0.3 < english_first / len(pairs) < 0.7


def test_equal_seeds_equal_examples(some_languages: list[str], vocabulary: Vocabulary) -> None:
    for name in ("cc100_de", "ccaligned_de"):
        first, again, other = examples(name), examples(name), examples(name, seed=4)
        assert first == again
        assert first != other
        assert [rebuild(e, vocabulary) for e in first] == [rebuild(e, vocabulary) for e in other]


def test_equal_seeds_equal_mixtures(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary, chunk_length=CHUNK)

    def targets(seed: int) -> list[list[int]]:
        mixture = seqio.get_mixture_or_task("deltalm_pretrain")
        dataset = mixture.get_dataset(sequence_length=None, split="train", shuffle=True, seed=seed).take(30)
        return [example["targets"].tolist() for example in dataset.as_numpy_iterator()]

    first = targets(0)
    assert first == targets(0)
    assert first != targets(1)
    assert len({tuple(ids) for ids in first}) > 20


def test_masks_differ_between_tasks_epochs_and_chunks(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary, chunk_length=CHUNK)
    german, french = examples("cc100_de"), examples("cc100_fr")
    assert [rebuild(e, vocabulary) for e in german] == [rebuild(e, vocabulary) for e in french]
    twice = examples("cc100_de", num_epochs=2)
    one, two = twice[: len(german)], twice[len(german) :]
    assert [rebuild(e, vocabulary) for e in one] == [rebuild(e, vocabulary) for e in two]

    def same(a: list[Example], b: list[Example]) -> int:
        return sum(mask_of(x, vocabulary) == mask_of(y, vocabulary) for x, y in zip(a, b, strict=True))

    assert len(german) > 6
    assert same(german, french) == 0
    assert same(one, two) == 0
    assert same(german[:-1], german[1:]) == 0


def test_shards_divide_the_text(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary, chunk_length=CHUNK)
    texts = []
    for index in range(2):
        made = examples("cc100_de", shard_info=seqio.ShardInfo(index=index, num_shards=2))
        texts.append("".join(vocabulary.decode(rebuild(e, vocabulary)) for e in made))
    for i in range(16):
        assert [f"of document {i}." in text for text in texts] == [i % 2 == 0, i % 2 == 1]


def test_too_short_a_sequence_length_is_refused(some_languages: list[str]) -> None:
    for name, lengths, message in (
        (
            "cc100_de",
            {"inputs": 460, "targets": 101},
            r"\['inputs'\] is 460, but .* inputs of up to 461",
        ),
        ("cc100_de", {"inputs": 512, "targets": 100}, r"\['targets'\] is 100, .* up to 101"),
        ("ccaligned_de", {"inputs": 461, "targets": 114}, r"cc\w+_de: .*\['targets'\] is 114, .* up to 341"),
        ("deltalm_pretrain", {"inputs": 461, "targets": 101}, r"Task ccaligned_.* is 101, but"),
    ):
        with pytest.raises(ValueError, match=message):
            seqio.get_mixture_or_task(name).get_dataset(sequence_length=lengths, split="train", shuffle=False)
    assert examples("cc100_de", sequence_length={"inputs": 461, "targets": 101}) == examples("cc100_de")


def test_sizing_and_sides_are_as_in_training(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary, chunk_length=CHUNK, sizing="t5")
    # 64 inputs at 15 %: 70 raw tokens, 10 masked in 3 spans; at 50 %, 94 raw tokens, 47 in 16. Each closed by </s>.
    for name, raw, lengths in (("cc100_de", 70, (64, 14)), ("ccaligned_de", 94, (64, 64))):
        made = examples(name, sequence_length=dict(zip(("inputs", "targets"), lengths, strict=True)))
        assert raw - 15 < max(len(rebuild(e, vocabulary)) - 2 for e in made) <= raw
        assert name != "cc100_de" or (len(made[0]["inputs"]), len(made[0]["targets"])) == lengths
        assert all(e["inputs"][-1] == e["targets"][-1] == EOS for e in made)
        with pytest.raises(ValueError, match=rf"\['targets'\] is {lengths[1] - 1}, .* up to {lengths[1]}"):
            examples(name, sequence_length={"inputs": lengths[0], "targets": lengths[1] - 1})

    tasks.register(toy, vocabulary, chunk_length=CHUNK, mask_sides="one")
    for example in examples("ccaligned_de"):
        chunk = rebuild(example, vocabulary)
        assert example["inputs"].count(EOS) == chunk.count(EOS), "no end of a side is masked"
        assert len(example["targets"]) < 0.55 * len(chunk), "half of the tokens of half of the sides"
    tasks.register(toy, vocabulary, mask_sides="one")
    with pytest.raises(ValueError, match=r"Task ccaligned_de: chunks of 512 tokens need 127 sentinels, but .* has 100"):
        examples("ccaligned_de")


def test_rates_by_hand(toy: Path, vocabulary: Vocabulary) -> None:
    tokens = {"cc100_de": 1000, "cc100_fr": 8000, "ccaligned_de": 10, "ccaligned_fr": 90, "cc100_it": 5}
    manifest = {"tasks": {name: {"splits": {"train": {"tokens": count}}} for name, count in tokens.items()}}
    (toy / "prepared").mkdir()
    (toy / "prepared/manifest.json").write_text(json.dumps(manifest))
    for prepared in (manifest, toy / "prepared"):
        # 1000^(1/3) : 8000^(1/3) = 1 : 2, and 10 : 90 = 1 : 9; three batches of four are monolingual.
        names = tasks.register(
            toy,
            vocabulary,
            prepared=prepared,
            sampling_exponent=1 / 3,
            translation_sampling_exponent=1.0,
            objective_batch_sizes={"span_corruption": 1536, "translation_span_corruption": 512},
        )
        assert names == ["deltalm_span_corruption", "deltalm_translation_span_corruption", "deltalm_pretrain"]
        expected = {
            "deltalm_span_corruption": {"cc100_de": 1 / 3, "cc100_fr": 2 / 3},
            "deltalm_translation_span_corruption": {"ccaligned_de": 0.1, "ccaligned_fr": 0.9},
            "deltalm_pretrain": {"cc100_de": 0.25, "cc100_fr": 0.5, "ccaligned_de": 0.025, "ccaligned_fr": 0.225},
        }
        for name, rates in expected.items():
            assert seqio.MixtureRegistry.get(name).rate_per_task_name == pytest.approx(rates)
    del manifest["tasks"]["ccaligned_fr"]
    with pytest.raises(ValueError, match="No token counts for ccaligned_fr"):
        tasks.register(toy, vocabulary, prepared=manifest)


def test_rates_of_the_sample(some_languages: list[str]) -> None:
    counts = json.loads((SAMPLE_DIR / "token_counts.json").read_text())
    rates = seqio.MixtureRegistry.get("deltalm_pretrain").rate_per_task_name
    assert sum(rates.values()) == pytest.approx(1)
    assert sum(rate for name, rate in rates.items() if name.startswith("cc100")) == pytest.approx(0.5)
    ratio = (counts["cc100_zh_Hans"] / counts["cc100_de"]) ** 0.3
    assert rates["cc100_zh_Hans"] / rates["cc100_de"] == pytest.approx(ratio)


def test_rates_from_file_sizes(toy: Path, vocabulary: Vocabulary) -> None:
    (toy / "cc100/de.txt").write_bytes(b"a\n\n" * 100)
    (toy / "cc100/fr.txt").write_bytes(b"a\n\n" * 400)
    tasks.register(toy, vocabulary, sampling_exponent=0.5)
    rates = seqio.MixtureRegistry.get("deltalm_span_corruption").rate_per_task_name
    assert rates == pytest.approx({"cc100_de": 1 / 3, "cc100_fr": 2 / 3})


def test_the_papers_languages_need_no_data_until_read(toy: Path, tmp_path: Path) -> None:
    """100 languages and 77 (Chinese has two files); rates against those of the published sizes, computed apart."""
    began = time.perf_counter()
    assert len(tasks.register(tmp_path / "corpora", languages=["paper"])) == 3
    mixture = seqio.get_mixture_or_task("deltalm_pretrain")
    assert time.perf_counter() - began < 10
    table = load_languages()
    assert len({task.name for task in mixture.tasks}) == 100 + 78
    total = sum((row.xlmr_size_gib or 0) ** 0.3 for row in table.values() if row.in_xlmr)
    for code in ("en", "sw", "zh-Hans", "my_zaw"):
        task = seqio.TaskRegistry.get(task_name("cc100", code))
        expected = (table[code].xlmr_size_gib or 0) ** 0.3 / total / 2
        assert mixture.get_rate(task) == pytest.approx(expected, rel=1e-9)
        assert task.source.files.train == (tmp_path / "corpora" / "cc100" / f"{code}.txt.xz",)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"corpora/cc100/sw\.txt\.xz: expected a readable corpus file"
    ):
        next(iter(seqio.TaskRegistry.get("cc100_sw").get_dataset({"inputs": 512, "targets": 512}, "train", seed=0)))

    # One more language, and a file that is there in another coding.
    (tmp_path / "corpora" / "cc100").mkdir(parents=True)
    (tmp_path / "corpora" / "cc100" / "yo.txt").write_text("Ọmọ.\n")
    tasks.register(tmp_path / "corpora", languages=["paper", "yo"])
    assert seqio.TaskRegistry.get("cc100_yo").source.files.train[0].name == "yo.txt"
    with pytest.raises(CorpusError, match="CC100 publishes no file of 'xx'"):
        tasks.register(tmp_path / "corpora", languages=["paper", "xx"])
    with pytest.raises(CorpusError, match="needs a data_dir"):
        tasks.register(languages=["paper"])


def test_the_mixture_follows_its_rates(toy: Path, vocabulary: Vocabulary) -> None:
    counts = {"cc100_de": 1, "cc100_fr": 27}
    manifest = {"tasks": {name: {"splits": {"train": {"tokens": count}}} for name, count in counts.items()}}
    for code, word in (("de", "alpha"), ("fr", "beta")):
        (toy / "cc100" / f"{code}.txt").write_text(f"{word} " * 400)
    for path in (toy / "ccaligned").iterdir():
        path.unlink()
    (toy / "ccaligned").rmdir()
    names = tasks.register(toy, vocabulary, prepared=manifest, sampling_exponent=1 / 3, chunk_length=CHUNK)
    assert names == ["deltalm_span_corruption"]
    dataset = seqio.MixtureRegistry.get(names[0]).get_dataset(split="train", shuffle=False, seed=1).take(800)
    alpha = vocabulary.encode("alpha alpha alpha")[-1]
    beta = vocabulary.encode("beta beta beta")[-1]
    assert alpha != beta
    french = sum(beta in e["inputs"] and alpha not in e["inputs"] for e in dataset.as_numpy_iterator())
    assert 0.68 < french / 800 < 0.82  # 3 of 4, 4.5 standard deviations


def test_one_epoch_of_a_mixture_is_all_of_it(toy: Path, vocabulary: Vocabulary) -> None:
    """seqio's default would stop at the first task that is exhausted."""
    tasks.register(toy, vocabulary, chunk_length=CHUNK)
    parts = ["cc100_de", "cc100_fr", "ccaligned_de", "ccaligned_fr"]
    for split in ("train", "validation"):
        sizes = [len(examples(name, split=split)) for name in parts]
        assert len(examples("deltalm_pretrain", split=split)) == sum(sizes) > 0
    held_out = [vocabulary.decode(rebuild(e, vocabulary)) for e in examples("cc100_de", split="validation")]
    assert held_out == ["<s> Held out.</s> All of it.</s>"]


def test_tasks_follow_seqios_conventions(some_languages: list[str]) -> None:
    assert some_languages == [
        "deltalm_span_corruption",
        "deltalm_translation_span_corruption",
        "deltalm_pretrain",
    ]
    task = seqio.TaskRegistry.get("ccaligned_zh_Hans")
    assert isinstance(task.source, CorpusDataSource)
    assert (task.source.corpus.name, task.source.language) == ("ccaligned", "zh-Hans")
    assert task.source.files == find_files(None, "ccaligned")["zh-Hans"]
    assert task.source.list_shards("validation") == [str(task.source.files.validation[0])]
    assert sorted(task.splits) == ["train", "validation"]
    for feature in task.output_features.values():
        assert (feature.dtype, feature.add_eos, feature.vocabulary.vocab_size) == (tf.int32, False, 8104)
    dataset = seqio.get_dataset(
        "deltalm_pretrain",
        {"inputs": 464, "targets": 344},
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        seed=0,
    )
    batch = next(dataset.batch(4).as_numpy_iterator())
    assert batch["encoder_input_tokens"].shape == (4, 464)
    assert batch["decoder_target_tokens"].shape == (4, 344)
    assert np.array_equal(batch["decoder_loss_weights"] > 0, batch["decoder_target_tokens"] > 0)


def test_sources_give_text(some_languages: list[str]) -> None:
    source = seqio.TaskRegistry.get("cc100_th").source
    texts = [e["text"].decode().split("\n") for e in source.get_dataset("train").as_numpy_iterator()]
    assert texts == list(read_cc100(source.files.train[0]))
    source = seqio.TaskRegistry.get("ccaligned_th").source
    pairs = [(e["english"].decode(), e["other"].decode()) for e in source.get_dataset("train").as_numpy_iterator()]
    assert pairs == list(read_ccaligned(source.files.train[0]))
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        source.get_dataset("test")
    with pytest.raises(ValueError, match="one shard"):
        source.get_dataset("train", shard_info=seqio.ShardInfo(0, 2))


def test_registering_again_replaces(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary)
    ours = {n for n in seqio.TaskRegistry.names() if n.startswith(("cc100_", "ccaligned_"))}
    assert ours == {"cc100_de", "cc100_fr", "ccaligned_de", "ccaligned_fr"}
    # English has no pairs with itself: a language is needed in one corpus only.
    tasks.register(languages=["en", "de"])
    ours = {n for n in seqio.TaskRegistry.names() if n.startswith(("cc100_", "ccaligned_"))}
    assert ours == {"cc100_de", "cc100_en", "ccaligned_de"}
    tasks.register(languages=["en"])
    assert "deltalm_pretrain" not in seqio.MixtureRegistry.names()


def test_refusals_leave_the_registry_alone(toy: Path, vocabulary: Vocabulary) -> None:
    tasks.register(toy, vocabulary)
    before = set(seqio.TaskRegistry.names())
    with pytest.raises(
        CorpusError, match=r"nowhere: expected a folder with one or more of the folders cc100, .*found no such folder"
    ):
        tasks.register(toy / "nowhere", vocabulary)
    with pytest.raises(CorpusError, match=r"'nl' \(Dutch\)"):
        tasks.register(toy, vocabulary, ["de", "nl"])
    with pytest.raises(CorpusError, match="empty list"):
        tasks.register(toy, vocabulary, [])
    with pytest.raises(FileNotFoundError):
        tasks.register(toy, toy / "no.model")
    assert set(seqio.TaskRegistry.names()) == before


def test_an_empty_training_file_stops_the_task(toy: Path, vocabulary: Vocabulary) -> None:
    (toy / "cc100/de.txt").write_text("\n\n")
    tasks.register(toy, vocabulary)
    with pytest.raises(CorpusError, match=r"de\.txt: expected documents"):
        list(seqio.TaskRegistry.get("cc100_de").source.read("train"))
    with pytest.raises(tf.errors.OpError, match=r"de\.txt: expected documents"):
        examples("cc100_de")


PROGRAM = """
import tasks, seqio
dataset = seqio.get_mixture_or_task("{name}").get_dataset(
    sequence_length={{"inputs": 461, "targets": 341}}, split="train", shuffle=False, seed=0, num_epochs=None)
iterator = dataset.as_numpy_iterator()
example = [next(iterator) for _ in range({count})][-1]
print(len(seqio.MixtureRegistry.get("deltalm_pretrain").tasks), len(example["inputs"]), example["inputs"].dtype)
"""


@pytest.mark.parametrize(
    ("name", "count"), [pytest.param("deltalm_pretrain", 20, marks=pytest.mark.slow), ("cc100_de", 200)]
)
def test_a_fresh_interpreter_and_its_end(name: str, count: int) -> None:
    """`import tasks` is all it takes; and a script that stops in the middle of the data does not hang."""
    program = PROGRAM.format(name=name, count=count)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    tasks_in_mixture, length, dtype = result.stdout.split()
    assert (tasks_in_mixture, dtype) == ("209", "int32")
    assert 100 < int(length) <= 461


IN_THE_MIDDLE_OF_A_CALL = """
import threading, time
import seqio, tasks
from deltalm_jax.data.vocabulary import Vocabulary
tasks.register(languages=["de", "fr", "sw"])
dataset = seqio.get_mixture_or_task("deltalm_pretrain").get_dataset(None, "train", shuffle=False, seed=0, num_epochs=None)
iterator = dataset.as_numpy_iterator()
encode_batch, encoding = Vocabulary.encode_batch, threading.Event()

def slowly(self, *arguments):
    encoding.set()
    time.sleep(1.5)
    encoding.clear()
    return encode_batch(self, *arguments)

next(iterator)
Vocabulary.encode_batch = slowly
while not encoding.is_set():
    next(iterator)
print("the end")
"""


@pytest.mark.slow
def test_a_script_ends_while_text_is_being_tokenised() -> None:
    """On a busy machine a call of TensorFlow's threads into Python takes its time; they read ahead of the script."""
    command = [sys.executable, "-c", IN_THE_MIDDLE_OF_A_CALL]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "the end\n"), result.stderr[-2000:]
