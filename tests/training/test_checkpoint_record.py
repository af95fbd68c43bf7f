"""Records of checkpoints: their own digest, other formats, what they list; and damage of any kind to any file."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import xxhash

import deltalm_jax
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import replicated
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.resuming import check_counters
from deltalm_jax.training.saved_steps import SavedSteps
from tests.faults.mutator import KINDS, mutations
from tests.training.golden_checkpoint import golden_state

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "checkpoint_format_2" / "checkpoints"


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run's directory with steps 10 and 20 of a small state."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(directory, 2, None, print)
    for step in (10, 20):
        state = {"params": {"a": jnp.arange(3000.0) + step, "b": jnp.ones((7, 5))}, "step": jnp.int32(step)}
        checkpoints.save(step, state, {"identity": {"seed": step}})
    checkpoints.close()
    return directory


@pytest.fixture
def copied(two_steps, tmp_path):
    return pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def sign(text: str) -> bytes:
    """A record's text with its digest put in, by the rule that is documented."""
    before, _, after = text.partition('"digest": "')
    blank = f'{before}"digest": "{"0" * 32}{after[32:]}'.encode()
    digest = xxhash.xxh3_128(blank).hexdigest().encode()
    return blank.replace(b"0" * 32, digest, 1)


def change(directory, number, /, **more):
    path = directory / str(number) / "record.json"
    path.write_bytes(sign(json.dumps(json.loads(path.read_text()) | more, indent=1)))


def test_the_digest_is_the_first_key_and_follows_the_documented_rule(two_steps):
    data = (two_steps / "20" / "record.json").read_bytes()
    record = json.loads(data)
    assert list(record)[:3] == ["digest", "format", "written_by"]
    assert sign(data.decode()) == data
    assert (record["format"], record["written_by"], record["step"]) == (2, deltalm_jax.__version__, 20)
    assert sorted(record["files"]) == sorted(
        str(p.relative_to(two_steps / "20")) for p in (two_steps / "20" / "state").rglob("*") if p.is_file()
    )
    for name, listed in record["files"].items():
        content = (two_steps / "20" / name).read_bytes()
        assert listed == {"bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def test_a_golden_checkpoint_is_verified_and_restored(tmp_path):
    directory = pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "checkpoints"))
    checkpoints = Checkpoints(directory, 1, None, pytest.fail)
    record = checkpoints.latest()
    assert (record["step"], record["written_by"], record["about"]["note"]) == (7, "0.1.0", "golden")
    whole = replicated(make_mesh(MeshConfig(data=2, fsdp=4)))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), golden_state())
    state = checkpoints.restore(record, shapes)
    check_counters(state, record)
    checkpoints.close()
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding == whole
    kernel, half = np.arange(24, dtype=np.float32).reshape(4, 6) / 8, np.arange(5, dtype=np.float32) / 8
    adam = state["optimizer"][0]
    for tree, ours, ours_half in (
        (state["params"], kernel, half), (adam.mu, -kernel, -half), (adam.nu, kernel**2, half**2),
    ):  # fmt: skip
        assert np.array_equal(tree["kernel"], ours)
        assert tree["kernel"].dtype == np.float32
        assert np.array_equal(tree["half"], ours_half.astype(ml_dtypes.bfloat16))
        assert tree["half"].dtype == ml_dtypes.bfloat16
    counters = (adam.count, state["step"], state["skipped"]["total"], state["skipped"]["in_a_row"])
    assert [int(x) for x in counters] == [5, 7, 2, 0]


def test_every_flip_and_cut_is_noticed_and_the_older_step_taken(copied):
    """600 of them, over every file of the newer step."""
    drawn = mutations(copied / "20", 600, seed=1, kinds=("flip", "cut"))
    files = {str(p.relative_to(copied / "20")) for p in (copied / "20").rglob("*") if p.is_file()}
    assert len(set(drawn)) == 600
    assert {(m.kind, m.file) for m in drawn} == {(kind, file) for kind in ("flip", "cut") for file in files}
    assert "record.json" in files
    for mutation in drawn:
        warnings: list[str] = []
        with mutation.applied(copied / "20") as path:
            record = SavedSteps(copied, warnings.append).latest()
        assert record["step"] == 10, mutation
        assert len(warnings) == 1, mutation
        assert "WARNING: checkpoint 20 is passed over" in warnings[0], mutation
        assert str(path) in warnings[0], mutation
    assert SavedSteps(copied, pytest.fail).latest()["step"] == 20, "each was undone"


def test_a_deleted_or_longer_file_is_noticed_too(copied):
    drawn = mutations(copied / "20", 10_000, seed=2, kinds=("delete",)) + mutations(
        copied / "20", 40, seed=3, kinds=("append",)
    )
    assert {m.kind for m in drawn} == {"delete", "append"}
    for mutation in drawn:
        warnings: list[str] = []
        with mutation.applied(copied / "20") as path:
            assert SavedSteps(copied, warnings.append).latest()["step"] == 10, mutation
        if (mutation.kind, mutation.file) == ("delete", "record.json"):
            assert not warnings, "without a record it was never finished"
        else:
            assert str(path) in warnings[0], mutation


def test_the_mutator_damages_one_thing_at_a_time(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(40)))
    (tmp_path / "empty").touch()
    drawn = mutations(tmp_path, 50, seed=0)
    assert drawn == mutations(tmp_path, 50, seed=0) != mutations(tmp_path, 50, seed=1)
    assert {m.kind for m in drawn} == set(KINDS)
    for mutation in drawn:
        before = (tmp_path / mutation.file).read_bytes()
        with mutation.applied(tmp_path) as path:
            after = path.read_bytes() if path.exists() else None
        assert path.read_bytes() == before
        match mutation.kind:
            case "delete":
                assert after is None
            case "append":
                assert after[:-1] == before
            case "cut":
                assert before.startswith(after)
                assert len(after) < len(before)
            case "flip":
                changed = int.from_bytes(before) ^ int.from_bytes(after)
                assert changed.bit_count() == 1
                assert len(after) == len(before)


def test_format_1_is_refused_by_its_number(copied):
    path = copied / "20" / "record.json"
    old = {"format": 1, "step": 20, "leaves": {}, "about": {}, "files": {}}
    path.write_text(json.dumps(old, indent=1))
    with pytest.raises(CheckpointError, match=rf"{path} has checkpoint format 1; this version .* reads format 2"):
        SavedSteps(copied, print).verify(20)


def test_a_later_format_is_refused_by_its_number_and_never_removed(copied):
    change(copied, 10, format=3)
    with pytest.raises(CheckpointError, match="has checkpoint format 3"):
        SavedSteps(copied, print).verify(10)
    checkpoints = Checkpoints(copied, 1, None, print)
    checkpoints.save(30, {"a": jnp.ones(3)}, {})
    checkpoints.close()
    assert sorted(p.name for p in copied.iterdir()) == ["10", "30"], "20 is retired, 10 is another version's"


def test_a_file_that_the_record_does_not_list_is_refused_by_name(copied):
    stray = copied / "20" / "state" / "ocdbt.process_0" / "d" / "stray\n\x1b[31m"
    stray.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not in the checkpoint's record") as error:
        SavedSteps(copied, print).verify(20)
    assert str(stray.parent) in str(error.value)
    assert str(error.value).isprintable(), "a name must not write control characters to the terminal"


@pytest.mark.parametrize("kind", ["link to a folder", "pipe", "folder"])
def test_nothing_but_files_is_taken_for_one(copied, tmp_path, kind):
    """A link out of the step is neither followed nor passed over; a pipe would block whoever reads it."""
    name = sorted(json.loads((copied / "20" / "record.json").read_text())["files"])[0]
    path = copied / "20" / name
    if kind == "link to a folder":
        (copied / "20" / "state" / "more").symlink_to(tmp_path)
    else:
        path.unlink()
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(
        CheckpointError, match=r"state/more is not in" if "link" in kind else rf"{path} is (missing|no f)"
    ):
        SavedSteps(copied, print).verify(20)


def test_a_folder_that_was_renamed_is_not_another_step(copied):
    (copied / "20").rename(copied / "30")
    warnings: list[str] = []
    assert SavedSteps(copied, warnings.append).latest()["step"] == 10
    assert "record.json is of step 20" in warnings[0]


@pytest.mark.parametrize(
    "content", ['{"format": 2}', "[]", "2", "[" * 100_000, '{"format": 2, "step": "20"}', "\udcff"]
)
def test_what_is_no_record_is_refused_by_name(copied, content):
    path = copied / "20" / "record.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=str(path)):
        SavedSteps(copied, print).verify(20)


@pytest.mark.parametrize(
    "wrong", [{"step": "20"}, {"step": True}, {"files": []}, {"files": {"state/a": 1}}, {"leaves": None}]
)
def test_a_signed_record_of_other_types_is_refused(copied, wrong):
    change(copied, 20, **wrong)
    with pytest.raises(CheckpointError, match=rf"no record of a checkpoint: {next(iter(wrong))} of a wrong type"):
        SavedSteps(copied, print).verify(20)


def test_order_is_by_step_not_by_time_or_text(copied):
    """A clock that jumps back, and 9 after 10 as text."""
    shutil.copytree(copied / "10", copied / "9")
    change(copied, 9, step=9, written="2099-01-01T00:00:00Z")
    for step, seconds in ((9, 4e9), (10, 3e9), (20, 1e9)):
        for path in (*(copied / str(step)).rglob("*"), copied / str(step)):
            os.utime(path, (seconds, seconds))
    steps = SavedSteps(copied, pytest.fail)
    assert steps.steps() == [9, 10, 20]
    assert steps.latest()["step"] == 20
    checkpoints = Checkpoints(copied, 2, None, pytest.fail)
    checkpoints.save(21, {"a": jnp.ones(3)}, {})
    checkpoints.close()
    assert checkpoints.steps() == [20, 21]


def test_names_that_are_almost_a_steps_do_not_count(copied):
    for name in ("020", "+30", "³", "30 ", "-40", "4_0"):
        shutil.copytree(copied / "20", copied / name)
    assert SavedSteps(copied, pytest.fail).steps() == [10, 20]


def test_a_step_may_be_a_link_to_read(copied, tmp_path):
    (copied / "20").rename(tmp_path / "elsewhere")
    (copied / "20").symlink_to(tmp_path / "elsewhere")
    assert SavedSteps(copied, pytest.fail).latest()["step"] == 20
