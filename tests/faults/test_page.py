"""What docs/reliability.md refers to is there, and no case is left out."""

from __future__ import annotations

import ast
import re

from tests.support.runs import ROOT

CASES = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("## Every case")[1]


def rows():
    """(number, last cell) of each case."""
    return [(int(m[1]), m[2]) for m in re.finditer(r"^\| (\d+) \|.*\|([^|]*)\|$", CASES, re.MULTILINE)]


def test_every_case_has_a_row_and_a_test():
    assert [number for number, _ in rows()] == list(range(1, 58))
    assert not {number for number, tests in rows() if ".py" not in tests and "the same" not in tests}


def test_every_test_that_is_named_is_there_and_marked_as_it_is():
    """`…::name` is of the file before it in the cell. ◷ after a name says that the test, or a case of it, is slow."""
    named = 0
    for number, cell in rows():
        path, tree = None, None
        for file, name, slow in re.findall(r"`(…|[\w/]+\.py)(?:::([\w:]+))?`( ◷)?", cell):
            if file != "…":
                path = ROOT / "tests" / file
                tree = ast.parse(path.read_text(encoding="utf-8"))
            assert tree is not None, f"case {number} begins with …"
            functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
            for part in name.split("::")[-1:] if name else []:
                assert part in functions, f"case {number}: {path} has no {part}"
                marks = "".join(map(ast.unparse, functions[part].decorator_list))
                assert not slow or "mark.slow" in marks, f"case {number}: {part} is not slow"
                assert slow or not marks.startswith("pytest.mark.slow"), f"case {number}: {part} is slow"
            named += 1
    assert named > 70
