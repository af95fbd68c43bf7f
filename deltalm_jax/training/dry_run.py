"""`--dry_run`: what a run would be, before any of it is paid for."""

from __future__ import annotations

import itertools
import math
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from deltalm_jax.data.blocks import english_first
from deltalm_jax.data.chunks import MANIFEST, PreparedData
from deltalm_jax.data.packing import join_and_cut, pack_pairs
from deltalm_jax.data.stream import Stream
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import parameter_count, resolve_compute_dtype
from deltalm_jax.objectives import mask_argument
from deltalm_jax.objectives.hashing import hash_keys, string_key
from deltalm_jax.parallel.mesh import make_mesh, mesh_sizes
from deltalm_jax.parallel.sharding import check_batch, path_name
from deltalm_jax.quiet import quiet_imports
from deltalm_jax.saved_model import is_interleaved_from
from deltalm_jax.training.config import RANDOM, Config
from deltalm_jax.training.data_config import SAMPLE
from deltalm_jax.training.flops import flops_per_step
from deltalm_jax.training.optimizer import learning_rate_factors
from deltalm_jax.training.prepared import check, prepared_folder
from deltalm_jax.training.record import epochs_line
from deltalm_jax.training.starting_point import open_starting_point
from deltalm_jax.training.step import abstract_state

Example = tuple[str, str, str, str]  # objective, where it is from, inputs, targets


def dry_run(config: Config) -> None:
    """Prints configuration with origins, parameters, shardings, memory, FLOPs, data, and an example of each objective.

    Nothing is trained or written, and no array of the model is allocated.

    Raises:
      MeshError: the mesh or the batch does not fit the devices of this machine.
      PreparedDataError, CorpusError: prepared data is there but damaged or made for another configuration.
      SavedModelError, WeightsError, CheckpointError: there is no model to start from, or none that fits.
    """
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    mesh = make_mesh(config.mesh)
    check_batch(config.data.objective_batch_sizes, mesh, config.train.accumulation_steps)
    _print_configuration(console, config)
    _print_parameters(console, config, mesh)
    _print_step(console, config)
    stream = _stream(config)
    _print_start(console, config, stream)
    if stream is not None:
        _print_data(console, config, stream)
    for objective, source, inputs, targets in _sample_examples(config) if stream is None else _examples(stream):
        console.print(f"\n[bold]{objective}[/bold], {source}")
        console.print(f"  inputs:  {inputs}", markup=False)
        console.print(f"  targets: {targets}", markup=False)


def _print_configuration(console: Console, config: Config) -> None:
    console.print(f"[bold]configuration {config.name}[/bold]")
    for name, value in config.values().items():
        console.print(f"  {name} = {value!r}  # {config.origins[name]}", markup=False)


def _print_parameters(console: Console, config: Config, mesh: jax.sharding.Mesh) -> None:
    state = abstract_state(config.model, config.optimizer, mesh, config.contrast_or_none)
    factors = jax.tree.leaves(learning_rate_factors(config.optimizer, state["params"]))
    alike = all((factor == 1).all() for factor in factors)
    table = Table(title="parameters", title_justify="left", box=None)
    for column in ("name", "shape", "split over", *([] if alike else ["learning rate ×"])):
        table.add_column(column, no_wrap=True)
    counted = 0
    for (path, leaf), factor in zip(jax.tree_util.tree_leaves_with_path(state["params"]), factors, strict=True):
        counted += math.prod(leaf.shape)
        axes = ", ".join(f"{axis} ({n:,})" for axis, n in zip(leaf.sharding.spec, leaf.shape, strict=False) if axis)
        by_layer = " ".join(f"{value:.3g}" for value in dict.fromkeys(factor.ravel().tolist()))
        cells = path_name(path), " × ".join(f"{n:,}" for n in leaf.shape), axes or "whole"
        table.add_row(*cells, *([] if alike else [by_layer]))
    console.print(table)
    assert counted == parameter_count(config.model)
    console.print(
        f"{counted:,} parameters on {mesh.size} {jax.devices()[0].platform} device(s), mesh {mesh_sizes(mesh)}"
    )

    def gigabytes(tree: object) -> float:
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves) / 1e9

    parts = {"parameters": gigabytes(state["params"]), config.optimizer.name: gigabytes(state["optimizer"])}
    if "ema" in state:
        parts["moving average"] = gigabytes(state["ema"])
    parts["gradients"] = gigabytes(state["params"]) * min(config.train.accumulation_steps, 2)  # one more adds them up
    parts["logits of a loss block, at most"] = config.loss.block_megabytes / 1e3 / mesh.shape["tensor"]
    console.print(
        f"memory a device: {', '.join(f'{name} {size:.2f} GB' for name, size in parts.items())}; activations come on top"
    )


def _print_step(console: Console, config: Config) -> None:
    columns = ("objective", "batch", "raw tokens", "inputs", "targets", "share of the loss")
    table = Table(*columns, title="groups of a step", title_justify="left", box=None)
    shapes, raw_lengths = config.step_shapes(), config.data.raw_lengths()
    # Of contrast, nothing is predicted by the output layer: each pair of sentences counts once.
    weights = {n: config.loss.weight(n) * batch * (targets or 1) for n, (batch, _, targets) in shapes.items()}
    for name, (batch, inputs, targets) in shapes.items():
        share = f"{weights[name] / sum(weights.values()):.1%}"
        table.add_row(name, f"{batch:,}", str(raw_lengths[name]), str(inputs), str(targets), share)
    console.print(table)
    if (steps := config.train.accumulation_steps) > 1:
        console.print(
            f"in {steps} microbatches of {', '.join(f'{b // steps:,}' for b, _, _ in shapes.values())} examples"
        )
    flops = flops_per_step(config.model, shapes)
    dtype = resolve_compute_dtype(config.model, jax.default_backend())
    console.print(
        f"{flops.total / 1e12:,.2f} TFLOP a step (forward and backward, causal attention counted half; "
        f"{flops.head / flops.total:.1%} in the output projection), {flops.total * config.train.steps / 1e18:,.2f} EFLOP in "
        f"{config.train.steps:,} steps; {flops.total_full_attention / 1e12:,.2f} TFLOP with causal attention in full, "
        f"{flops.hardware / 1e12:,.2f} with what is computed twice (remat); compute dtype here: {dtype}"
    )


def _print_start(console: Console, config: Config, stream: Stream | None) -> None:
    if config.train.init_from == RANDOM:
        return
    saved = open_starting_point(config, None if stream is None else stream.prepared)
    origin = ", ".join(f"{name} {value}" for name, value in saved.origin.items())
    how = ", an encoder that its decoder is interleaved from" if is_interleaved_from(saved, config.model) else ""
    console.print(f"starts from {saved.path} ({origin}){how}", markup=False)


def _stream(config: Config) -> Stream | None:
    """The run's data, if it is prepared already."""
    folder = prepared_folder(config)
    if not (folder / MANIFEST).exists():
        return None
    prepared = PreparedData.open(folder)
    check(config, prepared)
    return Stream(prepared, config.objectives(), config.train.seed)


def _print_data(console: Console, config: Config, stream: Stream) -> None:
    epochs, steps = stream.epochs(config.train.steps), config.train.steps
    columns = ("objective", "tasks", "tokens", "largest shares", "smallest shares")
    table = Table(*columns, title=f"data in {stream.prepared.folder}", title_justify="left", box=None)
    tokens = {task.name: task.tokens("train") for task in stream.prepared.tasks}
    for objective, rates in stream.rates().items():
        ranked = [f"{task} {rate:.1%}" for task, rate in sorted(rates.items(), key=lambda item: -item[1])]
        cells = (
            f"{len(rates):,}",
            f"{sum(tokens[t] for t in rates):,}",
            ", ".join(ranked[:3]),
            ", ".join(ranked[3:][-3:]),
        )
        table.add_row(objective, *cells)
    console.print(table)
    console.print(epochs_line(epochs, steps), markup=False)


def _examples(stream: Stream) -> Iterator[Example]:
    """The first example of each objective in the first step."""
    folder, vocabulary = stream.prepared.folder, stream.prepared.vocabulary()
    tasks = stream.tasks_of(0)
    for name, arrays in stream.batch(0).items():
        texts = [vocabulary.decode(row[row > 0].tolist()) for row in (arrays["inputs"][0], arrays["targets"][0])]
        yield name, f"first example of step 1 (task {tasks[name][0]}, {folder})", texts[0], texts[1]


def _sample_examples(config: Config) -> Iterator[Example]:
    with quiet_imports():  # the only place in training that reads raw text
        from tasks.corpora import SAMPLE_CORPORA, SAMPLE_DIR, find_files, read_split

    given = config.data.vocabulary
    own = given not in (None, SAMPLE) and pathlib.Path(str(given)).is_file()
    model = str(given) if own else SAMPLE_DIR / "vocabulary.model"
    vocabulary = Vocabulary.load(model, num_sentinels=config.data.num_sentinels)
    label = "the shipped sample's text" + ("" if own or given == SAMPLE else " and vocabulary")
    for name, objective in config.objectives().items():
        (corpus,) = (c for c in SAMPLE_CORPORA if c.objective == objective.corruption.chunks_of)
        language, file = next(iter(find_files(None, corpus.name, ["fr"]).items()))
        length = config.data.raw_lengths()[name]
        items = list(itertools.islice(read_split(corpus, file, "train"), 200))
        if corpus.unit == "documents":
            chunks = join_and_cut([vocabulary.encode_batch(d) for d in items], length)
        else:
            sides = [pair if first else pair[::-1] for pair, first in zip(items, english_first(items), strict=True)]
            chunks = pack_pairs([tuple(vocabulary.encode_batch(p)) for p in sides], length)  # type: ignore[misc]
        tokens_BL = np.zeros((1, length), np.int32)
        tokens_BL[0, : len(chunks[0])] = chunks[0]
        corrupted = objective.corruption.corrupt(
            tokens_BL,
            np.array([len(chunks[0])]),
            hash_keys(config.train.seed, np.array([string_key(name)], np.uint64)),
            vocabulary.sentinel_start,
            vocabulary.num_sentinels,
            **mask_argument(objective.corruption, vocabulary.mask_id),
        )
        texts = [vocabulary.decode(row[row > 0].tolist()) for row in (corrupted.inputs_BS[0], corrupted.targets_BT[0])]
        yield name, f"an example from {label} ({language}), as there is no prepared data yet", texts[0], texts[1]
