"""Language identification by a function of the user's: which texts are in the language that they are filed under."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np

from deltalm_jax.data.filters.config import FilterConfig
from deltalm_jax.errors import UserError

Identify = Callable[[list[str]], Sequence[tuple[str, float]]]


class IdentifierError(UserError, ValueError):
    """The function that identifies languages is not there, or gives something else than it should."""


@functools.lru_cache(maxsize=4)
def load_identifier(name: str) -> Identify:
    """The function behind "module:function"; the working directory is searched too.

    Raises:
      IdentifierError: there is none.
    """
    module, _, function = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())  # as `python -m` has it; a worker has not
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the user's module raises
        raise IdentifierError(
            f"language_identifier {name!r}: module {module!r} cannot be imported ({type(error).__name__}: {error}). "
            "It must lie in the working "
            "directory or on Python's path, on every worker."
        ) from error
    if not callable(found):
        raise IdentifierError(f"language_identifier {name!r}: module {module!r} has no function {function!r}")
    return found


@dataclasses.dataclass(frozen=True)
class Identified:
    """What the user's function says of T texts.

    Attributes:
      codes: language of each.
      score_T: float64, how sure it is.
      min_score: how sure it should be.
    """

    codes: list[str]
    score_T: np.ndarray
    min_score: float

    def are(self, language: str) -> np.ndarray:
        """bool [T]: which texts are surely in a language: its code, or that without script and region ("zh": "zh-Hans")."""
        wanted = language.replace("_", "-").lower()
        codes = {wanted, wanted.split("-")[0]}
        return np.array([code.replace("_", "-").lower() in codes for code in self.codes], bool) & (
            self.score_T >= self.min_score
        )


def identify(config: FilterConfig, texts: Sequence[str]) -> Identified:
    """Asks the function that the settings name about texts, all at once.

    Raises:
      IdentifierError: the function is not there, or does not give a (code, score) for each text.
    """
    name = config.language_identifier
    assert name
    function = load_identifier(name)
    if not texts:
        return Identified([], np.zeros(0), config.language_min_score)
    try:
        found = list(function(list(texts)))
    except Exception as error:
        raise IdentifierError(f"language_identifier {name!r} fails: {type(error).__name__}: {error}") from error
    wrong = [entry for entry in found if not _is_answer(entry)]
    if wrong or len(found) != len(texts):
        what = f"{wrong[0]!r}" if wrong else f"{len(found)} of them"
        raise IdentifierError(
            f"language_identifier {name!r}: expected a (code, score) for each of {len(texts)} texts, found {what}"
        )
    scores = np.array([score for _, score in found], np.float64)
    return Identified([code for code, _ in found], scores, config.language_min_score)


def _is_answer(entry: object) -> bool:
    return (
        isinstance(entry, (tuple, list))
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], (int, float, np.floating))
        and not isinstance(entry[1], bool)
    )
