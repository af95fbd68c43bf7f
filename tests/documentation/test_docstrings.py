"""Everything public says what it is: modules, classes, functions and methods, read from the source and not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support import runs

FOLDERS = ("deltalm_jax", "tasks", "configs")
# Nobody has to be told what it does.
SELF_EVIDENT = {"close"}


def undocumented(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Names of what is public below a module or a class and has no docstring, itself included."""
    if tree.body and not ast.get_docstring(tree):  # an empty file only makes a folder a package
        yield name
    for node in tree.body:
        match node:
            case ast.ClassDef() if not node.name.startswith("_"):
                yield from undocumented(node, f"{name}.{node.name}")
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("_"):
                if node.name not in SELF_EVIDENT and not ast.get_docstring(node):
                    yield f"{name}.{node.name}"


def test_everything_public_has_a_docstring():
    paths = [path for folder in FOLDERS for path in sorted((runs.ROOT / folder).rglob("*.py"))]
    assert len(paths) > 200
    missing = [
        name
        for path in paths
        for name in undocumented(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(runs.ROOT)))
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("", []),
        ("x = 1", ["m"]),
        ('"""A."""\ndef f(): ...', ["m.f"]),
        ('"""A."""\nclass A:\n    def f(self): ...', ["m.A", "m.A.f"]),
        ('"""A."""\nclass A:\n    """B."""\n    async def f(self): ...', ["m.A.f"]),
        ('"""A."""\ndef _f(): ...\nclass _A:\n    def f(self): ...', []),
        ('"""A."""\nclass A:\n    """B."""\n    def close(self): ...\n    def __init__(self): ...', []),
    ],
)
def test_what_lacks_one_would_be_found(source, missing):
    assert list(undocumented(ast.parse(source), "m")) == missing
