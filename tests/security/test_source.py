"""The source says nothing that could run what a file contains, but in the places listed here, each with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support import runs

FOLDERS = ("deltalm_jax", "tasks", "configs", "launch", "benchmarks")
FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "yaml",
    "tarfile",
    "torch",
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "literal_eval", "import_module", "system", "popen", "mktemp", "extractall",
    "extract", "unpack_archive", "torch.load", "yaml.load", "pickle.load", "pickle.loads", "mkfifo", "start_server", "umask",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code", "weights_only"}
FORBIDDEN_TEXTS = ("/tmp/", "/var/tmp", "/dev/shm")
ALLOWED = {
    ("deltalm_jax/weights/torch_file.py", "import pickle"): "writes plain values with pickle.dumps; reads none",
    (
        "deltalm_jax/training/gin_files.py",
        "import_module",
    ): "imports of a configuration, after the list of allowed ones",
    (
        "deltalm_jax/data/filters/languages.py",
        "import_module",
    ): "the user's own identifier, which `train` wants allowed",
    (
        "deltalm_jax/data/mixture.py",
        "import_module",
    ): "modules of Tasks: the project's, and those named on the command line",
    ("deltalm_jax/data/filters/flags.py", "literal_eval"): "flags of the command line, of the person who runs it",
    (
        "deltalm_jax/weights/hugging_face/modeling_deltalm.py",
        "import torch",
    ): "runs in transformers, on the user's side",
    ("deltalm_jax/weights/hugging_face/layers_deltalm.py", "import torch"): "runs in transformers, on the user's side",
    (
        "benchmarks/evidence/declaration.py",
        "import tarfile",
    ): "reads members of an npm package as streams; unpacks none",
    ("benchmarks/generate.py", "import torch"): "the framework that is compared with",
    (
        "benchmarks/generate.py",
        "trust_remote_code=",
    ): "transformers runs the module that `convert` has just written, our own",
    ("benchmarks/torch_peer.py", "import torch"): "the framework that is compared with",
    ("benchmarks/train_step.py", "import torch"): "the framework that is compared with",
}


def name_of(node: ast.expr) -> str:
    """`torch.load` of an attribute, `eval` of a name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{name_of(value)}.{name}"
    return "?"


def found_in(source: str) -> Iterator[str]:
    """What of the forbidden a source has."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (
                    f"import {a.name.split('.')[0]}" for a in names if a.name.split(".")[0] in FORBIDDEN_IMPORTS
                )
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in FORBIDDEN_IMPORTS:
                    yield f"import {module.split('.')[0]}"
                yield from (f"import of {a.name}" for a in names if a.name in FORBIDDEN_CALLS)
            case ast.Call(func=function, keywords=keywords):
                full = name_of(function)
                short = full.rpartition(".")[2]
                # `model.eval()` of torch takes no argument; `re.compile` and `jax.jit(…).compile()` make no code of text.
                harmless = (short == "eval" and full != "eval") or (short == "compile" and full != "compile")
                harmless |= short == "extract" and full.startswith("np.")
                if not harmless and (short in FORBIDDEN_CALLS or full in FORBIDDEN_CALLS):
                    yield short if short in FORBIDDEN_CALLS else full
                for keyword in keywords:
                    safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    if keyword.arg in FORBIDDEN_ARGUMENTS and not (safe and keyword.arg != "weights_only"):
                        yield f"{keyword.arg}="
            case ast.Constant(value=str(text)):
                yield from (f"{part!r} in a text" for part in FORBIDDEN_TEXTS if part in text)


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(runs.ROOT)): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((runs.ROOT / folder).rglob("*.py"))
    }


def test_nothing_forbidden_is_in_the_source():
    found = {(path, what) for path, source in sources().items() for what in found_in(source)}
    assert len(sources()) > 100
    assert {place: ALLOWED.get(place, "no reason is given") for place in sorted(found)} == dict(sorted(ALLOWED.items()))


def test_pickle_is_for_writing_only():
    """The one module that imports it calls `dumps` and nothing else of it."""
    tree = ast.parse(sources()["deltalm_jax/weights/torch_file.py"])
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and name_of(n.value) == "pickle"}
    assert used == {"dumps"}


def test_archives_are_read_where_they_lie():
    """`extract` and its like are forbidden above, so no member is ever a path; and it is known who opens any."""
    openers = {
        path
        for path, source in sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and name_of(node.func).endswith("ZipFile")
    }
    assert openers == {
        "benchmarks/evidence/catalogues.py",  # wheels, members as streams
        "benchmarks/evidence/encoder.py",
        "benchmarks/evidence/verses.py",
        "deltalm_jax/data/readers/moses.py",  # pairs, as a stream
        "deltalm_jax/weights/torch_file.py",  # writes
        "deltalm_jax/weights/zip_entries.py",  # the table of contents
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "import pickle"),
        ("from cloudpickle import loads", "import cloudpickle"),
        ("import torch.nn as nn", "import torch"),
        ("np.load(f, allow_pickle=True)", "allow_pickle="),
        ("np.load(f, allow_pickle=flag)", "allow_pickle="),
        ("torch.load(f)", "torch.load"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("builtins.exec(x)", "exec"),
        ("os.system('ls')", "system"),
        ("from os import system", "import of system"),
        ("subprocess.run(x, shell=True)", "shell="),
        ("yaml.load(f)", "yaml.load"),
        ("tarfile.open(f).extractall(p)", "extractall"),
        ("archive.extract(member)", "extract"),
        ("tempfile.mktemp()", "mktemp"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code="),
        ("jax.profiler.start_server(1)", "start_server"),
        ("open('/tmp/x', 'w')", "'/tmp/' in a text"),
    ],
)
def test_each_would_be_found(source, found):
    assert found in list(found_in(source))


@pytest.mark.parametrize(
    "source", ["np.load(f, allow_pickle=False)", "model.eval()", "re.compile('x')", "step.lower(x).compile()"]
)
def test_what_is_harmless_is_not(source):
    assert list(found_in(source)) == []
