"""Fields of other servers' APIs: which are obeyed under another name, and which are refused, at which values and why.

For vLLM, SGLang, llama.cpp's server, Ollama, OpenRouter, text-generation-webui and their clients. Invariant: a field
that would change the answer is obeyed or refused by name. null is the same as leaving a field out. Fields that are in
no table are ignored, as are those that only concern how an answer is computed or billed (cache_prompt, id_slot, n_keep,
keep_alive, num_ctx, num_gpu, session_id, rid, provider, route, models, transforms, service_tier, metadata,
timings_per_token, stream_interval, stream_reasoning) and those that tune a sampler which is off
(xtc_threshold, dry_base, mirostat_tau, dynatemp_exponent, length_penalty). verbosity is ignored, since no template
supports it. OpenAI's paths use `own_names` and `require_obeyed`. Anthropic's Messages API has none of these fields and
refuses them with `require_absent`.
"""

from collections.abc import Mapping
from typing import Any

from earthshine.server.refusals import Refused

# Other names of this server's fields. Those in Ollama's `options` count as fields of the body.
OBEYED_AS = {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "repeat_penalty": "repetition_penalty",
    "rep_pen": "repetition_penalty",
    "n_cmpl": "n",
    "sampling_seed": "seed",
    "random_seed": "seed",
    "stop_sequences": "stop",
    "no_stop_trim": "include_stop_str_in_output",
    "extra_key": "cache_salt",
    "reasoning_budget_tokens": "thinking_token_budget",
    "thinking_budget_tokens": "thinking_token_budget",
    "thinking_budget": "thinking_token_budget",
    "guided_json_object": "json_object",
}
_UNBOUNDED = ("max_tokens", "max_completion_tokens", "thinking_token_budget")  # -1 and -2 mean no limit

_OFF: tuple[Any, ...] = (False, "", [], {})  # 0 too, which equals False
_TEMPERATURE = "The temperature is the same for every token; leave {} out."
_SAMPLER = "This server samples with temperature, top_k, top_p and min_p; leave {} out."
_PENALTY = "This server penalizes with presence_penalty, frequency_penalty and repetition_penalty; leave {} out."
_BANNED = "Texts can't be banned; use logit_bias for tokens, and leave {} out."
_RETURNED = "{} is not returned with an answer; leave it out."
_PROMPT = "The prompt is given in messages or prompt; leave {} out."
_ADAPTER = "This server has one model without adapters; leave {} out."
_FORM = "Use response_format or structured_outputs for the form of an answer; leave {} out."
_CODE = "Code in a request is not run; leave {} out."
_PLAIN = "{} is not implemented; leave it out."

# name: (values at which it is harmless, why it is refused at all others)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    # which tokens are generated
    "bad_words": (_OFF, _BANNED),
    "banned_strings": (_OFF, _BANNED),
    "banned_tokens": (_OFF, _BANNED),
    "custom_token_bans": (_OFF, _BANNED),
    "ban_eos_token": (_OFF, _PLAIN),
    "min_length": (_OFF, _PLAIN),
    "n_indent": (_OFF, _PLAIN),
    "stop_regex": (_OFF, "Stop strings can't be regular expressions; use stop, and leave {} out."),
    "t_max_predict_ms": ((*_OFF, -1), _PLAIN),
    "t_max_prompt_ms": ((*_OFF, -1), _PLAIN),
    "repetition_detection": (_OFF, _PLAIN),
    # samplers
    "adaptive_target": ((*_OFF, -1), _SAMPLER),
    "do_sample": ((True,), "A temperature of 0 chooses the most likely token; leave {} out."),
    "dry_multiplier": (_OFF, _PENALTY),
    "dynamic_temperature": (_OFF, _TEMPERATURE),
    "dynatemp_range": (_OFF, _TEMPERATURE),
    "encoder_repetition_penalty": ((*_OFF, 1), _PENALTY),
    "epsilon_cutoff": (_OFF, _SAMPLER),
    "eta_cutoff": (_OFF, _SAMPLER),
    "guidance_scale": ((1,), _SAMPLER),
    "min_keep": ((*_OFF, 1), _SAMPLER),
    "mirostat": (_OFF, _SAMPLER),
    "mirostat_mode": (_OFF, _SAMPLER),
    "negative_prompt": (_OFF, _SAMPLER),
    "no_repeat_ngram_size": (_OFF, _PENALTY),
    "nsigma": ((*_OFF, -1), _SAMPLER),
    "num_beams": ((*_OFF, 1), _SAMPLER),
    "penalty_alpha": (_OFF, _SAMPLER),
    "quadratic_sampling": (_OFF, _SAMPLER),
    "sampler_order": (_OFF, _SAMPLER),
    "sampler_priority": (_OFF, _SAMPLER),
    "samplers": (_OFF, _SAMPLER),
    "skew": (_OFF, _SAMPLER),
    "smoothing_factor": (_OFF, _TEMPERATURE),
    "temperature_last": (_OFF, "The temperature is applied first; leave {} out."),
    "tfs": ((1,), _SAMPLER),
    "tfs_z": ((1,), _SAMPLER),
    "top_a": (_OFF, _SAMPLER),
    "top_n_sigma": ((*_OFF, -1), _SAMPLER),
    "typical": ((1,), _SAMPLER),
    "typical_p": ((1,), _SAMPLER),
    "use_beam_search": (_OFF, _SAMPLER),
    "watermarking": (_OFF, _PLAIN),
    "xtc_probability": (_OFF, _SAMPLER),
    # code and models
    "custom_logit_processor": (_OFF, _CODE),
    "logits_processors": (_OFF, _CODE),
    "vllm_xargs": (_OFF, _CODE),
    "lora": (_OFF, _ADAPTER),
    "lora_path": (_OFF, _ADAPTER),
    "lora_request": (_OFF, _ADAPTER),
    "plugins": (_OFF, "This server has no plugins and does not search the web; leave {} out."),
    "nvext": (_OFF, _PLAIN),
    # the prompt
    "context": (_OFF, _PROMPT),
    "documents": (_OFF, _PROMPT),
    "generation_prompt": (_OFF, _PROMPT),
    "image_data": (_OFF, _PROMPT),
    "images": (_OFF, _PROMPT),
    "input_embeds": (_OFF, _PROMPT),
    "input_ids": (_OFF, _PROMPT),
    "prompt_embeds": (_OFF, _PROMPT),
    "raw": (_OFF, "Use /v1/completions for a prompt without a template; leave {} out."),
    "safe_prompt": (_OFF, _PROMPT),
    "system": (_OFF, "Give a message with the role system; leave {} out."),
    "system_prompt": (_OFF, "Give a message with the role system; leave {} out."),
    "template": (_OFF, "A chat template is code and is taken from the model's folder only; leave {} out."),
    "prompt_truncate_len": (_OFF, "A prompt that is too long is refused, never cut; leave {} out."),
    "truncate_prompt_tokens": (_OFF, "A prompt that is too long is refused, never cut; leave {} out."),
    "kv_transfer_params": (_OFF, "KV caches are not fetched from an address in a request; leave {} out."),
    "ec_transfer_params": (_OFF, "KV caches are not fetched from an address in a request; leave {} out."),
    # the answer's form
    "chat_parser": (_OFF, _FORM),
    "disable_additional_properties": (_OFF, _FORM),
    "grammar_lazy": (_OFF, _FORM),
    "grammar_triggers": (_OFF, _FORM),
    "guided_whitespace_pattern": (_OFF, "JSON is written with single blanks at most; leave {} out."),
    "parse_tool_calls": ((True,), "Tool calls are never sent as text; leave {} out or set it to true."),
    "reasoning_format": (("", "auto", "deepseek", "parsed"),
                         "Thoughts are sent as reasoning_content; set include_reasoning to false to hide them, "
                         "and leave {} out."),
    "separate_reasoning": ((True,), "Thoughts are sent as reasoning_content; leave {} out or set it to true."),
    "structural_tag": (_OFF, _FORM),
    # what is returned beside the answer
    "logprob_token_ids": (_OFF, _RETURNED),
    "n_probs": (_OFF, "Use logprobs for log-probabilities; leave {} out."),
    "post_sampling_probs": (_OFF, _RETURNED),
    "response_fields": (_OFF, _RETURNED),
    "return_hidden_states": (_OFF, _RETURNED),
    "return_meta_info": (_OFF, _RETURNED),
    "return_prompt_text": (_OFF, _RETURNED),
    "return_prompt_token_ids": (_OFF, _RETURNED),
    "return_routed_experts": (_OFF, _RETURNED),
    "return_token_ids": (_OFF, _RETURNED),
    "return_tokens": (_OFF, _RETURNED),
    "return_tokens_as_token_ids": (_OFF, _RETURNED),
    # what belongs elsewhere in the body, or to another path
    "add_generation_prompt": ((True,), "add_generation_prompt is for /v1/chat/completions; leave it out."),
    "best_of": ((1,), "best_of is for /v1/completions; leave it out."),
    "continue_final_message": (_OFF, "continue_final_message is for /v1/chat/completions; leave it out."),
    "audio": (_OFF, "This model reads and writes text only; leave {} out."),
    "echo": (_OFF, "echo is for /v1/completions; leave it out."),
    "extra_body": (_OFF, "extra_body is an argument of the Python client; put its fields beside the others."),
    "function_call": (_OFF, "{} is the old form; use tools and tool_choice."),
    "functions": (_OFF, "{} is the old form; declare them in tools."),
    "parameters": (_OFF, "Put sampling fields beside the others, and leave {} out."),
    "sampling_params": (_OFF, "Put sampling fields beside the others, and leave {} out."),
    "web_search_options": ((False,), "This server does not search the web; leave {} out."),
    "suffix": (_OFF, "This model can't fill in before a suffix; leave {} out."),
}  # fmt: skip
# Fields that OpenAI's paths obey and Anthropic's Messages API does not have, with the values at which each is harmless.
_FORMS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object",
          "regex", "ebnf", "grammar", "json_schema", "json_object", "format")  # fmt: skip
_THOUGHTS = ("think", "enable_thinking", "reasoning", "reasoning_effort", "chat_template", "chat_template_kwargs",
             "thinking_budget", "thinking_token_budget", "thinking_budget_tokens",
             "reasoning_budget_tokens")  # fmt: skip
OPENAI_ONLY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_FORMS, _OFF),
    "structured_outputs": (*_OFF, True),  # a bool is OpenRouter's and has no effect
    **dict.fromkeys(_THOUGHTS, ()),
    "include_reasoning": (True,),
    "stop": _OFF,
    "stop_token_ids": _OFF,
    "ignore_eos": _OFF,
    "min_tokens": _OFF,
    "min_new_tokens": _OFF,
    "allowed_token_ids": _OFF,
    "include_stop_str_in_output": _OFF,
    "skip_special_tokens": (True,),
    "no_stop_trim": _OFF,
    "n": (1,),
    "n_cmpl": (1,),
    "seed": (),
    "sampling_seed": (),
    "random_seed": (),
    "logit_bias": _OFF,
    "presence_penalty": _OFF,
    "frequency_penalty": _OFF,
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "rep_pen": (1,),
    "min_p": _OFF,
    "max_completion_tokens": (),
    "max_new_tokens": (),
    "n_predict": (),
    "num_predict": (),
    "logprobs": _OFF,
    "top_logprobs": _OFF,
    "prompt_logprobs": (),
    "parallel_tool_calls": (True,),
}
# What is read of Ollama's `options`; the others concern how an answer is computed.
_OPTIONS = frozenset(
    ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
).union(OBEYED_AS, REFUSED)
# The number of tokens that a penalty applies to: here all.
_WINDOWS = ("repeat_last_n", "penalty_last_n", "rep_pen_range", "repetition_penalty_range")
READ_OPTIONS = _OPTIONS.union(_WINDOWS)


def own_names(body: Any) -> Any:
    """The body with this server's names for its fields, those in Ollama's `options` included.

    Raises Refused where two names of one field have different values. Anything but an object is returned unchanged.
    """
    if not isinstance(body, Mapping):
        return body
    found: dict[str, Any] = {}
    givers: dict[str, str] = {}  # own names to the names in the body
    options = body.get("options")
    nested = options.items() if isinstance(options, Mapping) else ()
    read = [(name, value) for name, value in nested if name in READ_OPTIONS]
    for name, value in (*body.items(), *read):
        own: str = OBEYED_AS.get(name) or name
        if own in _UNBOUNDED and value in (-1, -2):
            value = None
        if value in (None, []) and own in found:
            continue
        if found.get(own) not in (None, []) and _listed(found[own]) != _listed(value):
            raise Refused(f"{name} and {givers[own]} give different values; give one of them.", param=name)
        found[own], givers[own] = value, name
    return found


def _listed(value: Any) -> Any:
    """A single stop string as a list."""
    return [value] if isinstance(value, str) else value


def require_absent(others: Mapping[str, Any]) -> None:
    """Raises Refused for the first of these fields that would change an answer on OpenAI's paths.

    `others`: the fields of a Messages API body that are not that API's own.
    """
    options = others.get("options")
    nested = options if isinstance(options, Mapping) else {}
    for name, value in (*others.items(), *((name, nested[name]) for name in nested if name in _OPTIONS)):
        harmless = OPENAI_ONLY[name] if name in OPENAI_ONLY else REFUSED.get(name, (None, ""))[0]
        if harmless is not None and value is not None and value not in harmless:
            raise Refused(
                f"The Messages API has no field {name}; leave it out, or use one of OpenAI's paths. Give a JSON schema "
                "in output_config.format, stop strings in stop_sequences, and use thinking to turn thinking on or off.",
                param=name,
            )


def require_obeyed(others: Mapping[str, Any], penalizes: bool) -> None:
    """Raises Refused for the first of these fields that would change the answer. `penalizes`: a penalty is on."""
    for name, value in others.items():
        harmless, why = REFUSED.get(name, (None, ""))
        if name in _WINDOWS and penalizes:
            harmless, why = (-1,), "Penalties apply to the whole conversation; leave {} out or set it to -1."
        if harmless is None or value is None or value in harmless:
            continue
        if name == "adaptive_target" and isinstance(value, (int, float)) and value < 0:
            continue
        raise Refused(why.format(name), param=name)
