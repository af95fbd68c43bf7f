"""Checkpoints read: of a step whose record verifies, the arrays, or a part of them such as the parameters.

This is all that opening a run's model takes, so it knows nothing of a run that goes on; `checkpoint.py` writes.
"""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp

from deltalm_jax.training.checkpoint_record import STATE, StepRecords
from deltalm_jax.training.leaves import check_leaves, checked, leaves_of


class SavedSteps(StepRecords):
    """The checkpoints of a run directory, to be read, arrays too; nothing is written or removed.

    Args:
      directory: `RUN_DIR/checkpoints`.
      warn: takes one line of text when a damaged step is passed over.
    """

    def state_path(self, step: int) -> str:
        """Where orbax writes a step's arrays, and reads them: it knows folders and gs:// by their text."""
        return str(self.folder(step) / STATE)

    def restore_part(self, record: dict[str, Any], part: str, abstract: Any) -> Any:
        """Reads a part of a verified step's state, such as "params", into the shardings of `abstract`.

        Args:
          record: from `latest` or `verify`.
          part: key at the top of the state.
          abstract: tree of `jax.ShapeDtypeStruct`; leaves without a sharding are put on the default device.

        Raises:
          CheckpointError: the trees differ; names the leaves.
        """
        prefix = f"{part}/"
        saved = {k.removeprefix(prefix): leaf for k, leaf in record["leaves"].items() if k.startswith(prefix)}
        check_leaves(saved, leaves_of(abstract), f"{part} of checkpoint {record['step']}")
        default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        item = {
            part: jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or default), abstract
            )
        }
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            arguments = ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            )
            restored = orbax.restore(self.state_path(record["step"]), args=arguments)[part]
        return checked(restored, item[part], f"{part} of checkpoint {record['step']}")
