"""The flags of commands that read text: which mixture, from which folder, of which languages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError
from deltalm_jax.quiet import quiet_imports

if TYPE_CHECKING:
    from deltalm_jax.data.blocks import TextSource

SAMPLE = "sample"


def add_text_flags(group: argparse._ArgumentGroup) -> None:
    """Adds `--mixture`, `--data_dir`, `--languages` and `--task_module`."""
    group.add_argument(
        "--mixture", default="deltalm_pretrain", metavar="NAME", help="seqio Mixture or Task (default: %(default)s)"
    )
    group.add_argument(
        "--data_dir", default=SAMPLE, metavar="DIR", help='folder of the corpora (default: "sample", shipped)'
    )
    group.add_argument(
        "--languages",
        metavar="CODES",
        help="of the corpora only these, e.g. de,fr,zh-Hans; "
        "paper: CC100 of XLM-R's 100 languages and CCAligned of 77, all of which must be there (default: all there are)",
    )
    group.add_argument(
        "--task_module", metavar="MODULE",
        help="module of yours that registers Tasks and Mixtures (tasks.add_task), e.g. my_tasks; its code runs",
    )  # fmt: skip


def languages_of(flags: argparse.Namespace) -> list[str] | None:
    """The codes of `--languages`; None: all there are.

    Raises:
      UserError: it is given and empty, as by a shell's variable that is not set: that would be all of them.
    """
    if flags.languages is None:
        return None
    if not flags.languages.strip():
        raise UserError("--languages is empty: name some, such as de,fr, or leave it out for all there are")
    return [code.strip() for code in flags.languages.split(",")]


def inputs_of_flags(
    flags: argparse.Namespace, vocabulary: Vocabulary, any_vocabulary: bool = False
) -> list[TextSource]:
    """Registers the Tasks that the flags name, and gives the text of the mixture's. Imports TensorFlow and seqio.

    Args:
      flags: parsed, of `add_text_flags`.
      vocabulary: that the Tasks are registered with.
      any_vocabulary: as of `mixture.inputs_of`.

    Raises:
      CorpusError, MixtureError: from there.
    """
    with quiet_imports():
        from deltalm_jax.data.mixture import Registration, inputs_of

        data_dir = None if flags.data_dir == SAMPLE else flags.data_dir
        options = {"data_dir": data_dir, "languages": languages_of(flags)}
        registration = Registration(vocabulary, options, flags.task_module)
        registration.register()
        return inputs_of(flags.mixture, registration, any_vocabulary=any_vocabulary)
