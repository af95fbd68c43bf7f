"""A run that starts from a saved model (`TrainConfig.init_from`), or from an encoder, which it makes a DeltaLM of."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.golden import drift
from deltalm_jax.model.deltalm import Params
from deltalm_jax.model.warm_start import warm_start
from deltalm_jax.parallel.agreement import is_as_on_first_process, of_first_process
from deltalm_jax.parallel.sharding import parameter_specs
from deltalm_jax.saved_model import SavedModel, SavedModelError, check_fits, is_interleaved_from, open_model
from deltalm_jax.training.config import Config
from deltalm_jax.training.step import State, abstract_state, state_from
from deltalm_jax.weights.state_dict import abstract_params


def open_starting_point(config: Config, prepared: PreparedData | None) -> SavedModel:
    """Opens the model that `init_from` names, and checks that the run, and its data if there are, can go on from it.

    Raises:
      SavedModelError: there is none, it has another shape, its vocabulary is not the data's, or encodes otherwise today.
      WeightsError, CheckpointError: it is damaged.
    """
    saved = open_model(str(config.train.init_from))
    check_fits(saved, config.model, "this run")
    if prepared is None:
        return saved
    described = prepared.manifest["vocabulary"]
    if saved.fingerprint is None:
        if jax.process_index() == 0:
            print(
                f"WARNING: the vocabulary of {saved.path} is not known, so nobody has checked that its ids mean the pieces "
                f"of {prepared.folder}",
                flush=True,
            )
    elif saved.fingerprint != described["fingerprint"]:
        ours = saved.vocabulary.describe() if saved.vocabulary else {}
        differences = [
            f"{name} {ours[name]} and {described[name]}"
            for name in ("sha256", "sentinel_start", "num_sentinels", "size")
            if name in ours and ours[name] != described[name]
        ]
        raise SavedModelError(
            f"the vocabulary of {saved.path} is not the one that {prepared.folder} was prepared with "
            f"({', '.join(differences) or 'another fingerprint'}): ids would mean other pieces. Prepare the data with the "
            "model's vocabulary.model, or convert it with the data's"
        )
    elif saved.vocabulary and (difference := drift(described, saved.vocabulary)):
        raise SavedModelError(
            f"{prepared.folder} and the vocabulary of {saved.path} do not agree any more: {difference}"
        )
    return saved


def start_from_model(config: Config, prepared: PreparedData, mesh: Mesh) -> tuple[State, dict[str, Any]]:
    """A state at step 0 with the parameters of that model, straight into its shards; and what is to be on record of it.

    Raises:
      SavedModelError: as `open_starting_point`; or this process does not see the model that process 0 sees.
    """
    saved = _agreed(open_starting_point(config, prepared))
    abstract = abstract_state(config.model, config.optimizer, mesh, config.contrast_or_none)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    origin = saved.origin
    with jax.set_mesh(mesh):
        if is_interleaved_from(saved, config.model):
            params = _interleaved(saved, config, mesh, shardings["params"])
            origin = origin | {"architecture": "encoder", "initialize": "interleaved"}
        else:
            params = saved.read(abstract["params"])
        state = state_from(params, config.model, config.optimizer, shardings, config.contrast_or_none)
    return state, {"path": str(saved.path), "digest": saved.digest, "origin": origin}


def _interleaved(saved: SavedModel, config: Config, mesh: Mesh, shardings: Params) -> Params:
    """The DeltaLM that starts from an encoder; nothing in it is drawn, as the encoder has every token row."""
    shapes = abstract_params(saved.config)
    encoder = saved.read(
        jax.tree.map(
            lambda s, spec: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec)),
            shapes,
            parameter_specs(shapes, mesh),
        )
    )

    parts = {name: encoder[name] for name in ("token_embedding", "encoder")}
    return jax.jit(lambda encoder: warm_start(config.model, encoder, jax.random.key(0)), out_shardings=shardings)(parts)


def _agreed(saved: SavedModel) -> SavedModel:
    """The model as process 0 sees it: of a run, the same step, though a newer one may have appeared meanwhile."""
    if jax.process_count() == 1:
        return saved
    step = of_first_process(saved.origin.get("step", -1))
    if step >= 0 and step != saved.origin.get("step"):
        saved = open_model(saved.path.parent / str(step))
    if not is_as_on_first_process(saved.digest):
        raise SavedModelError(
            f"process {jax.process_index()} finds another model at {saved.path} than process 0: put it where all processes "
            "see the same files"
        )
    return saved
