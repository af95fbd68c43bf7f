"""`python -m deltalm_jax.checkpoints`: what it says of whole, damaged, unfinished and foreign folders, and of differences."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.checkpoints import main
from deltalm_jax.training import checkpoint_diff
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.checkpoint_record import StepRecords
from deltalm_jax.training.saved_steps import SavedSteps
from tests.support.runs import ROOT

A, B = np.arange(1, 7, dtype=np.float32).reshape(2, 3), np.ones(5, np.float32)


def save(run_dir, **steps):
    """A run whose steps `s10=(state, about)` and so on are saved."""
    checkpoints = Checkpoints(run_dir / "checkpoints", 9, None, print)
    for name, (state, about) in steps.items():
        checkpoints.save(int(name[1:]), state, about)
    checkpoints.close()
    (run_dir / "config.json").write_text(json.dumps({"values": {"TrainConfig.keep_checkpoint_every": 10}}))


def state_of(a, b, step, dtype=jnp.float32):
    return {"params": {"a": jnp.asarray(a), "b": jnp.asarray(b, dtype)}, "optimizer": [jnp.int32(step), jnp.zeros(2)]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    identity = {"identity": {"TrainConfig.seed": 0, "data": "x"}}
    other = {"identity": {"TrainConfig.seed": "\x1b[2J1", "data": "x"}}
    save(
        run_dir,
        s10=(state_of(A, B, 10), identity),
        s15=(state_of(A, 1.25 * B, 15), other),
        s20=(state_of(A, B, 10), identity),
    )
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


def listing(root):
    """Everything below a folder, with times and sizes: equal if nobody wrote."""
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in root.rglob("*")}


def test_list(run_dir, capsys):
    path = run_dir / "checkpoints" / "15" / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    (run_dir / "checkpoints" / "25" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (run_dir / "checkpoints" / ".deleting-5-ab").mkdir()
    (run_dir / "checkpoints" / "best\x1b[31m").mkdir()
    before = listing(run_dir)
    assert main(["list", str(run_dir)]) == 0
    assert listing(run_dir) == before
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert re.fullmatch(r" +10 +0\.0\d MB +20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ for good +verified", lines[1])
    assert re.match(r" +15 .*DAMAGED: ", lines[2])
    assert str(path) in lines[2]
    assert re.match(r" +20 .*for good +verified", lines[3])
    rest = "\n".join(lines[4:])
    assert re.search(r"^ +25  unfinished", rest, re.M)
    assert re.search(r"^\.deleting-5-ab  retired", rest, re.M)
    assert r"best\x1b[31m  no checkpoint" in rest


def test_list_reads_the_files_only_if_asked_to(run_dir, capsys):
    path = run_dir / "checkpoints" / "15" / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["list", str(run_dir)]) == 0
    assert "DAMAGED" not in capsys.readouterr().out
    assert main(["list", str(run_dir), "--digests"]) == 0
    assert re.search(rf"^ +15 .*DAMAGED: the content of {path}", capsys.readouterr().out, re.M)


def test_list_of_a_run_that_has_saved_nothing(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert main(["list", str(tmp_path)]) == 0
    assert "no checkpoint yet" in capsys.readouterr().out


@pytest.mark.parametrize("config", ["{", "[]", '{"values": {"TrainConfig.keep_checkpoint_every": "x"}}', None])
def test_list_does_without_the_runs_configuration(run_dir, capsys, config):
    (run_dir / "config.json").unlink()
    if config:
        (run_dir / "config.json").write_text(config)
    assert main(["list", str(run_dir)]) == 0
    assert "for good" not in capsys.readouterr().out


def test_verify(run_dir, capsys):
    assert main(["verify", str(run_dir)]) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"step {n}: verified" for n in (10, 15, 20)
    ]
    path = run_dir / "checkpoints" / "15" / "state" / "_METADATA"
    content = bytearray(path.read_bytes())
    content[7] ^= 4
    path.write_bytes(content)
    assert main(["verify", str(run_dir)]) == 1
    out = capsys.readouterr().out
    assert f"step 15: DAMAGED: the content of {path} has changed" in out
    assert out.count("verified") == 2
    assert main(["verify", str(run_dir), "--step=15"]) == 1
    assert main(["verify", str(run_dir), "--step=20"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{tmp}/absent"], "there is no such folder"),
        (["list", "{run}/checkpoints/10/record.json"], "record.json: is a file: name a run's directory"),
        (
            ["verify", "{run}/checkpoints"],
            r"is no run: it has no folder checkpoints: name the run's directory, \S+/run",
        ),
        (["verify", "{run}", "--step=11"], "there is no checkpoint of step 11; there are 10, 15, 20"),
        (["verify", "{tmp}/empty"], "there is no checkpoint yet"),
        (["diff", "{run}", "10", "11"], "there is no checkpoint of step 11; there are 10, 15, 20"),
        (["diff", "{run}", "10", "10", "--other={tmp}/absent"], "there is no such folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run_dir, tmp_path, capsys, arguments, message):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert main([a.format(tmp=tmp_path, run=run_dir) for a in arguments]) == 2
    told = capsys.readouterr().err
    assert re.match(f"error: .*{message}", told)
    assert told.count("\n") == 1


def test_diff_of_equal_steps(run_dir, tmp_path, capsys):
    other = shutil.copytree(run_dir, tmp_path / "other")
    before = listing(run_dir)
    assert main(["diff", str(run_dir), "10", "20"]) == 0
    assert "arrays: all 4 are equal bit for bit" in capsys.readouterr().out
    assert main(["diff", str(run_dir), "15", "15", f"--other={other}"]) == 0
    assert f"b: {other}/checkpoints/15" in capsys.readouterr().out
    assert listing(run_dir) == before


def test_diff_names_configuration_and_arrays(run_dir, capsys):
    assert main(["diff", str(run_dir), "10", "15"]) == 1
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert r"  TrainConfig.seed: 0 in a, \x1b[2J1 in b" in out
    assert "data:" not in out
    assert "tree: the same" in out
    assert "arrays: 2 of 4 are equal bit for bit" in out
    assert re.findall(r"^ +([0-9.]+)  (\S+)(.*)$", out, re.M) == [
        ("0.5", "optimizer/0", "   10 in a, 15 in b"),
        ("0.25", "params/b", ""),
    ]


def test_diff_of_another_tree_and_dtype(tmp_path, capsys):
    one, two = state_of(A, B, 1), state_of(A, B, 1, jnp.bfloat16)
    del two["params"]["a"]
    save(tmp_path, s1=(one, {}), s2=(two, {}))
    assert main(["diff", str(tmp_path), "1", "2"]) == 1
    out = capsys.readouterr().out
    assert "  params/a: float32[2, 3] in a, absent in b" in out
    assert "  params/b: float32[5] in a, bfloat16[5] in b" in out
    assert "arrays: 2 are equal bit for bit" in out


def test_diff_reads_no_damaged_step(run_dir, capsys):
    path = run_dir / "checkpoints" / "15" / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["diff", str(run_dir), "10", "15"]) == 2
    assert str(path) in capsys.readouterr().err


def test_relative_changes_against_a_direct_computation(tmp_path, monkeypatch):
    """In groups of one leaf and blocks of a few numbers; infinite from zero, NaN first, the sign of a zero last."""
    monkeypatch.setattr(checkpoint_diff, "_GROUP_BYTES", 1)
    monkeypatch.setattr(checkpoint_diff, "_BLOCK", 7)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 9, 11)).astype(np.float32)
    nan = np.float32([1, np.nan])
    ours = {
        "x": x,
        "half": x.astype(jnp.bfloat16),
        "zero": np.zeros(3, np.float32),
        "sign": np.float32([0.0, 2]),
        "nan": nan,
        "same": nan,
    }
    theirs = {
        "x": y,
        "half": y.astype(jnp.bfloat16),
        "zero": np.ones(3, np.float32),
        "sign": np.float32([-0.0, 2]),
        "nan": 2 * nan,
        "same": nan,
    }
    save(tmp_path, s1=(jax.tree.map(jnp.asarray, ours), {}), s2=(jax.tree.map(jnp.asarray, theirs), {}))
    saved = SavedSteps(tmp_path / "checkpoints", print)
    found = checkpoint_diff.compare((saved, saved.verify(1)), (saved, saved.verify(2)))
    assert (found.identity, found.tree, found.equal) == ({}, {}, 1)
    changes = {change.name: change.relative for change in found.leaves}
    assert list(changes)[:2] == ["nan", "zero"]
    assert list(changes)[-1] == "sign"
    assert np.isnan(changes["nan"])
    assert (changes["zero"], changes["sign"]) == (np.inf, 0.0)
    for name in ("x", "half"):
        a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
        np.testing.assert_allclose(changes[name], np.linalg.norm(b - a) / np.linalg.norm(a), rtol=1e-12)


def test_an_array_that_is_not_what_the_record_says(run_dir):
    saved = SavedSteps(run_dir / "checkpoints", print)
    record = saved.verify(10)
    record["leaves"]["params/b"] = [[5], "bfloat16"]
    with pytest.raises(CheckpointError, match=r"params/b is not the bfloat16\[5\] that the record says"):
        checkpoint_diff.read_leaves(saved, record, ["params/b"])


def test_a_step_that_the_run_retires_meanwhile_is_no_damage(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(StepRecords, "steps", lambda _: [5, 10, 15, 20])
    assert main(["list", str(run_dir)]) == 0
    assert main(["verify", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "DAMAGED" not in out
    assert "step 5: the run has retired it meanwhile" in out


def test_listing_and_verifying_start_quickly_and_the_help_has_examples(run_dir):
    """No jax, no TensorFlow: the accelerator may be busy with the run."""
    script = (
        "import sys; from deltalm_jax.checkpoints import main; code = main(sys.argv[1:]);"
        "print('imported:', sorted({'jax', 'tensorflow', 'orbax', 'flax'} & set(sys.modules))); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments in (["list", str(run_dir)], ["verify", str(run_dir)]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        assert "imported: []" in done.stdout
    told = subprocess.run(
        [sys.executable, "-m", "deltalm_jax.checkpoints", "--help"], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "python -m deltalm_jax.checkpoints diff runs/pretrain_base 40000 50000" in told.stdout
