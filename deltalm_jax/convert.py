"""The conversion command: `python -m deltalm_jax.convert --from=xlm_roberta --input=xlm-roberta-base --output=start`."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from deltalm_jax import redaction

_DESCRIPTION = """
Bring weights in and out: start a DeltaLM from XLM-R or InfoXLM, take Microsoft's released DeltaLM or a port of it, and hand
a trained model on. Reading a checkpoint runs none of the code that may be in it.

  format               what it is
  xlm_roberta          an encoder: Hugging Face's folder (model.safetensors or pytorch_model.bin), or fairseq's model.pt;
                       written, as Hugging Face's folder, of an encoder that was trained here
  deltalm              Microsoft's deltalm-base.pt and deltalm-large.pt; also fairseq's checkpoints of fine-tuned models
  huggingface_deltalm  a folder for Hugging Face's transformers: read as of the public ports, written with its own module
  native               a folder for TrainConfig.init_from and deltalm_jax.load_model; also read: a run's directory
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.convert --from=xlm_roberta --input=xlm-roberta-base --output=models/start
  python -m deltalm_jax.train --gin_file=pretrain_base.gin --gin.TrainConfig.init_from=models/start
  python -m deltalm_jax.convert --from=deltalm --input=deltalm-base.pt --vocabulary=spm.model --output=models/deltalm_base
  python -m deltalm_jax.convert --from=native --input=runs/pretrain_base --to=huggingface_deltalm --output=export
  python -m deltalm_jax.convert --from=xlm_roberta --input=xlm-roberta-base --architecture=encoder --sentence_layer=8 \\
      --output=models/encoder
  python -m deltalm_jax.convert --from=native --input=runs/encoder --to=xlm_roberta --output=export
  python -m deltalm_jax.convert --from=native --input=runs/finetune --average_last=5 --output=models/finetuned
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    from deltalm_jax.conversion_request import ARCHITECTURES, SENTINEL_LAYOUTS, SOURCES, TARGETS
    from deltalm_jax.model.warm_start import INITIALIZATIONS
    from deltalm_jax.weights.names import FFN_ORDERS

    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.convert",
        usage="%(prog)s --from=FORMAT --input=PATH --output=PATH [--to=FORMAT] [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--from", dest="source", choices=SOURCES, required=True, help="format of the input")
    what.add_argument(
        "--input", required=True, metavar="PATH", help="file or folder to read; a run's may be gs://BUCKET/FOLDER"
    )
    what.add_argument(
        "--to", dest="target", choices=TARGETS, default="native", help="format of the output (default: native)"
    )
    what.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="PATH", help="file (deltalm) or folder to make"
    )
    start = parser.add_argument_group("from an encoder (xlm_roberta; native where it is an encoder alone)")
    start.add_argument(
        "--architecture", choices=ARCHITECTURES,
        help="what to make of it: a DeltaLM (the default for xlm_roberta), or an encoder with a head for masked language "
        "modelling, to be pretrained further (the default for native)",
    )  # fmt: skip
    start.add_argument(
        "--sentence_layer", type=int, metavar="N",
        help="of an encoder alone: sentences are contrasted by the states after this layer (InfoXLM-base: 8; default: never)",
    )  # fmt: skip
    start.add_argument(
        "--initialize", choices=INITIALIZATIONS,
        help="how the decoder starts from the encoder (default: interleaved, the paper's way)",
    )  # fmt: skip
    start.add_argument(
        "--num_decoder_layers", type=int, metavar="N",
        help="layers of the decoder (default: as many as make it as large as the encoder)",
    )  # fmt: skip
    start.add_argument(
        "--decoder_output_rms", type=float, metavar="X",
        help="scale the decoder's last LayerNorm so that its output has this root mean square; 1 makes an encoder with small "
        "outputs learn faster at first (docs/weights.md)",
    )  # fmt: skip
    start.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the rows and weights that are drawn anew (default: 0)"
    )
    details = parser.add_argument_group("what a file may not tell")
    details.add_argument(
        "--num_heads", type=int, metavar="H", help="attention heads (default: by config.json or the published widths)"
    )
    details.add_argument(
        "--vocabulary",
        type=pathlib.Path,
        metavar="FILE",
        help="SentencePiece model (default: the one beside the weights)",
    )
    details.add_argument(
        "--vocab_size", type=int, metavar="V",
        help="rows of the token table: more are drawn, fewer cut off (default: of an encoder the vocabulary's size, else as "
        "they are)",
    )  # fmt: skip
    details.add_argument("--num_sentinels", type=int, metavar="N", help="sentinels after <mask> (default: 100)")
    details.add_argument(
        "--sentinel_layout", choices=SENTINEL_LAYOUTS,
        help="where a released table's sentinels are read: after <mask> (250,002 to 250,101, the default) or in its last "
        "rows (250,004 to 250,103); `python -m deltalm_jax.probe sentinels` looks",
    )  # fmt: skip
    details.add_argument(
        "--ffn_order", choices=FFN_ORDERS,
        help="which of a released file's feed-forward networks comes first (default: ffn_1_is_bottom); `python -m "
        "deltalm_jax.probe ffn` looks",
    )  # fmt: skip
    run = parser.add_argument_group("from a run (native)")
    run.add_argument(
        "--average_last", type=int, metavar="N", help="the mean of the run's N newest checkpoints (default: the newest)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: an accelerator would only be in the way
    from deltalm_jax.conversion import convert
    from deltalm_jax.conversion_request import Request
    from deltalm_jax.errors import UserError
    from deltalm_jax.model.config import parameter_count
    from deltalm_jax.training.storage import run_path

    try:
        flags.input = run_path(flags.input)
        model = convert(Request(**vars(flags)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    config = model.config
    for note in model.notes:
        print(note)
    layers = (
        f"{config.num_encoder_layers}"
        if config.is_encoder
        else f"{config.num_encoder_layers}-{config.num_decoder_layers}"
    )
    print(
        f"{flags.output}: {parameter_count(config):,} parameters, {layers} layers × {config.hidden_size}, "
        f"{config.num_heads} heads, {config.vocab_size:,} token rows, "
        + ("an encoder alone" if config.is_encoder else f"{config.decoder} decoder")
    )
    if model.vocabulary is None:
        print("no SentencePiece model was found: the vocabulary is not recorded (--vocabulary=FILE)")
    if flags.target == "native":
        train = ["python", "-m", "deltalm_jax.train", "--gin_file=…", f"--gin.TrainConfig.init_from={flags.output}"]
        print(f"to train from it:\n  {shlex.join(train)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
