"""DeltaLM (arXiv 2106.13736) for Hugging Face transformers. This file travels in the folder of an exported model.

Legend: B batch, S source positions, T target positions given now, L target positions so far (those in the cache and T),
D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

from .configuration_deltalm import DeltaLMConfig
from .layers_deltalm import CACHE, DeltaLMDecoder, DeltaLMEncoder


class DeltaLMPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the architecture."""

    config_class = DeltaLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DeltaLMEncoderLayer", "DeltaLMDecoderLayer"]  # noqa: RUF012
    # Other ports store these; DeltaLM has no output bias.
    _keys_to_ignore_on_load_unexpected = [r"final_logits_bias", r"(encoder|decoder)\.version"]  # noqa: RUF012
    _supports_cache_class = True
    _supports_sdpa = True


class DeltaLMModel(DeltaLMPreTrainedModel):
    """Encoder and decoder without the output layer."""

    _tied_weights_keys = {  # noqa: RUF012
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = DeltaLMEncoder(config, self.shared)
        self.decoder = DeltaLMDecoder(config, self.shared)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The one table of token embeddings, of encoder and decoder."""
        return self.shared

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Puts another table in the place of all three."""
        self.shared = self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def get_encoder(self, *args, **kwargs) -> DeltaLMEncoder:
        """The encoder; arguments that newer versions pass are not looked at."""
        return self.encoder

    def get_decoder(self, *args, **kwargs) -> DeltaLMDecoder:
        """The decoder; arguments that newer versions pass are not looked at."""
        return self.decoder

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """`Seq2SeqModelOutput`; arguments as for `DeltaLMForConditionalGeneration`."""
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        if attention_mask is None:
            attention_mask = encoder_outputs.get("attention_mask")

        cache = past_key_values if cache is None else cache
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.training and self.decoder.gradient_checkpointing:
            use_cache = False  # Layers that run twice would write to it twice.
        if not use_cache:
            cache = None
        elif cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        decoded = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs.last_hidden_state,
            attention_mask,
            cache,
            decoder_inputs_embeds,
            output_attentions,
            output_hidden_states,
        )
        output = Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{CACHE: cache},
        )
        return output.to_tuple() if return_dict is False else output


class DeltaLMForConditionalGeneration(DeltaLMPreTrainedModel, GenerationMixin):
    """DeltaLM with its output layer, which is the token table: neither bias nor scaling."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012
    # The trainer then hands over the number of targets in the global batch.
    accepts_loss_kwargs = True

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.model = DeltaLMModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *args, **kwargs) -> DeltaLMEncoder:
        """The encoder; arguments that newer versions pass are not looked at."""
        return self.model.encoder

    def get_decoder(self, *args, **kwargs) -> DeltaLMDecoder:
        """The decoder; arguments that newer versions pass are not looked at."""
        return self.model.decoder

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer, tied to the token embeddings."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Puts another output layer in its place."""
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        num_items_in_batch=None,
    ):
        """Logits of the next tokens, and their loss if there are labels.

        Args:
          input_ids: [B, S], padded on either side; or `inputs_embeds` [B, S, D], token embeddings.
          attention_mask: [B, S], 1 at real tokens. By default what is not padding by `input_ids`.
          decoder_input_ids: [B, T]: `</s>` and the target but for its last token. By default made from the labels. Or
            `decoder_inputs_embeds` [B, T, D].
          decoder_attention_mask: [B, T], or [B, L] with a cache. By default what is not padding by `decoder_input_ids`.
          encoder_outputs: what `get_encoder()` returned; saves running the encoder.
          cache: an `EncoderDecoderCache`; `past_key_values` in transformers before its version 5.24, and here the same.
          labels: [B, T], targets. Those that are -100 or padding do not count.
          use_cache: whether to make, use and return a cache. By default only without labels.
          output_attentions, output_hidden_states: whether to return these.
          return_dict: False for a tuple.
          num_items_in_batch: what to divide the summed loss by, instead of by the number of labels here.

        Returns:
          `Seq2SeqLMOutput`; logits are [B, T, V], the loss is a mean over the targets in nats.
        """
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            cache,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        logits_BTV = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            labels = labels.to(logits_BTV.device).long()
            labels = labels.masked_fill(labels == self.config.pad_token_id, -100)
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), labels.flatten(), reduction=reduction)
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits_BTV, **{name: outputs[name] for name in outputs if name != "last_hidden_state"}
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """`</s>` and the labels but for the last; -100 becomes padding. Collators call it."""
        start_B1 = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted_BT = torch.cat([start_B1, labels[:, :-1]], dim=1)
        return shifted_BT.masked_fill(shifted_BT == -100, self.config.pad_token_id)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        attention_mask=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        cache=None,
        past_key_values=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **_,
    ):
        """Arguments of `forward` for the next token, given all `input_ids` [B, L] of the decoder so far."""
        cache = past_key_values if cache is None else cache
        past_length = int(cache.get_seq_length()) if cache is not None else 0
        if decoder_attention_mask is None:
            decoder_attention_mask = input_ids != self.config.pad_token_id
        return {
            "decoder_input_ids": input_ids[:, past_length:],
            "decoder_attention_mask": decoder_attention_mask,
            "encoder_outputs": encoder_outputs,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            CACHE: cache,
        }


# So that a model saved again takes these files along, whatever the version of transformers.
DeltaLMConfig.register_for_auto_class("AutoConfig")
DeltaLMModel.register_for_auto_class("AutoModel")
DeltaLMForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
