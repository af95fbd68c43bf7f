"""Imports run one way: which part of the code may import which, and that no module needs itself, read from the source.

The picture is docs/design.md's, written as a table. What a module imports where it begins counts. What a function imports
when it is called (so that a command's help does not wait for jax, nor a run for TensorFlow) may go against the order only
where `LATE` says so.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator

import pytest

from tests.support import runs

FOLDERS = ("deltalm_jax", "tasks", "configs")
GROUND = ("ground",)
ARRAYS = (*GROUND, "model", "data", "parallel")
MODELS = (*ARRAYS, "weights", "checkpoints", "saved models")
TRAINING = (*MODELS, "metrics", "decoding", "training")
# Lowest first. Each part: the modules and packages that it is made of, and the parts before it that it may import. A module
# belongs to the longest name that it begins with.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ground": (
        (
            "deltalm_jax",
            *(f"deltalm_jax.{name}" for name in ("errors", "fault_points", "fields", "paths", "quiet", "redaction")),
            "configs",
        ),
        (),
    ),
    "model": (("deltalm_jax.model",), GROUND),
    # One part: objectives are told what packing and vocabulary are, the stream calls objectives.
    "data": (("deltalm_jax.data", "deltalm_jax.objectives"), GROUND),
    "parallel": (("deltalm_jax.parallel",), (*GROUND, "model")),
    "weights": (("deltalm_jax.weights",), ARRAYS),
    # Of evaluation, what a training run needs to judge what it writes.
    "metrics": (("deltalm_jax.evaluation.metrics",), GROUND),
    # Of training, what it takes to read a run's checkpoints.
    "checkpoints": (
        tuple(f"deltalm_jax.training.{name}" for name in ("checkpoint_record", "leaves", "saved_steps", "storage")),
        ARRAYS,
    ),
    "saved models": (("deltalm_jax.saved_model",), (*ARRAYS, "weights", "checkpoints")),
    "decoding": (("deltalm_jax.decoding",), MODELS),
    "training": (("deltalm_jax.training",), (*MODELS, "metrics", "decoding")),
    "evaluation": (("deltalm_jax.evaluation",), TRAINING),
    "report": (("deltalm_jax.run_report",), (*GROUND, "data", "checkpoints", "training", "evaluation")),
    "conversion": (
        tuple(f"deltalm_jax.{name}" for name in ("averaging", "conversion", "conversion_request")),
        MODELS,
    ),
    # What the data is. Anyone's seqio client imports it, so it needs neither model nor training; and it brings TensorFlow
    # along, so only commands name it, and those below import it late.
    "tasks": (("tasks",), (*GROUND, "data", "metrics")),
    "commands": (
        tuple(
            f"deltalm_jax.{name}"
            for name in (
                *("checkpoints", "convert", "download", "evaluate", "generate", "plan", "prepare", "probe", "report"),
                *("train", "vocabulary"),
            )
        ),
        (*TRAINING, "evaluation", "report", "conversion", "tasks"),
    ),
}
# From one part to another against the order, inside of functions only.
LATE = {
    ("ground", "saved models"): "deltalm_jax.load_model, the public entrance",
    ("data", "tasks"): "prepare reads the Tasks that are registered",
    ("training", "tasks"): "the dry run shows text of the shipped sample where the corpora are absent",
    ("evaluation", "tasks"): "texts are those of the Tasks",
}
FLAX = "deltalm_jax.model"


def modules() -> dict[str, str]:
    """Each module's source, by its name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((runs.ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(runs.ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


def imported(tree: ast.AST, late: bool, inside: bool = False) -> Iterator[tuple[str, str | None]]:
    """Pairs (module, name from it or None) that are imported at the top, or (`late`) in functions; not for types alone.

    A relative import keeps its dots: only the files that an exported model takes along have any.
    """
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                continue
            case ast.Import(names=names) if inside == late:
                yield from ((alias.name, None) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level) if inside == late:
                yield from (("." * level + (module or ""), alias.name) for alias in names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imported(node, late, inside or function)


def graph(sources: dict[str, str], late: bool) -> dict[str, set[str]]:
    """Module → the project's modules that it imports."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        edges[module] = set()
        for target, name in imported(ast.parse(source), late):
            if target.startswith("."):
                target = f"{module.rpartition('.')[0]}{target}"
            inner = f"{target}.{name}"
            edges[module] |= {inner if inner in sources else target} & sources.keys()
    return edges


def part_of(module: str) -> str:
    """The part that has the longest name which the module begins with."""
    names = {name: part for part, (members, _) in PARTS.items() for name in members}
    fitting = [name for name in names if f"{module}.".startswith(f"{name}.")]
    return names[max(fitting, key=len)]


def violations(edges: dict[str, set[str]]) -> dict[tuple[str, str], list[str]]:
    """Imports from a part that are not in its row: (part, part) → the modules."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, targets in edges.items():
        part = part_of(module)
        for target in sorted(targets):
            if part_of(target) not in (part, *PARTS[part][1]):
                found.setdefault((part, part_of(target)), []).append(f"{module} imports {target}")
    return found


def test_the_table_has_an_order():
    """So that what it allows has no circles either."""
    known: set[str] = set()
    for part, (_, allowed) in PARTS.items():
        assert set(allowed) <= known, part
        known.add(part)


def test_the_table_is_about_this_code():
    """A module that the table calls by name is there, and no command or helper beside the packages is without a row."""
    named = {name for members, _ in PARTS.values() for name in members}
    there = set(modules())
    assert named <= there
    beside = {name for name in there if name.count(".") == 1 and name.startswith("deltalm_jax.")}
    assert beside <= named


def test_imports_run_one_way():
    edges = graph(modules(), late=False)
    assert sum(map(len, edges.values())) > 400, "this has not seen the code's imports"
    assert violations(edges) == {}


def test_late_imports_go_against_the_order_only_where_it_is_said():
    assert violations(graph(modules(), late=True)).keys() == LATE.keys()


def test_no_module_needs_itself():
    order = list(graphlib.TopologicalSorter(graph(modules(), late=False)).static_order())  # raises CycleError
    assert set(order) >= set(modules())


def test_flax_is_the_models_own():
    users = {
        name
        for name, source in modules().items()
        for late in (False, True)
        for target, _ in imported(ast.parse(source), late)
        if target.split(".")[0] == "flax"
    }
    assert users
    assert {name for name in users if not name.startswith(f"{FLAX}.")} == set()


SMALL = {
    "deltalm_jax": "",
    "deltalm_jax.errors": "",
    "deltalm_jax.model.layer": "import deltalm_jax.errors",
    "deltalm_jax.training.loop": "from deltalm_jax.model import layer\nfrom deltalm_jax.training import step",
    "deltalm_jax.training.step": "def f():\n    import deltalm_jax.train",
    "deltalm_jax.train": "from deltalm_jax.training.loop import train",
}


def test_what_is_as_it_should_be_passes():
    assert violations(graph(SMALL, late=False)) == {}


@pytest.mark.parametrize(
    ("module", "source", "late", "parts"),
    [
        ("deltalm_jax.model.layer", "from deltalm_jax.training import loop", False, ("model", "training")),
        ("deltalm_jax.errors", "import deltalm_jax.model.layer as layer", False, ("ground", "model")),
        ("deltalm_jax.model.layer", "try:\n    import deltalm_jax.train\nfinally: ...", False, ("model", "commands")),
        ("deltalm_jax.model.layer", "class A:\n    import deltalm_jax.train", False, ("model", "commands")),
        ("deltalm_jax.training.step", SMALL["deltalm_jax.training.step"], True, ("training", "commands")),
    ],
)
def test_a_violation_would_be_found(module, source, late, parts):
    assert violations(graph(SMALL | {module: source}, late)).keys() == {parts}


def test_what_types_need_is_no_import():
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import deltalm_jax.train"
    assert violations(graph(SMALL | {"deltalm_jax.errors": source}, late=False)) == {}


def test_a_circle_would_be_found():
    source = "import deltalm_jax.training.loop"
    with pytest.raises(graphlib.CycleError, match="loop"):
        graphlib.TopologicalSorter(graph(SMALL | {"deltalm_jax.training.step": source}, late=False)).prepare()
