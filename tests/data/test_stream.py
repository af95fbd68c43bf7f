"""The stream: proportions, epochs and masks by counting; independence of batch split, process count and other tasks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from deltalm_jax.data.chunks import PreparedDataError
from deltalm_jax.data.sampling import BLOCK_EXAMPLES, block_quotas, sampling_rates
from deltalm_jax.data.stream import Objective, Stream
from deltalm_jax.objectives import SpanCorruption, TranslationSpanCorruption
from tests.support.toy_data import write_toy_data

TASKS = {
    "a": ("span_corruption", 40, 3),
    "b": ("span_corruption", 10, 2),
    "c": ("span_corruption", 3, 0),
    "d": ("translation_span_corruption", 20, 4),
}


def objectives(batch: int = 16, exponent: float = 0.3) -> dict[str, Objective]:
    return {
        "span_corruption": Objective(SpanCorruption(), batch, exponent),
        "translation_span_corruption": Objective(TranslationSpanCorruption(), batch // 2, exponent),
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_toy_data(tmp_path_factory.mktemp("toy") / "data", TASKS, shards=2)


@pytest.fixture(scope="module")
def stream(prepared):
    return Stream(prepared, objectives(), seed=1)


def raw(group: dict[str, np.ndarray], row: int) -> tuple[int, ...]:
    """A row's ids in sorted order, sentinels left out: names its chunk whatever the mask was."""
    ids = np.concatenate([group["inputs"][row], group["targets"][row]])
    return tuple(sorted(i for i in ids.tolist() if 0 < i < 8002))


def test_shapes(stream):
    batch = stream.batch(0)
    assert {k: (v["inputs"].shape, v["targets"].shape) for k, v in batch.items()} == {
        "span_corruption": ((16, 29), (16, 5)),
        "translation_span_corruption": ((8, 21), (8, 21)),
    }
    assert all(a.dtype == np.int32 for group in batch.values() for a in group.values())


def test_a_temperature_that_rises(prepared):
    """By counting, block by block: by size at first, then nearer and nearer to the last rates; no chunk is passed over."""
    plain = {"span_corruption": Objective(SpanCorruption(), 16, 0.2, warm_epochs=450.0)}
    schedule = Stream(prepared, plain, seed=1)._schedules["span_corruption"]
    tokens = np.array([40 * 32 - 8 * 9, 10 * 32 - 2 * 9, 3 * 32])
    visits, drawn = Counter(), np.zeros(3, np.int64)
    blocks = int(np.ceil(450 * 53 / BLOCK_EXAMPLES))
    assert blocks == 3
    for block in range(5):
        task, chunk, epoch = schedule.locate(block * BLOCK_EXAMPLES + np.arange(BLOCK_EXAMPLES))
        temperature = 1 + 4 * min(block / blocks, 1)
        quotas = block_quotas(sampling_rates(tokens, 1 / temperature), BLOCK_EXAMPLES)
        np.testing.assert_array_equal(np.bincount(task), quotas)
        np.testing.assert_array_equal(
            schedule.drawn(block * BLOCK_EXAMPLES + 100), drawn + np.bincount(task[:100], minlength=3)
        )
        drawn += quotas
        visits.update(zip(task.tolist(), epoch.tolist(), chunk.tolist(), strict=True))
    assert set(visits.values()) == {1}, "no chunk twice in an epoch"
    for index, chunks in enumerate((40, 10, 3)):
        epochs, places = divmod(int(drawn[index]), chunks)
        assert sum(task == index for task, _, _ in visits) == epochs * chunks + places
        assert len({e for task, e, _ in visits if task == index}) == epochs + (places > 0)


def test_proportions_over_a_block_are_exact(stream):
    """512 steps of 16 are one block of 8,192: each task must have come up exactly as often as its quota."""
    names = Counter(name for step in range(512) for name in stream.tasks_of(step)["span_corruption"])
    tokens = np.array([40 * 32 - 8 * 9, 10 * 32 - 2 * 9, 3 * 32])
    quotas = block_quotas(sampling_rates(tokens, 0.3), BLOCK_EXAMPLES)
    assert [names[n] for n in "abc"] == quotas.tolist()
    shares = stream.rates()["span_corruption"]
    assert shares["a"] == pytest.approx(quotas[0] / 8192)


def test_each_epoch_visits_every_chunk_once(stream):
    """By the first ids of the chunks: after n · epochs draws of a task, each chunk was drawn as often as any other."""
    seen: dict[str, list[tuple[int, ...]]] = {n: [] for n in "abcd"}
    for step in range(60):
        batch, tasks = stream.batch(step), stream.tasks_of(step)
        for group, names in tasks.items():
            for row, name in enumerate(names):
                seen[name].append(raw(batch[group], row))
    for name, (_, chunks, _) in TASKS.items():
        epochs = len(seen[name]) // chunks
        assert epochs >= 2, "the test must see a boundary"
        orders = [seen[name][e * chunks : (e + 1) * chunks] for e in range(epochs)]
        for order in orders:
            assert len(set(order)) == chunks
        if chunks > 3:
            assert orders[0] != orders[1], "another order each epoch"


def test_masks_differ_between_epochs_and_tasks(stream):
    rows = []
    for step in range(40):
        group = stream.batch(step)["translation_span_corruption"]
        rows += [(raw(group, r), group["inputs"][r].tobytes()) for r in range(8)]
    by_chunk: dict[tuple[int, ...], set[bytes]] = {}
    for chunk, inputs in rows:
        by_chunk.setdefault(chunk, set()).add(inputs)
    assert len(rows) / len(by_chunk) >= 4
    assert sum(map(len, by_chunk.values())) > 0.99 * len(rows), "a chunk seen again is masked anew"


def test_any_batch_split_gives_equal_bytes(stream):
    whole = stream.batch(7)
    for parts in (2, 4, 8):
        for group, arrays in whole.items():
            size = len(arrays["inputs"]) // parts
            pieces = [
                stream.batch(7, {group: slice(i * size, (i + 1) * size)}, only=group)[group] for i in range(parts)
            ]
            for key in arrays:
                assert np.concatenate([p[key] for p in pieces]).tobytes() == arrays[key].tobytes()


def test_batches_are_a_function_of_seed_and_step_alone(prepared, stream):
    again = Stream(prepared, objectives(), seed=1)
    for step in (600, 3, 100_000, 3):  # any order, far ahead too
        for group, arrays in again.batch(step).items():
            assert arrays["inputs"].tobytes() == stream.batch(step)[group]["inputs"].tobytes()
    other = Stream(prepared, objectives(), seed=2).batch(3)
    assert other["span_corruption"]["inputs"].tobytes() != stream.batch(3)["span_corruption"]["inputs"].tobytes()


def test_epochs_are_what_counting_gives(stream):
    """For steps in the first block, at its end, and in the third: examples drawn of each task / its chunks."""
    counted = Counter()
    for step in range(1300):
        if step in (0, 1, 7, 512, 1299):
            expected = {name: counted[name] / chunks for name, (_, chunks, _) in TASKS.items()}
            assert stream.epochs(step) == pytest.approx(expected, rel=1e-12)
        for names in stream.tasks_of(step).values():
            counted.update(names)
    far = stream.epochs(10**9)
    shares = stream.rates()
    assert far["b"] == pytest.approx(16e9 * shares["span_corruption"]["b"] / 10, rel=1e-6)
    assert far["d"] == 8e9 / 20


def test_an_added_language_leaves_the_others_chunk_order_alone(prepared, stream, tmp_path):
    more = {"z": ("span_corruption", 7, 0), **TASKS}
    bigger = Stream(write_toy_data(tmp_path / "data", more), objectives(), seed=1)

    def order(s: Stream) -> list[int]:
        schedule = s._schedules["span_corruption"]
        k = schedule.task_names.index("b")
        tasks, chunks, _ = schedule.locate(np.arange(2000))
        return chunks[tasks == k][:10].tolist()

    assert order(bigger) == order(stream)


def test_validation_covers_every_chunk_once_and_pads(prepared, stream):
    assert stream.validation_batches() == {"span_corruption": 1, "translation_span_corruption": 1}
    assert stream.validation_batches(limit=0) == {"span_corruption": 0, "translation_span_corruption": 0}
    group = stream.validation_batch("span_corruption", 0)
    rows = [raw(group, r) for r in range(16)]
    assert len(set(rows[:5])) == 5
    assert rows[5:] == [()] * 11
    halves = [stream.validation_batch("span_corruption", 0, slice(i, i + 8)) for i in (0, 8)]
    assert np.concatenate([h["inputs"] for h in halves]).tobytes() == group["inputs"].tobytes()


def test_validation_rows_are_known_by_task(tmp_path):
    tasks = {
        "a": ("span_corruption", 4, 30),
        "b": ("span_corruption", 4, 11),
        "d": ("translation_span_corruption", 4, 1),
    }
    data = write_toy_data(tmp_path / "data", tasks)
    stream = Stream(data, objectives(), seed=1)
    seen: list[int] = []
    for index in range(3):
        found = stream.validation_tasks("span_corruption", index)
        assert found.shape == (16,)
        for row, task in enumerate(found.tolist()):
            ids = raw(stream.validation_batch("span_corruption", index), row)
            # The first id of a toy chunk is the lowest and names its task.
            assert (task == -1) == (ids == ())
            assert task == -1 or ids[0] == 4 + task
        seen += found[found >= 0].tolist()
    assert Counter(seen) == {0: 30, 1: 11}
    assert seen != sorted(seen)
    assert stream.validation_tasks("translation_span_corruption", 0).tolist() == [2] + [-1] * 7


def test_validation_masks_do_not_depend_on_the_seed(prepared, stream):
    other = Stream(prepared, objectives(), seed=77)
    ours, theirs = (s.validation_batch("span_corruption", 0) for s in (stream, other))
    assert ours["inputs"].tobytes() == theirs["inputs"].tobytes()


def test_an_objective_without_data_is_refused(tmp_path):
    data = write_toy_data(tmp_path / "data", {"a": TASKS["a"]})
    with pytest.raises(PreparedDataError, match="no training chunks for the objective 'translation_span_corruption'"):
        Stream(data, objectives(), seed=1)


def test_no_task_is_seen_more_often_than_allowed(prepared):
    """Four whole blocks of the schedule: 618 epochs of all data; the smallest task would have been seen 3,641 times."""
    steps = 16_384

    def epochs(limit: float | None) -> dict[str, float]:
        objective = Objective(SpanCorruption(), 2, 0.0, max_epochs=limit, planned_steps=steps)
        return Stream(prepared, {"span_corruption": objective}, seed=1).epochs(steps)

    assert epochs(None)["c"] == pytest.approx(2 * steps / 3 / 3, rel=1e-3)
    capped = epochs(900.0)
    assert [capped["b"], capped["c"]] == pytest.approx([900, 900], rel=2e-3)
    assert capped["a"] == pytest.approx((2 * steps - 900 * 13) / 40, rel=1e-3)
    with pytest.raises(
        PreparedDataError, match=r"16,384 steps of 2 examples are 618\.3 epochs of all its data, more than"
    ):
        epochs(600.0)


def test_corpora_of_one_language_share_its_rate(tmp_path):
    tasks = {name: ("span_corruption", count, 0) for name, count in (("a", 30), ("b", 10), ("c", 40))}
    shared = write_toy_data(tmp_path / "shared", tasks, languages={"a": "de", "b": "de", "c": "fr"})
    rates = Stream(shared, {"span_corruption": Objective(SpanCorruption(), 4, 0.3)}, seed=0).rates()["span_corruption"]
    assert rates["a"] + rates["b"] == pytest.approx(0.5, abs=1e-3)
    assert rates["a"] / rates["b"] == pytest.approx(3, rel=0.02)
