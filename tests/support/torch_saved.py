"""Makes `tests/golden/torch_saved.pt`: a checkpoint as fairseq saves it, small, by torch itself.

    pip install torch omegaconf && python -m tests.support.torch_saved tests/golden/torch_saved.pt

(made with torch 2.14.1, omegaconf 2.4.0, NumPy 2.4.6). fairseq's own classes are imitated under their names.
"""

from __future__ import annotations

import argparse
import collections
import enum
import sys
import types

import numpy as np


def numbers(*shape: int) -> np.ndarray:
    """float32 numbers that bfloat16 holds too: 0, 1/8, 2/8, …"""
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) / 8


def make() -> dict:
    """The checkpoint."""
    import omegaconf
    import torch

    choice = enum.Enum("DDP_BACKEND_CHOICES", {"pytorch_ddp": "pytorch_ddp"}, module="fairseq.dataclass.constants")
    meter = type("AverageMeter", (), {"__module__": "fairseq.logging.meters"})
    for name in (
        "fairseq",
        "fairseq.dataclass",
        "fairseq.dataclass.constants",
        "fairseq.logging",
        "fairseq.logging.meters",
    ):
        sys.modules.setdefault(name, types.ModuleType(name))
    for made in (choice, meter):
        setattr(sys.modules[made.__module__], made.__qualname__, made)
    loss = meter()
    loss.__dict__.update(sum=np.float64(2.5), count=torch.tensor(3), round=3)

    table = torch.from_numpy(numbers(6, 4))
    model = collections.OrderedDict(
        {
            "decoder.embed_tokens.weight": table,
            "decoder.output_projection.weight": table,
            "encoder.half": torch.from_numpy(numbers(3, 2)).half(),
            "encoder.bfloat16": torch.from_numpy(numbers(2, 3)).bfloat16(),
            "encoder.transposed": torch.from_numpy(numbers(5, 2)).T,
            "encoder.slice": torch.from_numpy(numbers(4, 6))[1:, ::2],
            "encoder.parameter": torch.nn.Parameter(torch.from_numpy(numbers(7))),
            "encoder.version": torch.tensor(3.0),
            "encoder.empty": torch.zeros(0, 4),
            "encoder.positions": torch.arange(5).expand((1, -1)),
            "encoder.mask": torch.tensor([True, False, True]),
        }
    )
    model._metadata = collections.OrderedDict({"": {"version": 1}})
    return {
        "args": argparse.Namespace(arch="deltalm_base", lr=[0.0005], ddp_backend=choice.pytorch_ddp, update_freq=None),
        "cfg": omegaconf.OmegaConf.create({"model": {"dropout": 0.1, "layers": [12, 6]}, "seed": 1}),
        "model": model,
        "optimizer_history": [{"num_updates": 10_000_000_000, "lr": (1e-4, -0.0), "best": True}],
        "extra_state": {"metrics": [(0, "train", {"loss": loss})], "dtype": torch.float16, "size": table.shape},
    }


if __name__ == "__main__":
    import torch

    torch.save(make(), sys.argv[1])
