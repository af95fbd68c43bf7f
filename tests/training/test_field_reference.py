"""docs/configuration.md: what is read from docstrings, and that the page is the code's."""

from __future__ import annotations

import dataclasses

import pytest

from deltalm_jax.fields import operational
from deltalm_jax.training.field_reference import descriptions, fields, page
from deltalm_jax.training.gin_files import CLASSES
from tests.support.runs import ROOT


@dataclasses.dataclass(frozen=True)
class Oven:
    """What bakes.

    Attributes:
      heat: degrees, not * of Fahrenheit;
        `<hot>` at least.
      width, depth: of the inside.
      mode: how.
          "fan": with a fan, which
            turns.
          "grill": from above.

    Raises:
      ValueError: it is broken.
    """

    heat: float
    width: int = 3
    depth: int = operational(4)
    mode: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: {"fan": (1, 2)})


def test_a_field_is_what_its_dataclass_and_its_docstring_say() -> None:
    heat, width, depth, mode = fields(Oven)
    assert (heat.name, heat.type, heat.default, heat.operational) == (
        "Oven.heat",
        "float",
        "none: it must be said",
        False,
    )
    assert heat.description == r"degrees, not \* of Fahrenheit; `<hot>` at least."
    assert (width.default, width.operational, depth.default, depth.operational) == ("3", False, "4", True)
    assert width.description == depth.description == "of the inside."
    assert mode.default == '{"fan": [1, 2]}'
    assert mode.description == 'how.\n\n- "fan": with a fan, which turns.\n- "grill": from above.'


def test_a_field_without_a_description_is_an_error() -> None:
    @dataclasses.dataclass
    class Silent:
        """Says nothing of one field.

        Attributes:
          told: yes.
        """

        told: int = 0
        untold: int = 0

    with pytest.raises(ValueError, match=r"Silent\.untold is not described"):
        fields(Silent)


def test_a_description_without_a_field_is_an_error() -> None:
    @dataclasses.dataclass
    class Stale:
        """Describes what is gone.

        Attributes:
          here: yes.
          gone: no.
        """

        here: int = 0

    with pytest.raises(ValueError, match="describes gone, which is no field"):
        fields(Stale)


def test_no_section_and_a_stray_line() -> None:
    assert descriptions("Nothing more.") == {}
    with pytest.raises(ValueError, match="belongs to no attribute: 'stray'"):
        descriptions("Title.\n\nAttributes:\n    stray")


def test_every_field_is_on_the_page() -> None:
    text = page()
    wanted = {f"### {cls.__name__}.{field.name}" for cls in CLASSES.values() for field in dataclasses.fields(cls)}
    assert wanted <= set(text.split("\n"))


def test_the_page_is_as_the_code_is() -> None:
    kept = (ROOT / "docs" / "configuration.md").read_text()
    assert kept == page(), (
        "docs/configuration.md is not what the classes say: python -m deltalm_jax.training.field_reference "
        "> docs/configuration.md"
    )
