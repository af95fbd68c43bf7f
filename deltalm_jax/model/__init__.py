"""DeltaLM: an encoder-decoder all of whose layers a pretrained encoder can fill (arXiv 2106.13736).

Read `decoder_layer.py` first; the idea is there. The rest of the project uses three things to train:

    config = PRESETS["base"]                                                  config.py
    params = init_params(config, jax.random.key(0))                           deltalm.py
    hidden_BTD = hidden_states(config, params, encoder_tokens_BS, shift_right(targets_BT))

`params` is a plain nested dictionary of float32 arrays, and `hidden_BTD @ params["token_embedding"].T` are the logits.
`apply_encoder`, `init_cache`, `decode_step` and `take_rows` do the same one target token at a time.

    linear.py, dropout.py             primitives
    embedding.py                      tokens and positions
    attention.py, feed_forward.py     sub-layers
    kernels.py                        attention on a TPU and on a GPU
    layer.py                          sub-layers in the residual stream, and the loop over a stack of layers
    decoder_layer.py                  the interleaved layer, and the vanilla one
    encoder.py, decoder.py            the two sides
    deltalm.py                        the model as functions

Inside, layers are Flax NNX modules; outside nothing imports Flax. The model knows arrays: no mesh, files, gin,
optimizer.
"""
