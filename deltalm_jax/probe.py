"""The probing command: `python -m deltalm_jax.probe sentinels --checkpoint=models/deltalm_base`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltalm_jax import redaction

if TYPE_CHECKING:
    from deltalm_jax.saved_model import Model
    from deltalm_jax.weights.probes import MaskedTexts

_DESCRIPTION = """
Find out from a released DeltaLM's weights what its files do not say. Convert it first; a wrong reading is then corrected
by converting the released file again, with the option that is named.

  sentinels   which rows of the token table are the sentinels (convert --sentinel_layout)
  ffn         which feed-forward network of a decoder layer comes first (convert --ffn_order)
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.probe sentinels --checkpoint=models/deltalm_base
  python -m deltalm_jax.probe ffn --checkpoint=models/deltalm_base --encoder=infoxlm-base
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.probe",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("sentinels", "ffn"), help="what to look at")
    parser.add_argument(
        "--checkpoint", "--model", required=True, metavar="PATH",
        help="a folder of `deltalm_jax.convert --to=native`, a run's directory (also gs://…), or one of its checkpoints",
    )  # fmt: skip
    parser.add_argument(
        "--text", type=pathlib.Path, metavar="FILE", help="UTF-8, a text a line (default: some of the shipped sample)"
    )
    parser.add_argument("--num_texts", type=int, default=32, metavar="N", help="texts at most (default: 32)")
    parser.add_argument(
        "--encoder", type=pathlib.Path, metavar="PATH", help="for ffn: the encoder that the model started from"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    from deltalm_jax.errors import UserError
    from deltalm_jax.saved_model import SavedModelError, check_has_decoder, load_model
    from deltalm_jax.weights.probes import mask_texts

    try:
        model = load_model(flags.checkpoint)
        check_has_decoder(model.config, flags.checkpoint)
        if model.vocabulary is None:
            raise SavedModelError(f"{flags.checkpoint}: its vocabulary is not known: convert it with --vocabulary=FILE")
        if model.vocabulary.sentinel_start >= model.config.vocab_size:
            raise SavedModelError(
                f"{flags.checkpoint}: its {model.config.vocab_size:,} token rows hold no sentinels, as in fine-tuned models: "
                "there is nothing to probe with"
            )
        if flags.num_texts < 1:
            raise SavedModelError(f"--num_texts must be at least 1, found {flags.num_texts}")
        lines = _lines(flags.text, flags.num_texts)
        try:
            texts = mask_texts([model.vocabulary.encode(line) for line in lines])
        except ValueError as error:
            raise SavedModelError(f"{flags.text}: {error}") from error
        print(f"{len(texts.inputs_BS)} texts, three spans of three tokens masked in each")
        if flags.what == "sentinels":
            _print_sentinels(model, texts)
        else:
            _print_feed_forwards(model, texts, flags.encoder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print_sentinels(model: Model, texts: MaskedTexts) -> None:
    from deltalm_jax.weights.probes import probe_sentinels

    assert model.vocabulary is not None
    rows = probe_sentinels(model.config, model.params, model.vocabulary.mask_id, texts)
    print(
        f"{'row':>8} {'norm':>8} {'cosine':>8}   nats a target with this row as the first sentinel, ascending, descending"
    )
    for row in rows:
        print(f"{row.id:8} {row.norm:8.3f} {row.cosine:8.3f} {row.ascending:8.3f} {row.descending:8.3f}")
    nats, first, direction = min(
        (getattr(row, direction), row.id, direction) for row in rows for direction in ("ascending", "descending")
    )
    print(f"likeliest: row {first} first, {direction}, with {nats:.3f} nats; {_reading(first, direction, model)}")


def _reading(first: int, direction: str, model: Model) -> str:
    vocabulary = model.vocabulary
    assert vocabulary is not None
    count, size = vocabulary.num_sentinels, model.config.vocab_size
    readings = {
        (vocabulary.mask_id + 1, "ascending"): "this is --sentinel_layout=after_mask",
        (size - count, "ascending"): "this is --sentinel_layout=last_rows",
        (vocabulary.mask_id + count, "descending"): "these are the rows after <mask>, backwards (not supported)",
        (size - 1, "descending"): "these are the last rows, backwards (not supported)",
    }
    told = readings.get((first, direction), "this fits no known layout: look at the rows")
    same = (first, direction) == (vocabulary.sentinel_start, "ascending")
    return f"{told}, {'as' if same else 'not as'} it was converted"


def _print_feed_forwards(model: Model, texts: MaskedTexts, encoder: pathlib.Path | None) -> None:
    from deltalm_jax.saved_model import SavedModelError
    from deltalm_jax.weights.probes import probe_feed_forwards
    from deltalm_jax.weights.xlm_roberta import read_xlm_roberta

    assert model.vocabulary is not None
    config, layers = model.config, None
    if config.decoder != "interleaved":
        raise SavedModelError(f"a {config.decoder} decoder has one feed-forward network in a layer: there is no order")
    if encoder:
        read = read_xlm_roberta(encoder, None, config.num_heads)
        sizes = read.config.hidden_size, read.config.feed_forward_size
        if sizes != (config.hidden_size, config.feed_forward_size):
            raise SavedModelError(f"{encoder}: has the widths {sizes}, which are not the model's")
        if read.config.num_encoder_layers < 2 * config.num_decoder_layers:
            raise SavedModelError(f"{encoder}: has too few layers for a decoder of {config.num_decoder_layers} layers")
        layers = read.params["encoder"]["layers"]
    orders = probe_feed_forwards(config, model.params, model.vocabulary.sentinel_start, texts, layers)
    print(f"nats a token: {orders.nll_as_read:.3f} as converted, {orders.nll_swapped:.3f} with the networks exchanged")
    for i, ((low, high), (top_low, top_high)) in enumerate(orders.cosines):
        print(
            f"decoder layer {i}: bottom network {low:+.3f} to encoder layer {2 * i}, {high:+.3f} to {2 * i + 1}; "
            f"top network {top_low:+.3f}, {top_high:+.3f}"
        )
    if len(orders.cosines):
        as_read = orders.cosines[:, [0, 1], [0, 1]].mean()
        swapped = orders.cosines[:, [0, 1], [1, 0]].mean()
        print(f"mean cosine: {as_read:+.3f} as converted, {swapped:+.3f} exchanged")
    right = "right" if orders.nll_as_read <= orders.nll_swapped else "wrong: convert with the other --ffn_order"
    print(f"by the loss, the order as converted is {right}")


def _lines(file: pathlib.Path | None, count: int) -> list[str]:
    from deltalm_jax.saved_model import SavedModelError

    if file is None:
        from deltalm_jax.quiet import quiet_imports

        with quiet_imports():
            from tasks.corpora import CORPORA, find_files, read_split
        corpus = CORPORA["cc100"]
        found = find_files(None, corpus.name, ["en", "fr", "ru", "zh-Hans"])
        texts = [paragraph for file in found.values() for d in read_split(corpus, file, "train") for paragraph in d]
        return [texts[i] for i in range(0, len(texts), max(len(texts) // count, 1))][:count]
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
    except (OSError, UnicodeDecodeError) as error:
        raise SavedModelError(f"{file}: cannot be read as UTF-8 text: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
