"""The flags of commands that decode: how to search, how to draw at random, and how large batches are."""

from __future__ import annotations

import argparse
import pathlib

from deltalm_jax.decoding.options import RULES
from deltalm_jax.decoding.texts import TOO_LONG


def add_checkpoint_flag(group: argparse._ArgumentGroup) -> None:
    """Adds `--checkpoint`."""
    group.add_argument(
        "--checkpoint", required=True, metavar="PATH",
        help="a folder of `deltalm_jax.convert --to=native`, a run's directory (also gs://…), or one of its checkpoints",
    )  # fmt: skip


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Adds those fields of `job.Job` that say how sources are decoded, by their names."""
    path = pathlib.Path
    how = parser.add_argument_group("how to search")
    how.add_argument("--beam_size", type=int, default=5, metavar="K", help="1 is greedy (default: 5)")
    how.add_argument("--rule", choices=RULES, default="fairseq", help="whose beam search (default: fairseq)")
    how.add_argument("--early_stopping", action="store_true", help="of the rule huggingface")
    how.add_argument("--length_penalty", type=float, default=1.0, metavar="X", help="larger: longer (default: 1)")
    how.add_argument(
        "--max_length", type=int, default=200, metavar="N", help="most tokens of a hypothesis (default: 200)"
    )
    how.add_argument(
        "--max_length_per_token", type=float, default=0.0, metavar="A",
        help="so many more for each token of the source (default: 0)",
    )  # fmt: skip
    how.add_argument(
        "--min_length", type=int, default=1, metavar="N", help="fewest tokens of a hypothesis (default: 1)"
    )
    how.add_argument("--no_repeat_ngram_size", type=int, default=0, metavar="N", help="no n-gram twice (default: off)")
    how.add_argument(
        "--allowed_script", default="", metavar="NAME[,NAME]",
        help="generate pieces of these Unicode scripts only (Latin; Han,Hiragana,Katakana), and what is of no script",
    )  # fmt: skip
    how.add_argument(
        "--allowed_tokens_from", type=path, metavar="FILE", help="generate only tokens that this text consists of"
    )
    how.add_argument("--target_prefix", default="", metavar="TEXT", help="what every hypothesis begins with")
    how.add_argument(
        "--too_long", choices=TOO_LONG, default="cut",
        help="sources with more tokens than the model takes: cut their end off (default), leave their line blank, or fail",
    )  # fmt: skip
    draw = parser.add_argument_group("drawing at random, in place of beam search")
    draw.add_argument("--temperature", type=float, metavar="T", help="draw, from logits divided by this")
    draw.add_argument("--top_k", type=int, default=0, metavar="N", help="from the N likeliest tokens")
    draw.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="from the likeliest of probability P in all"
    )
    draw.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batch_tokens", type=int, default=2048, metavar="N", help="source places of a batch (default: 2048)"
    )
    speed.add_argument(
        "--window_lines", type=int, default=4096, metavar="N", help="lines sorted by length at a time (default: 4096)"
    )
