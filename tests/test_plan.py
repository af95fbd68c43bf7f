"""The planning command: real compilations by libtpu for small pods, of which memory and traffic are known."""

from __future__ import annotations

import json

import pytest

from deltalm_jax import plan as command
from deltalm_jax.training.config import Config
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.plan import plan

# Few layers and a large vocabulary, as in the models of the paper: parameters and logits outweigh all else.
SMALL = (
    "ModelConfig.vocab_size=32768",
    "ModelConfig.hidden_size=256",
    "ModelConfig.num_encoder_layers=2",
    "ModelConfig.num_decoder_layers=1",
    "ModelConfig.scan_layers=True",
    'DataConfig.objective_batch_sizes={"span_corruption": 128, "translation_span_corruption": 128}',
)
# Topology → bindings, devices, and what libtpu 0.0.42 makes of SMALL: MB of a device's memory, MB that it sends in a step.
GOLDEN = {
    "v5e:4x4": ((), 16, 158.5, 64.54),
    "v4:2x2x2": ((), 16, 206.2, 63.51),
    "2*v5e:2x4": (("MeshConfig.slices=2",), 16, 168.0, 65.99),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


def small(*bindings: str) -> Config:
    return load(["pretrain_tiny.gin"], [*SMALL, *bindings])


@pytest.mark.tpu
@pytest.mark.parametrize("topology", GOLDEN)
def test_memory_and_traffic_are_as_known(topology: str, cache):
    bindings, devices, memory, sent = GOLDEN[topology]
    result = plan(small(*bindings), topology, cache)
    assert result["fits"]
    assert result["devices"] == devices
    assert result["hbm_bytes"] / 1e6 == pytest.approx(memory, rel=0.05)
    assert result["collective_bytes"] / 1e6 == pytest.approx(sent, rel=0.01)
    # Parameters are gathered and gradients summed, once each: a gather of activations or logits would be far more.
    assert result["collective_bytes"] <= 1.1 * result["collective_bytes_least"]
    networks = {c["axis"]: c["network"] for c in result["collectives"]}
    assert ("DCN" in networks.values()) == topology.startswith("2*")


@pytest.mark.tpu
def test_the_command_prints_what_was_planned(cache, capsys, monkeypatch):
    flags = [f"--gin.{binding}" for binding in SMALL]
    arguments = ["--gin_file=pretrain_tiny.gin", "--topology=v5e:4x4", f"--cache={cache}", *flags]
    planned = plan(small(), "v5e:4x4", cache)
    assert command.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [planned]  # not compiled again: even its duration is the same
    monkeypatch.setattr(command, "_plan", lambda *_: planned)
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("v5e:4x4: 16 chips, 16 devices (data 16)")
    assert f"{planned['hbm_share']:.0%} of a device" in text
    assert "roofline" in text


@pytest.mark.tpu
def test_logits_held_whole_do_not_fit(cache):
    """256 × 88 targets of a device × 250,104 pieces: the loss in blocks takes them, the loss of all at once is refused."""
    bindings = [
        "ModelConfig.vocab_size=250104",
        "ModelConfig.num_encoder_layers=1",
        'DataConfig.objective_batch_sizes={"translation_span_corruption": 1024}',
    ]
    blocked = plan(small(*bindings), "v5e:2x2", cache)
    assert blocked["fits"]
    whole = plan(small(*bindings, "LossConfig.block_megabytes=1e9"), "v5e:2x2", cache)
    assert not whole["fits"]
    assert "hbm" in whole["refusal"].lower()
    assert whole["hbm_bytes"] is None


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "expected a topology such as v5e:16x16"),
        (["--topology=v5e:2x2", "--gin.MeshConfig.fsdp=3"], "does not cover 4 devices"),
        (["--topology=2*v5e:2x2"], "MeshConfig.slices is 1"),
    ],
)
def test_mistakes_are_named(arguments, message, cache, capfd):
    assert command.main(["--gin_file=pretrain_tiny.gin", f"--cache={cache}", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_the_search_ends_with_the_first_that_fits(capsys, monkeypatch):
    tried = []

    def planned(flags, bindings, topology):
        tried.append(bindings)
        fits = len(tried) == 3
        return {"fits": fits, "refusal": "too much", "hbm_bytes": 8e9, "hbm_share": 0.5}

    monkeypatch.setattr(command, "_plan", planned)
    assert command.main(["--gin_file=pretrain_tiny.gin", "--topology=v5e:2x2", "--search", "--json"]) == 0
    found = capsys.readouterr()
    (result,) = json.loads(found.out)
    assert len(tried) == 3
    assert result["bindings"] == list(tried[-1])
    assert found.err.count("does not fit: too much") == 2
