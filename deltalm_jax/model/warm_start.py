"""How a DeltaLM starts from a pretrained encoder (arXiv 2106.13736, section 3.2), and what the paper compares it with.

    The encoder starts as the pretrained encoder. In the decoder, the self-attention and the bottom feed-forward network
    of layer i start from encoder layer 2i, the cross-attention and the top feed-forward network from encoder layer
    2i + 1, each with its LayerNorm. Both sides start with its embeddings.

Layers count from 0; the paper, counting from 1, calls the former odd and the latter even. `interleave` is that sentence.

Legend: N layers, V vocabulary, D hidden size, P rows of the position table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params, init_params

INITIALIZATIONS = ("interleaved", "vanilla_random_cross_attention", "vanilla_copied_cross_attention", "random")


def interleave(encoder_layers: Params, num_layers: int) -> Params:
    """The layers of an interleaved decoder, of those of an encoder.

    Args:
      encoder_layers: stacked, at least 2 · num_layers of them; what lies above is not used.
      num_layers: decoder layers.
    """
    lower = _every_second(encoder_layers, 0, num_layers)
    upper = _every_second(encoder_layers, 1, num_layers)
    return {
        "self_attention": lower["self_attention"],
        "self_attention_layer_norm": lower["self_attention_layer_norm"],
        "bottom_feed_forward": lower["feed_forward"],
        "bottom_feed_forward_layer_norm": lower["feed_forward_layer_norm"],
        "cross_attention": upper["self_attention"],
        "cross_attention_layer_norm": upper["self_attention_layer_norm"],
        "top_feed_forward": upper["feed_forward"],
        "top_feed_forward_layer_norm": upper["feed_forward_layer_norm"],
    }


def copy_cross_attention(encoder_layers: Params, num_layers: int) -> Params:
    """The layers of a vanilla decoder: all of encoder layer i in layer i, its self-attention in both attentions.

    The DeltaLM group's earlier code leaves the copy's output projection and LayerNorm random; here it is whole.
    """
    layers = jax.tree.map(lambda leaf: leaf[:num_layers], encoder_layers)
    return layers | {
        "cross_attention": layers["self_attention"],
        "cross_attention_layer_norm": layers["self_attention_layer_norm"],
    }


def num_decoder_layers(initialize: str, num_encoder_layers: int) -> int:
    """Decoder layers that give a decoder as large as its encoder.

    An interleaved layer is two encoder layers; a vanilla one has two thirds of its parameters (hence the "2/3 N" beside
    "N" in the paper's figure), so that 6 interleaved or 9 vanilla layers stand beside 12 of an encoder.
    """
    return 3 * num_encoder_layers // 4 if initialize.startswith("vanilla") else num_encoder_layers // 2


def warm_start(
    config: ModelConfig,
    encoder: Params,
    key: jax.Array,
    initialize: str = "interleaved",
    decoder_output_rms: float | None = None,
) -> Params:
    """Parameters of a DeltaLM that starts from a pretrained encoder.

    Args:
      config: the DeltaLM to be.
      encoder: {"token_embedding", "encoder"}, as in the parameters of a DeltaLM. Token rows beyond its own, up to
        `config.vocab_size`, are new (sentinels, filler); position rows beyond `config.max_length` are left out.
      key: for what starts randomly, as `init_params` draws it; new token rows from N(0, 1/D).
      initialize: "interleaved", the paper's; or what it is compared with: a vanilla decoder that takes an encoder layer
        for each of its own, "vanilla_random_cross_attention" with the cross-attention left random or
        "vanilla_copied_cross_attention" with the self-attention's weights in it; "random", which takes nothing at all.
      decoder_output_rms: None keeps the encoder's last LayerNorm as the decoder's, as the paper does. A number scales it so
        that the decoder's output has this root mean square. Logits are output times token table, so an encoder whose
        output is small (0.27 in a small E5, where a random decoder's is 1) makes them learn slowly at first.

    Returns:
      float32 arrays, some of which may share memory.

    Raises:
      ValueError: the encoder has other sizes, too few layers, or no layers of the kind that the decoder needs.
    """
    check_encoder(config, encoder, initialize)
    rows_key = jax.random.fold_in(key, 1)  # other bits than `init_params` draws
    if initialize == "random":
        params = init_params(config, key)
    else:
        positions = {"position_embedding": encoder["encoder"]["position_embedding"][: config.num_positions]}
        side = encoder["encoder"] | positions
        take = interleave if initialize == "interleaved" else copy_cross_attention
        decoder_layers = take(side["layers"], config.num_decoder_layers)
        if initialize == "vanilla_random_cross_attention":
            fresh = init_params(config, key)["decoder"]["layers"]
            decoder_layers |= {name: fresh[name] for name in ("cross_attention", "cross_attention_layer_norm")}
        params = {
            "token_embedding": with_new_rows(encoder["token_embedding"], config.vocab_size, rows_key),
            "encoder": side,
            "decoder": side | {"layers": decoder_layers},
        }
    return params if decoder_output_rms is None else _scale_decoder_output(params, decoder_output_rms)


def continue_encoder(config: ModelConfig, encoder: Params, key: jax.Array) -> Params:
    """Parameters of an encoder alone that goes on from a pretrained one.

    Args:
      config: the encoder to be.
      encoder: {"token_embedding", "encoder"}, as for `warm_start`; and "lm_head" and "sentence_projection", if they are
        known: else they are drawn as `init_params` draws them. The bias of a row that it does not have is 0.
      key: as for `warm_start`: the same key gives the same new token rows.

    Returns:
      float32 arrays.

    Raises:
      ValueError: the encoder has other sizes.
    """
    check_encoder(config, encoder)
    known = {n: encoder[n] for n in ("lm_head", "sentence_projection") if n in encoder}
    names = {"lm_head", "sentence_projection"} - known.keys()
    # Compiled, so that what is not asked for, the token table above all, is not drawn.
    drawn = jax.jit(lambda: {n: v for n, v in init_params(config, key).items() if n in names})()
    positions = {"position_embedding": encoder["encoder"]["position_embedding"][: config.num_positions]}
    params = (
        drawn
        | known
        | {
            "token_embedding": with_new_rows(encoder["token_embedding"], config.vocab_size, jax.random.fold_in(key, 1)),
            "encoder": encoder["encoder"] | positions,
        }
    )
    if "lm_head" in encoder:
        params["lm_head"] = encoder["lm_head"] | {"bias": with_zeros(encoder["lm_head"]["bias"], config.vocab_size)}
    return params


def with_zeros(bias_V: np.ndarray, num_rows: int) -> np.ndarray:
    """A bias for each token row continued to `num_rows` with zeros, or cut to them."""
    return np.concatenate([bias_V[:num_rows], np.zeros(max(num_rows - len(bias_V), 0), np.float32)])


def with_new_rows(table_VD: np.ndarray, num_rows: int, key: jax.Array) -> np.ndarray:
    """A token table continued to `num_rows` rows with rows from N(0, 1/D), as fairseq's `Embedding` draws them."""
    new, size = num_rows - len(table_VD), table_VD.shape[1]
    if new <= 0:
        return table_VD
    return np.concatenate([table_VD, jax.random.normal(key, (new, size), jnp.float32) * size**-0.5])


def _scale_decoder_output(params: Params, rms: float) -> Params:
    """Scales the decoder's last LayerNorm, whose output x · scale + bias has mean square scale² + bias² (x has 1)."""
    layers = params["decoder"]["layers"]
    name = next(n for n in ("top_feed_forward_layer_norm", "feed_forward_layer_norm") if n in layers)
    scale_D, bias_D = (np.asarray(layers[name][leaf][-1]) for leaf in ("scale", "bias"))
    factor = rms / np.sqrt(np.mean(scale_D**2 + bias_D**2))

    def scaled(leaf_ND: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf_ND[:-1], leaf_ND[-1:] * factor]).astype(np.float32)

    layers = layers | {name: {leaf: scaled(np.asarray(values)) for leaf, values in layers[name].items()}}
    return params | {"decoder": params["decoder"] | {"layers": layers}}


def _every_second(layers: Params, start: int, count: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[start : 2 * count : 2], layers)


def check_encoder(config: ModelConfig, encoder: Params, initialize: str = INITIALIZATIONS[0]) -> None:
    """Whether a model can start from an encoder, by the shapes; arguments and errors as for `warm_start`."""
    if initialize not in INITIALIZATIONS:
        raise ValueError(f"initialize must be one of {', '.join(INITIALIZATIONS)}, found {initialize!r}")
    if initialize == "random":
        return
    wanted = "vanilla" if initialize.startswith("vanilla") else "interleaved"
    if config.decoder != wanted and not config.is_encoder:
        raise ValueError(f"initialize={initialize!r} makes a decoder of kind {wanted!r}, not {config.decoder!r}")
    rows, hidden_size = encoder["token_embedding"].shape
    layers = encoder["encoder"]["layers"]
    num_layers, _, feed_forward_size = layers["feed_forward"]["input"]["kernel"].shape
    needed = config.num_decoder_layers * (2 if wanted == "interleaved" else 1)
    pairs = [
        ("hidden_size", config.hidden_size, hidden_size),
        ("feed_forward_size", config.feed_forward_size, feed_forward_size),
        ("num_encoder_layers", config.num_encoder_layers, num_layers),
        ("embedding_layer_norm", config.embedding_layer_norm, "embedding_layer_norm" in encoder["encoder"]),
        ("norm_placement", config.norm_placement, "pre" if "final_layer_norm" in encoder["encoder"] else "post"),
    ]
    for name, asked, found in pairs:
        if asked != found:
            raise ValueError(f"ModelConfig.{name} is {asked!r}, but the encoder's is {found!r}")
    if num_layers < needed:
        raise ValueError(
            f"ModelConfig.num_decoder_layers={config.num_decoder_layers} needs {needed} encoder layers, found {num_layers}"
        )
    if rows > config.vocab_size:
        raise ValueError(f"ModelConfig.vocab_size is {config.vocab_size}, but the encoder's table has {rows} rows")
    if (positions := encoder["encoder"]["position_embedding"].shape[0]) < config.num_positions:
        raise ValueError(
            f"ModelConfig.max_length={config.max_length} needs {config.num_positions} position rows, but the encoder has "
            f"{positions}: lower max_length"
        )
