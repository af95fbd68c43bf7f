"""The README's commands do what it says: each is taken from its text and run as it is printed, in one folder, in order.

Left out are those that the text marks as incomplete ("…"), `make`, and `plan`, which needs libtpu. To trainings, flags are
added that make them short and their models small; files that the text takes for granted are made first.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import safetensors.numpy
import sentencepiece

from tests.support import runs, xlm_roberta_model

README = (runs.ROOT / "README.md").read_text(encoding="utf-8")
SAMPLE_VOCABULARY = runs.ROOT / "tasks" / "sample" / "vocabulary.model"
LAYERS, WIDTH, FEED_FORWARD, HEADS = 4, 16, 32, 2
SIZES = {
    "vocab_size": 8104, "hidden_size": WIDTH, "feed_forward_size": FEED_FORWARD, "num_heads": HEADS,
    "num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS // 2,
}  # fmt: skip
SMALL_AND_SHORT = (
    *(f"ModelConfig.{name}={size}" for name, size in SIZES.items()),
    "TrainConfig.steps=2",
    "TrainConfig.eval_every=0",
    "TrainConfig.checkpoint_every=2",
)
ROWS = {
    "pretrain": "DataConfig.objective_batch_sizes={'span_corruption': 2, 'translation_span_corruption': 2}",
    "finetune": "DataConfig.objective_batch_sizes={'sequence_to_sequence': 2}",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """All commands of the README, each on one line and without what a `#` says of it."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line.partition("   #")[0]).strip() for line in lines if line.strip()]


def make_what_is_taken_for_granted(folder: pathlib.Path) -> None:
    """Corpora, a vocabulary, an XLM-R of Hugging Face's, examples and texts to translate."""
    words = [f"neno{i}" for i in range(400)]
    for name, lines in {
        "corpora/text/sw.txt": [" ".join(words[i : i + 40]) for i in range(0, 360)],
        "corpora/parallel/sw-en.tsv": [f"Habari {i} {words[i]}\tNews {i} {words[i]}" for i in range(300)],
        "mine/examples/de-en.tsv": [f"Zahl {i}\tNumber {i}" for i in range(60)],
        "in.de": ["Zahl 1", "", "Zahl 2"],
        "dev.de": ["Zahl 3"],
        "dev.en": ["Number 3"],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(SAMPLE_VOCABULARY, folder / "sentencepiece.bpe.model")
    encoder = folder / "xlm-roberta-base"
    encoder.mkdir()
    shutil.copy(SAMPLE_VOCABULARY, encoder / "sentencepiece.bpe.model")
    rows = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE_VOCABULARY)).get_piece_size() + 2
    state = xlm_roberta_model.random_state(LAYERS, WIDTH, FEED_FORWARD, rows, 512)
    safetensors.numpy.save_file(state, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))


def run(command: str | list[str], folder: pathlib.Path) -> None:
    env = runs.environment() | {"PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    arguments = command if isinstance(command, list) else ["bash", "-c", command]
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_command_works_as_printed(tmp_path):
    make_what_is_taken_for_granted(tmp_path)
    done = []
    for command in commands():
        if "…" in command or command.startswith("make ") or "deltalm_jax.plan" in command:
            continue
        done.append(command.split()[2])
        if "--dry_run" in command:  # of the model in full size, for which nothing is prepared here
            (tmp_path / "elsewhere").mkdir()
            run(command, tmp_path / "elsewhere")
            continue
        if "deltalm_jax.train" in command:
            short = [*SMALL_AND_SHORT, ROWS["finetune" if "finetune" in command else "pretrain"]]
            command += "".join(f' "--gin.{binding}"' for binding in short)
        run(command, tmp_path)
    assert {"prepare", "train", "convert", "generate", "evaluate"} == {name.partition(".")[2] for name in done}
    assert len((tmp_path / "out.en").read_text().split("\n")) == 4
    given = "import numpy as np\ntokens_BS = decoder_tokens_BT = np.array([[5, 6, 3]], np.int32)\n"
    for block in blocks("python"):
        run([sys.executable, "-c", given + block], tmp_path)
