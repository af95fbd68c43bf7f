"""Opens a run's prepared data, and makes it first where the corpora are small."""

from __future__ import annotations

import hashlib
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

from deltalm_jax.data.chunks import MANIFEST, PreparedData, PreparedDataError
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.flags import filter_flags
from deltalm_jax.data.shards import digest_file
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS
from deltalm_jax.fault_points import reached
from deltalm_jax.training.config import RANDOM, Config
from deltalm_jax.training.data_config import SAMPLE, SEQUENCE_TO_SEQUENCE
from deltalm_jax.training.starting_point import open_starting_point

SAMPLE_VOCABULARY = pathlib.Path(__file__).parents[2] / "tasks" / "sample" / "vocabulary.model"


def prepared_folder(config: Config) -> pathlib.Path:
    """Where a run's prepared data lies: `DataConfig.prepared_dir`, or `prepared/<gin name>`."""
    return pathlib.Path(config.data.prepared_dir or pathlib.Path("prepared", config.name))


def prepare_command(config: Config, folder: pathlib.Path) -> list[str]:
    """The command line that prepares this run's data."""
    data = config.data
    command = [sys.executable, "-m", "deltalm_jax.prepare", f"--mixture={data.mixture}"]
    if data.task_module:
        command.append(f"--task_module={data.task_module}")
    if data.data_dir:
        command.append(f"--data_dir={data.data_dir}")
    if data.vocabulary != SAMPLE or data.data_dir != SAMPLE:
        command.append(f"--vocabulary={data.vocabulary}")
    lengths = {name: n for name, n in data.chunk_lengths().items() if name != SEQUENCE_TO_SEQUENCE}
    same = len(set(lengths.values())) == 1
    length = str(next(iter(lengths.values()))) if same else ",".join(f"{name}={n}" for name, n in lengths.items())
    command += [f"--chunk_length={length}"] if lengths else []
    if SEQUENCE_TO_SEQUENCE in data.objective_batch_sizes:
        command += [f"--source_length={data.source_length}", f"--target_length={data.target_length}"]
        command += [] if data.packing else ["--no_packing"]
        command += [f"--source_prefix={data.source_prefix}"] if data.source_prefix else []
    command.append(f"--output={folder}")
    if data.num_sentinels != DEFAULT_NUM_SENTINELS:
        command.append(f"--num_sentinels={data.num_sentinels}")
    if data.languages:
        command.append(f"--languages={','.join(data.languages)}")
    return command + filter_flags(config.filters)


def run_command(command: Sequence[str]) -> int:
    """Runs a command to its end; returns its exit code."""
    return subprocess.run(command, check=False).returncode


def open_or_prepare(
    config: Config, alone: bool = True, run: Callable[[Sequence[str]], int] = run_command
) -> PreparedData:
    """The run's prepared data, checked against its configuration.

    Absent data is prepared here (in a process of its own: Beam and TensorFlow stay out of the training process) if the
    corpora are at most `DataConfig.prepare_limit_mb` compressed and the run has one process (`alone`). How large Tasks of
    one's own are (`DataConfig.task_module`) is not known before they are read.

    Args:
      config: the run's configuration.
      alone: the run has one process.
      run: runs a command line and returns its exit code.

    Raises:
      PreparedDataError: there is no data and nothing to make it from, it is too large to make in passing (the message
        holds the command), or it was prepared for another mixture, vocabulary, number of
        sentinels or chunk length.
      SavedModelError, WeightsError, CheckpointError: data must be made, and there is no such model to start from.
      SystemExit: preparation failed, and has said why.
    """
    folder = prepared_folder(config)
    if not (folder / MANIFEST).exists():
        _prepare(config, folder, alone, run)
    prepared = PreparedData.open(folder)
    check(config, prepared)
    return prepared


def _prepare(config: Config, folder: pathlib.Path, alone: bool, run: Callable[[Sequence[str]], int]) -> None:
    data = config.data
    if data.data_dir is None and data.task_module is None:
        raise PreparedDataError(
            f"no prepared data in {folder}, and DataConfig.data_dir is not set. Point it to a folder with "
            "cc100/CODE.txt.xz and ccaligned/xx_YY-en_XX.tsv.xz (--gin.DataConfig.data_dir=…), or to prepared data "
            "(--gin.DataConfig.prepared_dir=…), or name a module with Tasks of your own (DataConfig.task_module)"
        )
    if data.vocabulary is None:
        raise PreparedDataError(
            "DataConfig.vocabulary is not set: name XLM-R's SentencePiece model (--gin.DataConfig.vocabulary="
            "sentencepiece.bpe.model), or your own"
        )
    if config.train.init_from != RANDOM:  # it may be misspelt, and preparing takes long
        open_starting_point(config, None)
    command = prepare_command(config, folder)
    shown = shlex.join(["python", *command[1:]])
    if data.data_dir not in (None, SAMPLE):
        corpora = pathlib.Path(data.data_dir)
        if not corpora.is_dir():
            raise PreparedDataError(f"DataConfig.data_dir: there is no folder {corpora}")
        size = sum(path.stat().st_size for path in corpora.rglob("*") if path.is_file())
        if size > data.prepare_limit_mb * 1e6:
            raise PreparedDataError(
                f"{corpora} holds {size / 1e6:,.0f} MB of files, more than is prepared in passing "
                f"(DataConfig.prepare_limit_mb = {data.prepare_limit_mb:g}). Prepare it first:\n  {shown}"
            )
    if not alone:
        raise PreparedDataError(
            f"no prepared data in {folder}: prepare it before starting several processes:\n  {shown}"
        )
    reached("prepare")
    print(f"preparing {data.mixture} into {folder}:\n  {shown}", flush=True)
    if (code := run(command)) != 0:
        raise SystemExit(code)  # it has said why


def check(config: Config, prepared: PreparedData) -> None:
    """Raises PreparedDataError unless the data was prepared for this configuration."""
    data, manifest, raw_lengths = config.data, prepared.manifest, config.data.chunk_lengths().items()

    def name_length(objective: str) -> str:
        if data.sizing == "raw":
            return "DataConfig.chunk_length"
        return (
            f"the raw length of {objective} (of DataConfig.chunk_length {data.chunk_length} by sizing {data.sizing!r})"
        )

    examples = (
        manifest.get("settings", {}).get("examples", {}) if SEQUENCE_TO_SEQUENCE in prepared.chunk_lengths else {}
    )
    pairs = [
        ("DataConfig.mixture", data.mixture, manifest["mixture"]),
        *((f"DataConfig.{name}", getattr(data, name), found) for name, found in examples.items()),
        *((name_length(n), w, prepared.chunk_lengths[n]) for n, w in raw_lengths if n in prepared.chunk_lengths),
        ("DataConfig.num_sentinels", data.num_sentinels, manifest["vocabulary"]["num_sentinels"]),
        ("ModelConfig.vocab_size", config.model.vocab_size, prepared.vocabulary_size),
    ]
    for name, wanted, found in pairs:
        if wanted != found:
            raise PreparedDataError(
                f"{name} is {wanted!r}, but {prepared.folder} was prepared with {found!r}: change one, or prepare again "
                f"into another folder (DataConfig.prepared_dir)"
            )
    model = SAMPLE_VOCABULARY if data.vocabulary == SAMPLE else pathlib.Path(data.vocabulary or "")
    if model.is_file() and hashlib.sha256(model.read_bytes()).hexdigest() != manifest["vocabulary"]["sha256"]:
        raise PreparedDataError(
            f"DataConfig.vocabulary is {model}, but {prepared.folder} was prepared with another model "
            f"({manifest['vocabulary']['file']}, sha256 {manifest['vocabulary']['sha256'][:12]}…): prepare again into "
            "another folder (DataConfig.prepared_dir), or name that model"
        )
    _check_filters(config.filters, prepared)
    if data.languages is not None and sorted(data.languages) != manifest.get("languages"):
        held = {task.language for task in prepared.tasks}
        if missing := set(data.languages) ^ held:
            raise PreparedDataError(
                f"DataConfig.languages and the languages of {prepared.folder} differ by {', '.join(sorted(missing))}"
            )


def _check_filters(filters: FilterConfig, prepared: PreparedData) -> None:
    """Raises PreparedDataError if filters are named that the data was not prepared with. Where none is, any data will do."""
    wanted, found = filters.changed(), prepared.manifest.get("settings", {}).get("filters", {})
    if not wanted:
        return
    if filters.test_sets:
        # By their digests, where the files are still at hand, else by their names.
        digests = dict(map(tuple, found.get("test_sets", [])))
        paths = [pathlib.Path(path) for path in filters.test_sets]
        wanted["test_sets"] = [[p.name, digest_file(p) if p.is_file() else digests.get(p.name)] for p in paths]
    for name in dict.fromkeys([*wanted, *found]):
        now, was = wanted.get(name, "at its default"), found.get(name, "at its default")
        if was != now:
            raise PreparedDataError(
                f"FilterConfig.{name} is {now}, but {prepared.folder} was prepared with {was}: change one, or prepare again "
                "into another folder (DataConfig.prepared_dir)"
            )
