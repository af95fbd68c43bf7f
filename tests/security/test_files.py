"""What is written is for whom the user's umask says, and neither writing nor deleting follows a link out of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_jax.data.download_record import DownloadRecord
from deltalm_jax.data.fetching import DownloadError, fetch
from deltalm_jax.data.partial import Partial
from deltalm_jax.paths import remove_tree
from tests.data.test_restart import make_input, run
from tests.support.file_server import serve


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A folder elsewhere, which is as it was in the end."""
    folder = tmp_path / "precious"
    (folder / "below").mkdir(parents=True)
    for name in ("thesis", "below/thesis"):
        (folder / name).write_text("years of work")
    yield folder
    assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == {"thesis", "below", "below/thesis"}
    for name in ("thesis", "below/thesis"):
        assert (folder / name).read_text() == "years of work"


def plant_links(folder: Path, precious: Path) -> None:
    (folder / "file").symlink_to(precious / "thesis")
    (folder / "folder").symlink_to(precious)
    (folder / "up").symlink_to(precious.parent)


def test_removing_a_folder_leaves_what_its_links_mean(tmp_path: Path, precious: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    plant_links(folder, precious)
    plant_links(folder / "below", precious)
    remove_tree(folder)
    assert not folder.exists()
    link = tmp_path / "link"
    link.symlink_to(precious)
    remove_tree(link)


def test_publishing_leaves_what_links_in_the_work_mean(tmp_path: Path, precious: Path) -> None:
    """What is not of the data is removed before data are published: links, but not what they mean."""
    output, parent = tmp_path / "out", tmp_path / "out.partial"
    (parent / "key" / "task").mkdir(parents=True)
    (parent / "key.work").mkdir()
    (parent / "key" / "task" / "shard").write_text("data")
    for folder in (parent, parent / "key", parent / "key" / "task", parent / "key.work"):
        plant_links(folder, precious)
    output.mkdir()
    plant_links(output, precious)
    partial = Partial(output, parent / "key", parent / "key.work")
    partial.publish(["task/shard"], lambda folder: (folder / "manifest.json").write_text("{}"))
    assert (output / "task" / "shard").read_text() == "data"
    assert not parent.exists()


def test_preparing_over_other_work_leaves_what_its_links_mean(tmp_path: Path, precious: Path) -> None:
    parent = tmp_path / "out.partial"
    (parent / "other.work").mkdir(parents=True)
    plant_links(parent, precious)
    plant_links(parent / "other.work", precious)
    run(make_input(tmp_path), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["sw.txt.part", "sw.txt.part.json"])
def test_nothing_is_fetched_through_a_link(tmp_path: Path, precious: Path, name: str) -> None:
    (tmp_path / name).symlink_to(precious / "thesis")
    with serve({"/sw.txt": b"text"}) as server:
        with pytest.raises(DownloadError, match=rf"{name}: is a symbolic link"):
            fetch(f"{server.url}/sw.txt", tmp_path / "sw.txt", 1 << 20)
        assert server.requests == []


@pytest.mark.parametrize("user", ["me:canary@", "canary@", ":canary@"])
def test_a_url_with_a_password_is_not_fetched(tmp_path: Path, user: str) -> None:
    with serve({"/sw.txt": b"text"}) as server:
        with pytest.raises(DownloadError, match="a URL with a user's name or password is not fetched") as error:
            fetch(server.url.replace("://", f"://{user}") + "/sw.txt", tmp_path / "sw.txt", 1 << 20)
        assert "canary" not in str(error.value)
        server.redirects["/sw.txt"] = server.url.replace("://", f"://{user}") + "/moved.txt"
        with pytest.raises(DownloadError, match="not fetched"):
            fetch(f"{server.url}/sw.txt", tmp_path / "sw.txt", 1 << 20)


@pytest.fixture(params=[0o077, 0o022], ids=["for the owner alone", "as usual"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_written_is_for_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    run(make_input(tmp_path), tmp_path / "out")
    (tmp_path / "corpora").mkdir()
    with serve({"/sw.txt": b"text"}) as server:
        path = tmp_path / "corpora" / "sw.txt"
        record = DownloadRecord(path.parent)
        record.add("sw.txt", fetch(f"{server.url}/sw.txt", path, 1 << 20))
    assert json.loads((tmp_path / "corpora" / "downloads.json").read_text())["files"]["sw.txt"]["bytes"] == 4
    written = [*(tmp_path / "out").rglob("*"), *(tmp_path / "corpora").rglob("*")]
    assert len(written) > 5
    assert {str(p): oct(p.stat().st_mode) for p in written if p.stat().st_mode & umask} == {}
