"""Fetching over a connection that breaks, from a server that changes its files or says wrong things."""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_jax.data import fetching
from deltalm_jax.data.download_record import RECORD, DownloadRecord
from deltalm_jax.data.fetching import DownloadError, Fetched, fetch, find_size, finish
from tests.support.file_server import FileServer, serve

CONTENT = b"\xfd7zXZ\x00" + random.Random(3).randbytes(3_000_000)
OTHER = b"\xfd7zXZ\x00" + random.Random(4).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LARGE = 1 << 30


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pauses between attempts, noted instead of waited for."""
    noted: list[int] = []
    monkeypatch.setattr(fetching, "_pause", noted.append)
    return noted


@pytest.fixture
def server(pauses: list[int]) -> Iterator[FileServer]:
    with serve({"/sw.txt.xz": CONTENT}) as state:
        yield state


def get(server: FileServer, path: Path, **options: object) -> Fetched:
    fetched = fetch(f"{server.url}/sw.txt.xz", path, LARGE, **options)  # type: ignore[arg-type]
    finish(path)
    return fetched


def test_a_file(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "sw.txt.xz"
    seen: list[tuple[int, int]] = []
    fetched = get(server, path, on_progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert (fetched.bytes, fetched.sha256) == (len(CONTENT), DIGEST)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["sw.txt.xz"]
    assert find_size(f"{server.url}/sw.txt.xz") == len(CONTENT)
    assert find_size(f"{server.url}/xx.txt.xz") is None


def test_connections_that_break(server: FileServer, tmp_path: Path, pauses: list[int]) -> None:
    """Each one goes on where the one before stopped; none is thrown away."""
    server.cut_after = [1_000_000, 0, 7, 1_500_000]
    fetched = get(server, tmp_path / "sw.txt.xz")
    assert (tmp_path / "sw.txt.xz").read_bytes() == CONTENT
    assert fetched.sha256 == DIGEST
    starts = [0, 1_000_000, 1_000_000, 1_000_007, 2_500_007]
    assert [asked for _, _, asked in server.requests] == [f"bytes={start}-" if start else "" for start in starts]
    assert len(pauses) == 4


def test_a_connection_that_breaks_for_ever(server: FileServer, tmp_path: Path) -> None:
    server.cut_after = [1_000_000] + [0] * 20
    path = tmp_path / "sw.txt.xz"
    with pytest.raises(DownloadError, match=r"6 times in a row\. 1,000,000 bytes are there; the same command goes on"):
        get(server, path)
    assert not path.exists()
    server.cut_after = []
    assert get(server, path).sha256 == DIGEST
    assert server.requests[-1][2] == "bytes=1000000-"


def test_an_interruption_leaves_a_part_to_go_on_with(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "sw.txt.xz"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, path, on_progress=interrupt)
    part = tmp_path / "sw.txt.xz.part"
    got = part.stat().st_size
    assert 0 < got < len(CONTENT)
    assert part.read_bytes() == CONTENT[:got]
    assert get(server, path).sha256 == DIGEST
    assert server.requests[-1][2] == f"bytes={got}-"


@pytest.mark.parametrize("tagged", [True, False])
def test_a_file_that_changes_in_between(server: FileServer, tmp_path: Path, tagged: bool) -> None:
    """Half of one version and half of another would be a file that nobody published."""
    if not tagged:
        server.tags["/sw.txt.xz"] = ""
    server.cut_after = [1_000_000]

    def change(method: str, path: str, asked: str) -> None:
        if len(server.requests) == 2:
            server.files["/sw.txt.xz"] = OTHER

    server.on_request = change
    assert get(server, tmp_path / "sw.txt.xz").sha256 == hashlib.sha256(OTHER).hexdigest()
    # Without a tag or a date nobody can say that it is the same file: the rest is not even asked for.
    assert server.requests[1][2] == ("bytes=1000000-" if tagged else "")


def test_a_server_that_ignores_or_confuses_ranges(server: FileServer, tmp_path: Path) -> None:
    server.cut_after = [1_000_000]
    server.ranges = False
    assert get(server, tmp_path / "sw.txt.xz").sha256 == DIGEST
    # A part of another size than the server's file, with the same tag.
    server.ranges = True
    server.tags["/sw.txt.xz"] = '"same"'
    (tmp_path / "again.xz.part").write_bytes(CONTENT[:500_000])
    state = {"url": f"{server.url}/sw.txt.xz", "version": '"same"', "bytes": len(CONTENT) + 5}
    (tmp_path / "again.xz.part.json").write_text(json.dumps(state))
    assert get(server, tmp_path / "again.xz").sha256 == DIGEST


@pytest.mark.parametrize("state", ["", "{}", "[1]", '{"url": "http://elsewhere", "bytes": 5, "version": "x"}', None])
def test_a_part_of_unknown_origin_is_not_used(server: FileServer, tmp_path: Path, state: str | None) -> None:
    (tmp_path / "sw.txt.xz.part").write_bytes(b"something else")
    if state is not None:
        (tmp_path / "sw.txt.xz.part.json").write_text(state)
    assert get(server, tmp_path / "sw.txt.xz").sha256 == DIGEST
    assert [asked for _, _, asked in server.requests] == [""]


def test_busy_servers_and_missing_files(server: FileServer, tmp_path: Path, pauses: list[int]) -> None:
    server.refuse = [503, 429, 500]
    assert get(server, tmp_path / "sw.txt.xz").sha256 == DIGEST
    assert pauses == [1, 2, 3]
    for status in (404, 403, 410):
        server.refuse = [status]
        with pytest.raises(DownloadError, match=rf"other\.xz: the server answers {status}"):
            fetch(f"{server.url}/other.xz", tmp_path / "other.xz", LARGE)
    assert len(pauses) == 3
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/sw.txt.xz", tmp_path / "other.xz", LARGE)
    with pytest.raises(DownloadError, match="cannot be reached"):
        find_size("http://127.0.0.1:9/sw.txt.xz")


def test_wrong_sizes(server: FileServer, tmp_path: Path) -> None:
    url, path = f"{server.url}/sw.txt.xz", tmp_path / "sw.txt.xz"
    with pytest.raises(DownloadError, match=r"at most 1,000 bytes, the server offers 3,000,006"):
        fetch(url, path, 1000)
    server.announce["/sw.txt.xz"] = None
    with pytest.raises(DownloadError, match="does not say how large"):
        fetch(url, path, LARGE)
    server.announce["/sw.txt.xz"] = len(CONTENT) + 100
    with pytest.raises(DownloadError, match="6 times in a row"):
        fetch(url, path, LARGE)
    server.announce["/sw.txt.xz"] = 1 << 50
    with pytest.raises(DownloadError, match=r"bytes are needed for sw\.txt\.xz, [\d,]+ are free"):
        fetch(url, path, 1 << 51)
    assert not path.exists()


def test_an_error_page_is_no_archive(server: FileServer, tmp_path: Path) -> None:
    server.files["/sw.txt.xz"] = b"<html>Log in to the network</html>" * 50
    with pytest.raises(DownloadError, match=r"expected a \.xz file, found one that begins with b'<html>Log in"):
        get(server, tmp_path / "sw.txt.xz")


@pytest.mark.parametrize(
    "url", ["http://example.org/a.xz", "ftp://127.0.0.1/a.xz", "file:///etc/passwd", "a.xz", "https:///a.xz"]
)
def test_only_https_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="only https is fetched"):
        fetch(url, tmp_path / "a.xz", LARGE)


@pytest.mark.parametrize("target", ["http://example.org/a.xz", "file:///etc/passwd", "ftp://127.0.0.1/a.xz"])
def test_redirects_are_no_way_around(server: FileServer, tmp_path: Path, target: str) -> None:
    server.redirects["/sw.txt.xz"] = target
    with pytest.raises(DownloadError, match=r"only https is fetched|answers 302"):
        get(server, tmp_path / "sw.txt.xz")
    server.files["/moved.xz"] = CONTENT
    server.redirects["/sw.txt.xz"] = f"{server.url}/moved.xz"
    assert get(server, tmp_path / "sw.txt.xz").sha256 == DIGEST


def test_two_processes_at_one_file(server: FileServer, tmp_path: Path) -> None:
    with (tmp_path / "sw.txt.xz.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is fetching this file"):
            get(server, tmp_path / "sw.txt.xz")


def test_another_file_than_the_recorded_one(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "sw.txt.xz"
    record = DownloadRecord(tmp_path)
    record.add("sw.txt.xz", fetch(f"{server.url}/sw.txt.xz", path, LARGE))
    finish(path)
    path.unlink()
    expected = DownloadRecord(tmp_path).files["sw.txt.xz"]["sha256"]
    assert get(server, path, sha256=expected).sha256 == DIGEST
    path.unlink()
    server.files["/sw.txt.xz"] = OTHER
    with pytest.raises(DownloadError, match=r"expected the file that was fetched before .*found another"):
        get(server, path, sha256=expected)
    assert not path.exists()


def test_the_record_notices_every_change(tmp_path: Path) -> None:
    record = DownloadRecord(tmp_path)
    for name, data in (("a.xz", b"aaaa"), ("b.xz", b"bbbb"), ("c.xz", b"cccc"), ("d.xz", b"dddd")):
        (tmp_path / name).write_bytes(data)
        record.add(name, Fetched(f"https://x/{name}", 4, hashlib.sha256(data).hexdigest(), '"1"'))
    assert all(problem is None for _, problem in DownloadRecord(tmp_path).verify())
    (tmp_path / "a.xz").write_bytes(b"aaab")
    (tmp_path / "b.xz").write_bytes(b"bbb")
    (tmp_path / "c.xz").unlink()
    problems = dict(DownloadRecord(tmp_path).verify())
    assert "expected sha256" in str(problems["a.xz"])
    assert "expected 4 bytes, as downloads.json says, found 3" in str(problems["b.xz"])
    assert "not there" in str(problems["c.xz"])
    assert problems["d.xz"] is None
    for damage in ("", "[]", '{"files": {"a": {}}}', '{"files": {"a": {"bytes": "x", "sha256": ""}}}'):
        (tmp_path / RECORD).write_text(damage)
        with pytest.raises(DownloadError, match=r"downloads\.json: expected a record of downloads"):
            DownloadRecord(tmp_path)
