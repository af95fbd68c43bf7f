"""The planning command: `python -m deltalm_jax.plan --gin_file=pretrain_base.gin --topology=v5e:16x16`."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from deltalm_jax import redaction

_DESCRIPTION = """
Compile a configuration's training step for TPU pods, on any machine: does it fit, what travels between the chips, how fast
could it be at most. A compilation takes a minute or two; what was compiled before is not compiled again.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.plan --gin_file=pretrain_base.gin --topology=v5e:16x16 --topology=v5p:4x4x4
  python -m deltalm_jax.plan --gin_file=pretrain_base.gin --topology='2*v5e:8x8' --gin.MeshConfig.slices=2
  python -m deltalm_jax.plan --gin_file=pretrain_large.gin --topology=v5e:8x8 --search

It needs libtpu: pip install 'deltalm_jax[tpu]'. What is printed: docs/pods.md.
"""
_CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "deltalm_jax" / "plan"


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line flags, and the `--gin.Class.field=value` bindings without their prefix."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.plan",
        usage="%(prog)s --gin_file=FILE --topology=NAME [--gin.Class.field=VALUE …] [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="configuration, as for train")
    parser.add_argument("--gin.Class.field", metavar="VALUE", help="one value; wins over files")
    parser.add_argument("--allow_import", action="append", default=[], metavar="MODULE", help="as for train")
    parser.add_argument(
        "--topology", action="append", required=True, metavar="NAME",
        help="a slice such as v5e:16x16, or several such as 2*v5e:8x8; repeat for more",
    )  # fmt: skip
    parser.add_argument(
        "--search", action="store_true",
        help="try other mesh shapes, microbatches and remat, and print the best that fits as gin lines",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a list of objects and nothing else")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="compilations at a time, 4 GB each")
    parser.add_argument("--cache", type=pathlib.Path, default=_CACHE, metavar="DIR", help=f"(default: {_CACHE})")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return parser.parse_args([a for a in arguments if not a.startswith("--gin.")]), bindings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 0 if all fits, 1 if something does not, 2 for a mistake of the user's."""
    redaction.install()
    arguments = sys.argv[1:] if arguments is None else arguments
    flags, bindings = parse_arguments(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # this machine's own devices have no part in it
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from deltalm_jax.errors import UserError
    from deltalm_jax.parallel.topology import parse_topology
    from deltalm_jax.training.gin_files import load

    try:
        config = load(flags.gin_file, bindings, flags.allow_import)
        if flags.one:
            from deltalm_jax.training.plan import plan

            print(json.dumps(plan(config, flags.topology[0], flags.cache)))
            return 0
        for name in flags.topology:
            parse_topology(name)
        results = []
        with concurrent.futures.ThreadPoolExecutor(flags.workers) as pool:
            job = _search if flags.search else _plan
            for result in pool.map(lambda name: job(flags, bindings, name), flags.topology):
                results.append(result)
                if not flags.json:
                    print(_described(result), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # it has said why
        return error.returncode
    if flags.json:
        print(json.dumps(results, indent=1))
    return 0 if all(result["fits"] for result in results) else 1


def _plan(flags: argparse.Namespace, bindings: list[str], topology: str) -> dict[str, Any]:
    """In a process of its own: libtpu is told once in a process which machine it is on, and holds what it compiled."""
    command = [sys.executable, "-m", "deltalm_jax.plan", "--one", f"--topology={topology}", f"--cache={flags.cache}"]
    command += [f"--gin_file={file}" for file in flags.gin_file] + [f"--gin.{binding}" for binding in bindings]
    command += [f"--allow_import={module}" for module in flags.allow_import]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _search(flags: argparse.Namespace, bindings: list[str], topology: str) -> dict[str, Any]:
    """The first that fits of the candidates, which are in the order of what they cost; the last if none does."""
    for candidate in _CANDIDATES:
        result = _plan(flags, [*bindings, *candidate], topology) | {"bindings": list(candidate)}
        print(f"{topology} {' '.join(candidate)}: {_verdict(result)}", file=sys.stderr, flush=True)
        if result["fits"]:
            break
    return result


# Recomputing a layer's inside costs a third of its forward pass's time or less; all of it, a third of the step's outside
# the head; splitting parameters costs gathers, layer by layer; microbatches cost those gathers anew.
_CANDIDATES = tuple(
    (
        f'ModelConfig.remat="{remat}"',
        f"MeshConfig.fsdp={fsdp}",
        f"TrainConfig.accumulation_steps={microbatches}",
    )
    for microbatches, fsdp, remat in (
        (1, 1, "none"),
        (1, 1, "dots_with_no_batch_dims_saveable"),
        (1, 1, "sublayer_outputs"),
        (2, 1, "none"),
        (1, 1, "full"),
        (4, 1, "none"),
        (1, 4, "none"),
        (1, 4, "full"),
        (4, 4, "full"),
        (8, 8, "full"),
    )
)


def _verdict(result: dict[str, Any]) -> str:
    if not result["fits"]:
        return f"does not fit: {result['refusal']}"
    return f"{result['hbm_bytes'] / 1e9:.2f} GB, {result['hbm_share']:.0%} of a device"


def _described(result: dict[str, Any]) -> str:
    mesh = " × ".join(f"{name} {size}" for name, size in result["mesh"].items() if size > 1) or "one device"
    lines = [
        f"{result['topology']}: {result['chips']} chips, {result['devices']} devices ({mesh}); remat {result['remat']}, "
        f"{result['accumulation_steps']} microbatch(es), attention {result['attention']}",
        f"  memory      {_verdict(result)}",
    ]
    if result["fits"]:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in result["hbm"].items())
        seconds = result["roofline_seconds"]
        over = result["collective_bytes"] / result["collective_bytes_least"]
        lines += [
            f"              {parts} GB",
            f"  arithmetic  {result['model_flops'] / 1e12:,.0f} TFLOP a step",
            f"  traffic     {result['collective_bytes'] / 1e9:.2f} GB sent by a device in a step, {over:.2f} × the least "
            "that this mesh needs",
        ]
        lines += [
            f"              {c['kind']} over {c['axis']} ({c['network']}): {c['bytes'] / 1e9:.3f} GB, {c['count']} times"
            for c in result["collectives"]
            if c["bytes"] >= 0.01 * result["collective_bytes"]
        ]
        lines.append(
            f"  roofline    {1e3 * seconds['step']:.1f} ms a step: arithmetic {1e3 * seconds['compute']:.1f}, memory "
            f"{1e3 * seconds['hbm']:.1f}, network {1e3 * seconds['network']:.1f}; MFU at most {result['mfu_bound']:.0%}"
        )
    lines += [f"  {binding}" for binding in result.get("bindings", ())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
