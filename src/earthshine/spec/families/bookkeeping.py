"""Keys that a config of any family may have: those without effect, and those of other kinds of models."""

from earthshine.spec.families.reader import KeyReader

# Training, bookkeeping and text-generation defaults that Hugging Face writes into a config.
BOOKKEEPING = (
    "_name_or_path", "attention_dropout", "auto_map", "aux_loss_alpha", "bad_words_ids", "begin_suppress_tokens",
    "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "ep_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_range", "is_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_router_logits", "output_scores",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "seq_aux", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache",
)  # fmt: skip


def refuse_encoders(keys: KeyReader) -> None:
    """Refuse keys that would make the model an encoder, or a part of a larger model."""
    for key in ("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"):
        keys.equal(key, False, optional=True)
    keys.equal("cross_attention_hidden_size", None, optional=True)
    keys.equal("pruned_heads", {}, None, optional=True)
