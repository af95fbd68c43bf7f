"""Prints the manifest of a JobSet that trains on TPU slices of a GKE cluster; `launch/gke.sh` hands it to kubectl.

One Job a slice, one pod a host. GKE tells each pod its place (TPU_WORKER_ID, MEGASCALE_SLICE_ID, …), which
`--coordinator=auto` reads. Form: https://jobset.sigs.k8s.io and the page on Multislice in GKE's documentation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

EXIT_MISTAKE = 2  # the training command's: starting again would not help


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the manifest as JSON; a mistake in the flags gives a message and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--name", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--accelerator", required=True)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--chips_per_host", type=int, default=4)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--max_restarts", type=int, default=100)
    parser.add_argument("--stop_seconds", type=int, default=600)
    parser.add_argument("--service_account", default="")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--claim", action="append", default=[], metavar="CLAIM:/PATH")
    parser.add_argument("--bucket", action="append", default=[], metavar="BUCKET:/PATH")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("training", nargs="*", metavar="-- ARG")
    flags = parser.parse_args(arguments)
    try:
        json.dump(manifest(flags), sys.stdout, indent=2)
    except ValueError as error:
        parser.error(str(error))
    print()
    return 0


def manifest(flags: argparse.Namespace) -> dict[str, Any]:
    """The JobSet as nested dictionaries. Raises ValueError for what cannot be."""
    hosts = hosts_of_slice(flags.topology, flags.chips_per_host)
    volumes, mounts = [], []
    for number, (kind, text) in enumerate([("claim", c) for c in flags.claim] + [("bucket", b) for b in flags.bucket]):
        source, colon, path = text.partition(":")
        if not (source and colon and path.startswith("/")):
            raise ValueError(f"--{kind}={text}: expected {kind.upper()}:/PATH, the path where the training finds it")
        mounts.append({"name": f"volume-{number}", "mountPath": path, "readOnly": kind == "bucket"})
        volumes.append({"name": f"volume-{number}"} | (_claim(source) if kind == "claim" else _bucket(source)))
    container = {
        "name": "train",
        "image": flags.image,
        "command": ["launch/train.sh", "tpu", "--coordinator=auto", *map(literal, flags.training)],
        "env": [_variable(text) for text in flags.env],
        "resources": {"limits": {"google.com/tpu": flags.chips_per_host}},
        "securityContext": {"privileged": True},  # the TPU's devices
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": flags.stop_seconds,  # SIGTERM, the step's end, a checkpoint
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
            "cloud.google.com/gke-tpu-topology": flags.topology,
        }
        | ({"cloud.google.com/gke-spot": "true"} if flags.spot else {}),
        "containers": [container],
        "volumes": volumes,
    }
    if flags.service_account:
        pod["serviceAccountName"] = flags.service_account
    if flags.slices > 1:  # between slices, traffic takes the hosts' own network
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [EXIT_MISTAKE]},
                }
            ]
        },
        "template": {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"} if flags.bucket else {}},
            "spec": pod,
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": flags.name,
            # A slice is one node pool, and takes one Job.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            # A preempted host ends its slice's Job, and all start again from the newest checkpoint. Mistakes do not.
            "failurePolicy": {
                "maxRestarts": flags.max_restarts,
                "rules": [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": flags.slices, "template": {"spec": job}}],
        },
    }


def hosts_of_slice(topology: str, chips_per_host: int) -> int:
    """Hosts of a slice: "4x4" with 4 chips a host has four. Raises ValueError if they do not go into it."""
    try:
        chips = math.prod(int(side) for side in topology.split("x"))
    except ValueError:
        raise ValueError(f"--topology={topology}: expected chips along each side, such as 4x4 or 2x2x4") from None
    if chips < 1 or chips_per_host < 1 or chips % chips_per_host:
        raise ValueError(f"--topology={topology} has {chips} chips, which hosts of {chips_per_host} do not make up")
    return chips // chips_per_host


def literal(text: str) -> str:
    """The argument as it must stand in a manifest: Kubernetes takes $(NAME) for a variable, and $$ for a dollar."""
    return text.replace("$", "$$")


def _variable(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--env={text}: expected NAME=VALUE")
    return {"name": name, "value": literal(value)}


def _claim(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}


def _bucket(name: str) -> dict[str, Any]:
    """A bucket as a folder, read only, by GKE's Cloud Storage FUSE driver."""
    return {
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": True,
            "volumeAttributes": {"bucketName": name, "mountOptions": "implicit-dirs"},
        }
    }


if __name__ == "__main__":
    sys.exit(main())
