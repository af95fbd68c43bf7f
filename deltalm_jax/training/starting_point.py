"""A run that starts from a saved model (`TrainConfig.init_from`)."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.saved_model import SavedModel, SavedModelError, check_fits, open_model
from deltalm_jax.training.config import Config
from deltalm_jax.training.step import State, abstract_state, state_from


def open_starting_point(config: Config, prepared: PreparedData | None) -> SavedModel:
    """Opens the model that `init_from` names, and checks that the run, and its data if there are, can go on from it.

    Raises:
      SavedModelError: there is none, it has another shape, or its vocabulary is not the data's.
      WeightsError, CheckpointError: it is damaged.
    """
    saved = open_model(str(config.train.init_from))
    check_fits(saved, config.model, "this run")
    if saved.vocabulary is None or prepared is None:
        return saved
    described = prepared.manifest["vocabulary"]
    if saved.vocabulary.fingerprint != described["fingerprint"]:
        ours = saved.vocabulary.describe()
        differences = ", ".join(
            f"{name} {ours[name]} and {described[name]}"
            for name in ("sha256", "sentinel_start", "num_sentinels", "size")
            if ours[name] != described[name]
        )
        raise SavedModelError(
            f"the vocabulary of {saved.path} is not the one that {prepared.folder} was prepared with ({differences}): ids "
            "would mean other pieces. Prepare the data with the model's vocabulary.model, or convert it with the data's"
        )
    return saved


def state_from_model(config: Config, prepared: PreparedData, mesh: Mesh) -> State:
    """A state at step 0 with the parameters of that model, straight into its shards. Errors as above."""
    saved = open_starting_point(config, prepared)
    abstract = abstract_state(config.model, config.optimizer, mesh)
    with jax.set_mesh(mesh):
        params = saved.read(abstract["params"])
        return state_from(params, config.optimizer, jax.tree.map(lambda leaf: leaf.sharding, abstract))
