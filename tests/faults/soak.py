"""Kills a run with `kill -9` again and again, half the time inside a save, and compares it with one that nobody disturbed.

    python -m tests.faults.soak --kills=100

The same seed draws the same kinds and places of kills; the moments within a step are the machine's. Ends with a table, and
with exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from deltalm_jax.training.saved_steps import SavedSteps
from tests.support import runs
from tests.support.toy_data import write_toy_data

INTERVAL = 5
SAVE_POINTS = ("save/begin", "save/written", "save/record", "save/retire", "save/delete")


def soak(place: pathlib.Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs it all in a folder that is there.

    Returns:
      Counts: kills, those inside a save, the most steps lost by one; whether the final states and all steps are equal.

    Raises:
      AssertionError: a run ends by itself in a way it should not, or more is lost than the last interval.
    """
    draw = random.Random(seed)
    steps = 15 * kills + 40
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    options = (f"TrainConfig.steps={steps}", f"TrainConfig.checkpoint_every={INTERVAL}", "TrainConfig.eval_every=0")
    options = (*options, "TrainConfig.check_every=7", "TrainConfig.log_every=1000", "OptimizerConfig.decay_steps=5000")
    whole = runs.run(place / "whole", place / "data", *options)
    assert whole.returncode == 0, whole.stderr

    found: dict[str, Any] = {"steps": steps, "kills": 0, "inside_a_save": 0, "most_steps_lost": 0, "by_place": {}}
    newest = 0
    while found["kills"] < kills:
        inside = found["inside_a_save"] <= found["kills"] / 2
        where = _kill_once(place, options, draw, newest, inside)
        if where is None:
            break  # the run got to its end
        found["kills"] += 1
        found["by_place"][where] = found["by_place"].get(where, 0) + 1
        found["inside_a_save"] += _is_inside(where, place / "killed")
        warnings: list[str] = []
        record = SavedSteps(place / "killed" / "checkpoints", warnings.append).latest()
        assert not warnings, f"a kill has damaged a finished step: {warnings}"
        now, last = (record or {"step": 0})["step"], _last_step(place / "killed")
        assert now >= newest, f"step {newest} was saved, and is gone: {now}"
        # A save goes on beside the steps after it, and at the next one the run waits for it.
        assert last - now <= 2 * INTERVAL, f"step {last} was done, the newest saved is {now}"
        found["most_steps_lost"] = max(found["most_steps_lost"], last - now)
        newest = now
    end = runs.run(place / "killed", place / "data", *options)
    assert end.returncode == 0, end.stderr
    ours, theirs = runs.metrics(place / "killed"), runs.metrics(place / "whole")
    found["steps_equal"] = [{k: line[k] for k in runs.SAME_METRICS} for line in ours] == [
        {k: line[k] for k in runs.SAME_METRICS} for line in theirs
    ]
    mine, wanted = runs.state(place / "killed", steps), runs.state(place / "whole", steps)
    found["state_equal"] = mine.keys() == wanted.keys() and all(mine[k].tobytes() == wanted[k].tobytes() for k in mine)
    return found


def _kill_once(
    place: pathlib.Path, options: tuple[str, ...], draw: random.Random, newest: int, inside: bool
) -> str | None:
    """Starts the run and kills it; returns where, or None if it got to its end."""
    kind = draw.choice(("point", "watch")) if inside else draw.choice(("step", "step", "step", "start"))
    step = (newest // INTERVAL + draw.randint(1, 2)) * INTERVAL
    point, seconds = draw.choice(SAVE_POINTS), draw.random()
    # An older step is deleted from the fourth save on.
    fault = f"kill@0:{'*' if point == 'save/delete' else step}:{point}" if kind == "point" else "sleep@0:0:step"
    process = subprocess.Popen(
        runs.command(place / "killed", place / "data", *options, faults=[fault]),
        env=runs.environment(), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    began = time.monotonic()

    def due() -> bool:
        match kind:
            case "point":
                return False
            case "watch":
                return any((place / "killed" / "checkpoints" / str(step)).glob("state.*tmp*"))
            case "start":
                return time.monotonic() - began > 8 * seconds
        return _last_step(place / "killed") >= newest + int(10 * seconds)

    while process.poll() is None and not due():
        assert time.monotonic() - began < 120, f"nothing happened in two minutes ({kind}, {point}, step {step})"
        time.sleep(0.002)
    if kind in ("watch", "step"):
        time.sleep(0.1 * draw.random())
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, out
    return point if kind == "point" else kind


def _is_inside(where: str, run_dir: pathlib.Path) -> bool:
    """Whether a kill fell into a save: by the place asked for, or by what it left."""
    if where in SAVE_POINTS:
        return True
    folders = list((run_dir / "checkpoints").glob("*"))
    return any(f.name.startswith(".deleting-") or not (f / "record.json").exists() for f in folders)


def _last_step(run_dir: pathlib.Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def main() -> int:
    """Prints the seed first, then what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=None, help="of the kinds and places of kills; default: the clock's")
    flags = parser.parse_args()
    seed = time.time_ns() % 2**32 if flags.seed is None else flags.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        found = soak(pathlib.Path(folder), flags.kills, seed)
    print(json.dumps(found | {"minutes": round((time.monotonic() - began) / 60, 1)}, indent=1))
    good = found["steps_equal"] and found["state_equal"] and found["kills"] == flags.kills
    return 0 if good and 2 * found["inside_a_save"] >= found["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
