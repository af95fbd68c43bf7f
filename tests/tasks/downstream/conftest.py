"""What the tests of the downstream tasks share: the hand-written data, and seqio's registries as they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import seqio

from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import SAMPLE_DIR
from tasks.downstream import register_downstream

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_DIR / "vocabulary.model")


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    kept = {registry: set(registry.names()) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)}
    yield
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in set(registry.names()) - kept[registry]:
            registry.remove(name)


@pytest.fixture
def data_dir(tmp_path: Path, registries: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the hand-written data, on a machine that has nothing else."""
    monkeypatch.setenv("SACREBLEU", str(tmp_path / "sacrebleu"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return Path(shutil.copytree(DATA, tmp_path / "data"))


@pytest.fixture
def registered(data_dir: Path, vocabulary: Vocabulary) -> list[str]:
    return register_downstream(data_dir, vocabulary)
