"""A file of lines to a file of lines: what `python -m deltalm_jax.generate` does.

The input is taken in windows of so many lines; each is decoded in batches of similar lengths, written in order, and safe from
then on. What a window becomes hangs on its own lines alone, so that a run that goes on writes what one would have that was
never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.decoding.arguments import GenerationError, LengthLimit
from deltalm_jax.decoding.batching import Batching
from deltalm_jax.decoding.generation import Generator, Hypothesis
from deltalm_jax.decoding.options import Sampling, SearchOptions
from deltalm_jax.decoding.resumable_output import ResumableOutput
from deltalm_jax.decoding.texts import Counts, SourceTexts, TargetTexts
from deltalm_jax.decoding.vocabulary_masks import meaningful_mask, script_mask, text_mask
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import resolve_compute_dtype
from deltalm_jax.parallel.agreement import of_first_process
from deltalm_jax.saved_model import SavedModel, check_has_decoder, open_model
from deltalm_jax.weights.state_dict import abstract_params

_REPORT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Job:
    """What to decode, with what, how, and where to; the fields are the command's flags, see its help."""

    checkpoint: str | pathlib.Path
    input: pathlib.Path | None = None
    output: pathlib.Path | None = None
    output_format: str = "text"
    num_return: int = 1
    beam_size: int = 5
    rule: str = "fairseq"
    early_stopping: bool = False
    length_penalty: float = 1.0
    max_length: int = 200
    max_length_per_token: float = 0.0
    min_length: int = 1
    no_repeat_ngram_size: int = 0
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    source_prefix: str = ""
    target_prefix: str = ""
    allowed_script: str = ""
    allowed_tokens_from: pathlib.Path | None = None
    too_long: str = "cut"
    batch_tokens: int = 2048
    window_lines: int = 4096

    def options(self) -> SearchOptions:
        """How to search; raises GenerationError where flags contradict each other."""
        drawing = self.temperature is not None
        if not drawing and (self.top_k or self.top_p != 1):
            raise GenerationError("--top_k and --top_p are for drawing at random: say --temperature=1 as well")
        beam_size = self.num_return if drawing else self.beam_size
        if beam_size < 1 and not drawing:
            raise GenerationError(f"--beam_size must be at least 1, found {beam_size}")
        if not 1 <= self.num_return <= beam_size:
            raise GenerationError(
                f"--num_return must be between 1 and --beam_size={beam_size}, found {self.num_return}"
            )
        if self.output_format == "text" and self.num_return > 1:
            raise GenerationError(
                "--num_return above 1 needs --output_format=jsonl: a text has one line for each source"
            )
        for name in ("window_lines", "batch_tokens"):
            if getattr(self, name) < 1:
                raise GenerationError(f"--{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.min_length <= self.max_length:
            raise GenerationError(
                f"--min_length must be between 0 and --max_length={self.max_length}, found {self.min_length}"
            )
        if not 0 <= self.max_length_per_token < 1000:
            raise GenerationError(f"--max_length_per_token must be at least 0, found {self.max_length_per_token}")
        try:
            return SearchOptions(
                beam_size=beam_size,
                max_length=self.max_length,
                min_length=self.min_length,
                length_penalty=self.length_penalty,
                no_repeat_ngram_size=self.no_repeat_ngram_size,
                rule=self.rule,
                early_stopping=self.early_stopping,
                sampling=None if self.temperature is None else Sampling(self.temperature, self.top_k, self.top_p),
            )
        except ValueError as error:
            raise GenerationError(str(error)) from error


def run(job: Job, saved: SavedModel | None = None) -> Counts:
    """Does the job; with several processes (joined before), each decodes its part and the first one writes.

    Args:
      job: what to do.
      saved: the job's checkpoint, if it has been opened, which reads all of it.

    Raises:
      UserError: something is not as it must be; what was written before is kept.
    """
    options = job.options()
    if jax.process_count() > 1 and (job.input is None or job.output is None):
        raise GenerationError("several processes read the same file and the first writes one: say --input and --output")
    if saved is None:
        with contextlib.redirect_stdout(sys.stderr):  # of damaged checkpoints it says there that they are passed over
            saved = open_model(job.checkpoint)
    check_has_decoder(saved.config, str(job.checkpoint))
    vocabulary = saved.vocabulary
    if vocabulary is None:
        raise GenerationError(f"{job.checkpoint}: its vocabulary is not known; convert it with --vocabulary=FILE")
    positions = saved.config.max_length - options.ends_with_eos
    if job.min_length > positions:
        raise GenerationError(f"--min_length={job.min_length}: the model has positions for {positions} tokens")
    allowed_V = _allowed(job, vocabulary, saved.config.vocab_size)
    prefix = vocabulary.encode(job.target_prefix) if job.target_prefix else []
    if len(prefix) > min(job.max_length, positions):
        raise GenerationError(
            f"--target_prefix has {len(prefix)} tokens, and hypotheses at most {min(job.max_length, positions)}"
        )
    with contextlib.ExitStack() as stack:
        lines = _lines(stack, job.input)
        output = failure = None
        try:
            output = _open_output(stack, job, saved, lines)
        except UserError as error:
            failure = error
        done = _agreed(output.lines if isinstance(output, ResumableOutput) else 0, failure)
        if jax.process_index():
            next(itertools.islice(lines, done, done), None)
        params = _read(saved)
        work = _Work(job, saved, vocabulary, options, allowed_V, prefix, params)
        work.all(lines, output, done)
        if isinstance(output, ResumableOutput):
            output.complete()
    return work.counts


class _Work:
    """The windows of a job, one after the other."""

    def __init__(
        self,
        job: Job,
        saved: SavedModel,
        vocabulary: Vocabulary,
        options: SearchOptions,
        allowed_V: np.ndarray,
        prefix: list[int],
        params: Any,
    ) -> None:
        self.job, self.prefix, self.counts = job, prefix, Counts()
        self.sources = SourceTexts(vocabulary, saved.config.max_length, job.source_prefix, job.too_long)
        self.targets = TargetTexts(vocabulary, job.output_format, job.rule)
        self.started = self.reported = time.monotonic()

        def generator(shrink: bool) -> Generator:
            return Generator(
                (saved.config, params),
                options,
                allowed_tokens=allowed_V,
                batching=Batching(tokens=job.batch_tokens, shrink=shrink),
                devices=jax.local_devices(),
            )

        self._generator_of = generator

    def all(self, lines: Iterator[bytes], output: ResumableOutput | BinaryIO | None, done: int) -> None:
        """Decodes the lines that are left after `done`. Nothing is written where `output` is None."""
        generator = None
        while window := list(itertools.islice(lines, self.job.window_lines)):
            if generator is None:
                # One short file is not worth batches of full size; of a longer one, all windows have the same.
                generator = self._generator_of(shrink=done == 0 and len(window) < self.job.window_lines)
            written = self._window(generator, window, done)
            done += len(window)
            if isinstance(output, ResumableOutput):
                output.write(written, window)
            elif output is not None:
                output.write(b"".join(written))
                output.flush()
            self._report(done, generator)
        self._report(done, generator, last=True)

    def _window(self, generator: Generator, window: Sequence[bytes], done: int) -> list[bytes]:
        """The output lines of these input lines, of which the first has the number `done` + 1."""
        sources = {}
        for number, line in enumerate(window, done + 1):
            source = self.sources.source(line, number, self.counts)
            if source is not None:
                sources[number] = source
        found = generator(
            list(sources.values()),
            max_length=LengthLimit(self.job.max_length_per_token, self.job.max_length),
            min_length=self.job.min_length,
            prefixes=[self.prefix] * len(sources) if self.prefix else None,
            seed=self.job.seed,
            numbers=list(sources),
            only=(jax.process_index(), jax.process_count()),
        )
        if jax.process_count() > 1:
            found = _joined(found)
        hypotheses = dict(zip(sources, found, strict=True))
        for number, of_line in hypotheses.items():
            if any(np.isnan(hypothesis.score) for hypothesis in of_line):
                raise GenerationError(
                    f"line {number} of the input: the model gives NaN for it. Its weights hold NaN, or {generator.dtype} "
                    "overflows; try another checkpoint, or ModelConfig.compute_dtype='float32'"
                )
            self.counts.tokens += len(of_line[0].tokens) if of_line else 0
        return [
            self.targets.line(hypotheses.get(number, [])[: self.job.num_return], number)
            for number in range(done + 1, done + 1 + len(window))
        ]

    def _report(self, done: int, generator: Generator | None, last: bool = False) -> None:
        now = time.monotonic()
        if jax.process_index() or not (last or now - self.reported > _REPORT_SECONDS):
            return
        self.reported, seconds = now, now - self.started
        shapes = len(generator.shapes) if generator else 0
        print(
            f"{'done: ' if last else ''}{self.counts.text()} to line {done:,}, {self.counts.tokens:,} tokens, "
            f"{self.counts.tokens / max(seconds, 1e-9):,.0f} tokens/s, {shapes} program{'s' * (shapes != 1)} compiled",
            file=sys.stderr,
            flush=True,
        )


def _lines(stack: contextlib.ExitStack, path: pathlib.Path | None) -> Iterator[bytes]:
    if path is None:
        return iter(sys.stdin.buffer)
    try:
        return iter(stack.enter_context(open(path, "rb")))
    except OSError as error:
        raise GenerationError(f"--input={path} cannot be read: {error.strerror}") from error


def _open_output(
    stack: contextlib.ExitStack, job: Job, saved: SavedModel, lines: Iterator[bytes]
) -> ResumableOutput | BinaryIO | None:
    """Where the first process writes; None for the others."""
    if jax.process_index():
        return None
    if job.output is None:
        return sys.stdout.buffer
    if job.input is not None and job.output.resolve() == job.input.resolve():
        raise GenerationError(f"--output={job.output} is the input")
    try:
        output = stack.enter_context(ResumableOutput(job.output, _settings(job, saved)))
    except OSError as error:
        raise GenerationError(f"--output={job.output} cannot be written: {error.strerror}") from error
    if output.lines:
        print(f"{job.output}: going on after {output.lines:,} lines", file=sys.stderr, flush=True)
    output.skip_input(lines)
    return output


def _read(saved: SavedModel) -> Any:
    """The parameters, whole in every process."""
    abstract = abstract_params(saved.config)
    if jax.process_count() == 1:
        return saved.read(abstract)
    whole = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), abstract)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), saved.read(abstract))


def _agreed(done: int, failure: UserError | None) -> int:
    """The lines that the first process has, told to all; an error in all if it has failed."""
    done = of_first_process(done if failure is None else -1)
    if failure is not None:
        raise failure
    if done < 0:
        raise GenerationError("process 0 has ended with an error: it says which")
    return done


def _settings(job: Job, saved: SavedModel) -> dict[str, Any]:
    """All that the output hangs on, beside the input."""
    places = ("checkpoint", "input", "output", "allowed_tokens_from")
    settings = {field.name: getattr(job, field.name) for field in dataclasses.fields(job) if field.name not in places}
    text = job.allowed_tokens_from
    return settings | {
        "model": saved.digest,
        "compute_dtype": resolve_compute_dtype(saved.config, jax.default_backend()),
        "allowed_tokens": hashlib.sha256(text.read_bytes()).hexdigest() if text else None,
    }


def _allowed(job: Job, vocabulary: Vocabulary, vocab_size: int) -> np.ndarray:
    """bool [V]: what may be generated."""
    allowed_V = meaningful_mask(vocabulary, vocab_size)
    if job.allowed_script:
        allowed_V &= script_mask(vocabulary, vocab_size, job.allowed_script.split(","))
    if job.allowed_tokens_from:
        try:
            text = job.allowed_tokens_from.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"--allowed_tokens_from={job.allowed_tokens_from} cannot be read: {error}") from error
        allowed_V &= text_mask(vocabulary, vocab_size, text.splitlines())
    return allowed_V


def _joined(found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """The hypotheses of all processes, each of which has found those of other sources."""
    own = {source: hypotheses for source, hypotheses in enumerate(found) if hypotheses}
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text)))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    joined: list[list[Hypothesis]] = [[] for _ in found]
    for row, size in zip(rows, sizes, strict=True):
        for source, hypotheses in json.loads(row[:size].tobytes()).items():
            joined[int(source)] = [Hypothesis(tuple(tokens), score) for tokens, score in hypotheses]
    return joined
