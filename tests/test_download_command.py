"""`python -m deltalm_jax.download`, against a server on this machine, up to the Task that reads what came."""

from __future__ import annotations

import io
import json
import lzma
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_jax import download
from tasks.corpora import find_files, read_split
from tasks.corpora.corpus import CC100, OPUS
from tasks.corpora.urls import SERVERS, published
from tasks.languages import load_languages
from tests.support.file_server import FileServer, serve


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = {f"/{code}.txt.xz": lzma.compress(f"{code} eins\n\n{code} zwei\n".encode()) for code in ("sw", "ha", "he")}
    files["/en_XX-sw_KE.tsv.xz"] = lzma.compress(b"one\tmoja\n")
    files["/OPUS-Books/v1/moses/en-sw.txt.zip"] = zipped({"B.en-sw.en": "one\n", "B.en-sw.sw": "moja\n"})
    files["/OPUS-Books/v1/moses/en-iw.txt.zip"] = zipped({"B.en-iw.en": "one\n", "B.en-iw.iw": "x\n"})
    with serve(files) as state:
        yield state


def run(server: FileServer, folder: Path, *flags: str) -> int:
    return download.main([f"--mirror={server.url}", f"--data_dir={folder}", *flags])


def test_from_server_to_task(server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(server, tmp_path, "--corpus=cc100", "--languages=sw,ha,iw", "--yes") == 0
    printed = capfd.readouterr().err
    files = find_files(tmp_path, "cc100")
    assert sorted(files) == ["ha", "he", "sw"]
    assert list(read_split(CC100, files["sw"], "train", held_out_fraction=0)) == [["sw eins"], ["sw zwei"]]
    record = json.loads((tmp_path / "cc100/downloads.json").read_text())["files"]
    assert sorted(record) == ["ha.txt.xz", "he.txt.xz", "sw.txt.xz"]
    assert record["sw.txt.xz"]["bytes"] == len(server.files["/sw.txt.xz"])
    assert "3 files to fetch" in printed
    assert "Common Crawl" in printed

    requests = len(server.requests)
    assert run(server, tmp_path, "--corpus=cc100", "--languages=sw,ha,he") == 0
    assert "0 files to fetch" in capfd.readouterr().err
    assert len(server.requests) == requests
    assert download.main(["--verify", f"--data_dir={tmp_path}"]) == 0
    (tmp_path / "cc100/ha.txt.xz").write_bytes(b"x" * len(server.files["/ha.txt.xz"]))
    assert download.main(["--verify", f"--data_dir={tmp_path}"]) == 2
    printed = capfd.readouterr().err
    assert "ha.txt.xz: expected sha256" in printed
    assert "1 of 3 files" in printed


def test_ccaligned_and_opus(server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(server, tmp_path, "--corpus=ccaligned", "--languages=sw,eu") == 0
    assert "ccaligned has no file of eu" in capfd.readouterr().err
    assert list(find_files(tmp_path, "ccaligned")) == ["sw"]
    assert run(server, tmp_path, "--corpus=opus", "--opus=Books/v1", "--languages=sw,he,de") == 0
    assert "de: there is no http://127.0.0.1" in capfd.readouterr().err
    files = find_files(tmp_path, "opus")
    assert sorted(files) == ["he", "sw"]
    assert files["sw"].train == (tmp_path / "opus/Books/v1/moses/en-sw.txt.zip",)
    assert list(read_split(OPUS, files["sw"], "train", held_out_fraction=0)) == [("one", "moja")]
    assert run(server, tmp_path, "--corpus=opus", "--opus=Books/v1", "--languages=de") == 2
    assert "nothing of de is published there" in capfd.readouterr().err


def test_much_is_fetched_only_when_said_so(
    server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(server, tmp_path, "--corpus=cc100", "--languages=all") == 2
    printed = capfd.readouterr().err
    assert "116 files to fetch, about" in printed
    assert "add --yes" in printed
    assert not server.requests
    assert not tmp_path.joinpath("cc100").exists()
    assert run(server, tmp_path, "--corpus=cc100", "--languages=he") == 2
    assert run(server, tmp_path, "--corpus=cc100", "--languages=he", "--yes") == 0


def test_files_of_the_users_own_are_left_alone(
    server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cc100").mkdir()
    (tmp_path / "cc100/sw.txt.xz").write_bytes(b"mine")
    assert run(server, tmp_path, "--corpus=cc100", "--languages=sw,ha") == 0
    assert "sw.txt.xz is there, and was not fetched by this command: left as it is" in capfd.readouterr().err
    assert (tmp_path / "cc100/sw.txt.xz").read_bytes() == b"mine"
    (tmp_path / "cc100/ha.txt.xz").write_bytes(b"short")
    assert run(server, tmp_path, "--corpus=cc100", "--languages=sw,ha") == 2
    assert "ha.txt.xz: expected 76 bytes, as downloads.json says, found 5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus=cc100", "--languages=swahili"], "unknown languages swahili"),
        (["--corpus=cc100", "--languages=,"], "expected codes of languages"),
        (["--corpus=cc100", "--languages=xh"], "the server answers 404"),
        (["--corpus=opus", "--opus=../x/v1", "--languages=sw"], "expected a corpus of OPUS with its version"),
        (["--verify"], "expected folders with a downloads.json"),
    ],
)
def test_mistakes(
    server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(server, tmp_path, *flags) == 2
    assert message in capfd.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".part")]


def test_flags_that_cannot_be() -> None:
    for flags in (
        ["--data_dir=x"],
        ["--data_dir=x", "--corpus=cc_net", "--languages=de"],
        ["--data_dir=x", "--corpus=opus", "--languages=de"],
        ["--data_dir=x", "--corpus=cc100", "--opus=Books/v1", "--languages=de"],
    ):
        with pytest.raises(SystemExit) as error:
            download.parse_arguments(flags)
        assert error.value.code == 2


def test_an_interruption_has_its_own_exit_code(
    server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch", interrupted)
    assert run(server, tmp_path, "--corpus=cc100", "--languages=sw") == 130
    assert "goes on where this one stopped" in capfd.readouterr().err


def test_urls_of_the_published_files() -> None:
    table = load_languages()
    files = published("cc100", list(table.values()))
    assert len(files) == 116
    assert {f.urls[0] for f in files} >= {"https://data.statmt.org/cc-100/zh-Hans.txt.xz"}
    english = next(f for f in files if f.language == "en")
    assert english.about_bytes == 82 << 30
    assert 580e9 < sum(f.about_bytes or 0 for f in files) < 600e9
    (german,) = published("ccaligned", [table["de"]])
    assert german.urls == ("https://data.statmt.org/cc-aligned/sentence-aligned/de_DE-en_XX.tsv.xz",)
    (german,) = published("ccaligned_documents", [table["de"], table["en"]])
    assert german.urls == ("https://data.statmt.org/cc-aligned/en_XX-de_DE.tsv.xz",)
    (chinese,) = published("opus", [table["zh-Hans"]], opus_corpora=["Tatoeba/v2023-04-12"])
    assert [url.rsplit("/", 1)[1] for url in chinese.urls] == [
        *(f"en-{code}.txt.zip" for code in ("zh_Hans", "zh", "zh_cn", "zh_CN", "zh_sg", "zh_SG")),
        "cmn-en.txt.zip",
    ]
    assert all(url.startswith("https://object.pouta.csc.fi/OPUS-Tatoeba/v2023-04-12/moses/") for url in chinese.urls)
    assert all(server.startswith("https://") for server in SERVERS.values())
