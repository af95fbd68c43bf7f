"""A preparation that ends before its time goes on where it was, to the very bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deltalm_jax
from deltalm_jax.data import prepare_part
from deltalm_jax.data.blocks import encode_block
from deltalm_jax.data.preparation import Input, PreparationError, prepare
from deltalm_jax.data.vocabulary import Vocabulary
from tests.support.toy_data import SAMPLE_VOCABULARY

ROOT = Path(deltalm_jax.__file__).parents[1]


def read_lines(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """A document a line. "!" interrupts, "?" is damage; a file "slow" beside it makes reading slow."""
    with path.with_name("log").open("a") as log:
        log.write(f"{path.name}\n")
    slow = path.with_name("slow").exists()
    for line in path.read_text().splitlines():
        if line == "!":
            raise KeyboardInterrupt
        if line == "?":
            raise ValueError(f"{path}: damaged")
        if slow:
            time.sleep(0.02)
        yield [line]


def make_input(folder: Path, files: int = 3, lines: int = 60) -> Input:
    """Text of which every file is a part."""
    generator = random.Random(0)
    for number in range(files):
        text = "".join(f"{' '.join(generator.choices(['red', 'green', 'blue'], k=9))} {i}\n" for i in range(lines))
        (folder / f"text{number}").write_text(text)
    paths = tuple(folder / f"text{number}" for number in range(files))
    return Input("toy_de", "span_corruption", "de", read_lines, paths, part_bytes=1)


def run(source: Input, output: Path, **changes: Any) -> None:
    settings: dict[str, Any] = dict(
        mixture="toy", chunk_length=32, validation_fraction=0.1, block_bytes=400, blocks_per_shard=2
    )
    prepare([source], Vocabulary.load(SAMPLE_VOCABULARY), output, **{**settings, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_since(folder: Path) -> list[str]:
    """Which files were opened since the last call."""
    names = (folder / "log").read_text().split()
    (folder / "log").unlink()
    return names


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of items of every block that is tokenised."""
    sizes: list[int] = []

    def counted(items: Any, *rest: Any) -> Any:
        sizes.append(len(items))
        return encode_block(items, *rest)

    monkeypatch.setattr(prepare_part, "encode_block", counted)
    return sizes


def test_finished_parts_and_shards_are_used_again(tmp_path: Path, encoded: list[int]) -> None:
    source = make_input(tmp_path)
    run(source, tmp_path / "whole")
    assert sum(encoded) == 180
    assert sorted(read_since(tmp_path)) == ["text0", "text1", "text2"]
    text = (tmp_path / "text1").read_text()
    lines = text.splitlines()
    (tmp_path / "text1").write_text("\n".join([*lines[:45], "!", *lines[46:]]))
    encoded.clear()
    with pytest.raises(KeyboardInterrupt):
        run(make_input_again(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "log").unlink()

    # The same file as before: what was made of the other one is not used, though its first lines were the same.
    (tmp_path / "text1").write_text(text)
    done = {p.name for p in (tmp_path / "out.partial").glob("*.work/toy_de/part-*")}
    assert done
    encoded.clear()
    run(make_input_again(source), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert len(read_since(tmp_path)) == 3 - len(done)
    assert sum(encoded) == 60 * (3 - len(done))
    assert not (tmp_path / "out.partial").exists()


def make_input_again(source: Input) -> Input:
    """As a new process finds it: files are looked at anew."""
    return Input(source.task, source.objective, source.language, source.reader, source.train, part_bytes=1)


def test_a_part_that_was_half_done_is_read_but_not_tokenised_again(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_input(tmp_path, files=1)
    run(source, tmp_path / "whole")
    sizes = encoded.copy()
    encoded.clear()
    real = prepare_part.write_shard
    calls: list[str] = []

    def stop_at_the_third(folder: Path, file: str, records: Any) -> Any:
        calls.append(file)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(folder, file, records)

    monkeypatch.setattr(prepare_part, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    encoded.clear()
    run(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert len(set(calls)) == len(calls) - 1
    assert sum(encoded) == sum(sizes) - sum(sizes[:4])


def test_damage_does_not_cost_the_other_files_and_its_own_shards_are_not_trusted(
    tmp_path: Path, encoded: list[int]
) -> None:
    source = make_input(tmp_path)
    run(source, tmp_path / "whole")
    text = (tmp_path / "text2").read_text()
    (tmp_path / "text2").write_text(text[: len(text) // 2] + "\n?")  # shorter: the others come first
    with pytest.raises(PreparationError, match="text2: damaged"):
        run(make_input_again(source), tmp_path / "out")
    assert len(list((tmp_path / "out.partial").glob("*.work/toy_de/part-*"))) == 2
    assert not list((tmp_path / "out.partial").glob("*.work/toy_de/shard-*-00002-*"))
    (tmp_path / "text2").write_text(text)
    encoded.clear()
    run(make_input_again(source), tmp_path / "out")
    assert sum(encoded) == 60
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_finished_work_of_another_kind_is_not_mixed_in_and_not_thrown_away(tmp_path: Path) -> None:
    source = make_input(tmp_path)
    text = (tmp_path / "text2").read_text()
    (tmp_path / "text2").write_text("!")
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    (tmp_path / "text2").write_text(text)
    before = files_of(tmp_path / "out.partial")
    with pytest.raises(PreparationError, match=r"2 finished parts .* of another kind \(other settings\).*--overwrite"):
        run(make_input_again(source), tmp_path / "out", blocks_per_shard=3)
    assert files_of(tmp_path / "out.partial").keys() == before.keys()
    run(make_input_again(source), tmp_path / "out", blocks_per_shard=3, overwrite=True)
    run(make_input_again(source), tmp_path / "whole", blocks_per_shard=3)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_shard_that_is_gone_or_cut_is_made_again(tmp_path: Path) -> None:
    source = make_input(tmp_path)
    run(source, tmp_path / "whole")
    text = (tmp_path / "text2").read_text()
    (tmp_path / "text2").write_text("!")
    with pytest.raises(KeyboardInterrupt):
        run(make_input_again(source), tmp_path / "out")
    (tmp_path / "text2").write_text(text)
    first, second, *_ = sorted((tmp_path / "out.partial").rglob("train-*.array_record"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    run(make_input_again(source), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


COMMAND = """
import sys
from pathlib import Path
from tests.data.test_restart import make_input_again, run, Input, read_lines
folder = Path(sys.argv[1])
paths = tuple(sorted(folder.glob("text*"), key=lambda path: int(path.name[4:])))
run(Input("toy_de", "span_corruption", "de", read_lines, paths, part_bytes=1), folder / "out", num_workers=int(sys.argv[2]))
"""


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", COMMAND, str(folder), str(workers)], cwd=ROOT)


def children(pid: int) -> list[int]:
    """Processes that a process has started, from the system's own table."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def records(folder: Path) -> int:
    return len(list((folder / "out.partial").glob("*.work/toy_de/*.json")))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the table of processes")
def test_the_driver_is_killed_and_its_workers_end_too(tmp_path: Path) -> None:
    source = make_input(tmp_path, files=4)
    run(source, tmp_path / "whole")
    (tmp_path / "slow").touch()
    process = start(tmp_path, 2)
    deadline = time.monotonic() + 60
    while records(tmp_path) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) == 2
    assert not (tmp_path / "out").exists()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert records(tmp_path) >= 3
    (tmp_path / "slow").unlink()
    run(make_input_again(source), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_killed_at_random_again_and_again(tmp_path: Path, victim: str) -> None:
    source = make_input(tmp_path, files=12, lines=100)
    run(source, tmp_path / "whole")
    generator = random.Random(victim)
    for attempt in range(4):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "slow").touch()
        kills = 0
        while not (tmp_path / "out").exists():
            if kills == 4:
                (tmp_path / "slow").unlink()
            process = start(tmp_path, 1 + (attempt + kills) % 2 if victim == "driver" else 2)
            until = time.monotonic() + generator.uniform(1, 9)
            while process.poll() is None and (kills == 4 or time.monotonic() < until):
                time.sleep(0.01)
            if process.poll() is None:
                kills += 1
                targets = [process.pid] if victim == "driver" else children(process.pid)
                for pid in targets[:1]:
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        assert kills
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
        assert not (tmp_path / "out.partial").exists()
