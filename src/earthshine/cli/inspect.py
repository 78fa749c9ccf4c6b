"""`earthshine inspect`: a model's architecture, size, formats and tensors; with --hash also checksums.

Works from a config.json alone too, and then loads no torch. Progress goes to standard error, so that standard output
is one document.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthshine.cli.layout import Report
from earthshine.cli.progress import ProgressLine
from earthshine.cli.words import least_size, parameters_in_words
from earthshine.errors import UsageError
from earthshine.hub import GLEAM, find_config, find_model, size_on_disk
from earthshine.plan import PlanArgs
from earthshine.plan.budget import CONTEXT_TOKENS
from earthshine.plan.explore import smallest_budget
from earthshine.spec import ModelSpec, decode_flops_per_token, footprint, load_spec, prefill_flops_per_token
from earthshine.spec.model import MoeSpec
from earthshine.storage.index import has_weights
from earthshine.units import format_bytes, format_count
from earthshine.untrusted import shown

# The table's labels for the keys of --json; of other keys the underscores become blanks.
_LABELS = {
    "n_layers": "layers",
    "dense_layers": "dense layers (without experts)",
    "hidden": "hidden size",
    "vocab_size": "vocabulary size",
    "max_context": "maximum context (tokens)",
    "n_heads": "attention heads",
    "n_kv_heads": "KV heads",
    "head_dim": "dimensions per head",
    "q_lora_rank": "query LoRA rank",
    "kv_lora_rank": "KV LoRA rank",
    "rope_dim": "RoPE dimensions per head",
    "yarn_factor": "YaRN factor",
    "trunk_storage": "format of the trunk (all but routed experts)",
    "expert_storage": "format of the routed experts",
    "conv_kernel": "convolution kernel (tokens)",
    "recurrent_state_bytes": "recurrent state per sequence",
    "n_experts": "routed experts per layer",
    "top_k": "routed experts per token",
    "intermediate": "expert intermediate size",
    "shared_intermediate": "shared experts' intermediate size",
    "n_groups": "expert groups",
    "total_params": "parameters",
    "active_params": "active parameters per token",
    "n_experts_in_all_layers": "routed experts in all layers",
    "expert_bytes": "bytes per routed expert",
    "experts_bytes": "bytes of all routed experts",
    "context": "context of the FLOPs below (tokens)",
    "prefill_flops_per_token": "prefill FLOPs per token",
    "decode_flops_per_token": "decode FLOPs per token",
    "decode_flops_per_token_at_1": "decode FLOPs per token, empty context",
}


def run_inspect(model: str | None, context: int | None, as_json: bool, make_hashes: bool = False) -> None:
    path = find_model(model) if make_hashes else find_config(model)
    if make_hashes:
        _require_place(path)
    spec = load_spec(path)
    summary, in_words = _summary(model, path, spec)
    facts = {"architecture": _architecture(spec), "footprint": _footprint(spec, context_tokens(spec, context))}
    if has_weights(path):
        facts["weights"] = _coverage(path, spec)
    if make_hashes:
        facts["manifest"] = _hash(path, spec)
    if as_json:
        print(json.dumps({"summary": summary} | facts, indent=2))
        return
    report = Report()
    report.facts(in_words.items())
    for title, rows in facts.items():
        report.blank()
        _show(report, title, rows)


def _summary(model: str | None, path: Path, spec: ModelSpec) -> tuple[dict[str, Any], dict[str, str]]:
    """What a person wants to know before the internals: for a program, and in words."""
    on_disk, params = size_on_disk(model, path, spec), footprint(spec)
    least, context = smallest_budget(spec, PlanArgs())
    facts = {
        "model_bytes": on_disk.total_bytes,
        "download_bytes": on_disk.missing_bytes,
        "free_disk_bytes": on_disk.free_bytes,
        "smallest_memory_bytes": least,
        "family": spec.family,
        "total_params": params.total_params,
        "active_params": params.active_params,
        "max_context": spec.max_context,
    }
    return facts, {
        "Download": on_disk.sentence(),
        "Smallest memory": f"{least_size(least)}; for {context:,} tokens of conversation",
        "Family": spec.family,
        "Parameters": parameters_in_words(params.total_params, params.active_params),
        "Longest context": f"{spec.max_context:,} tokens",
    }


def context_tokens(spec: ModelSpec, asked: int | None) -> int:
    """The context for which FLOPs are shown. Raises UsageError for fewer than 2 tokens or more than the model's."""
    tokens = min(spec.max_context, CONTEXT_TOKENS) if asked is None else asked
    if not 2 <= tokens <= spec.max_context:
        raise UsageError(
            f"context must be between 2 and {spec.max_context} tokens with this model, not {shown(tokens)}.", "context"
        )
    return tokens


def _architecture(spec: ModelSpec) -> dict[str, Any]:
    sparse = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec)]
    facts: dict[str, Any] = {
        "family": spec.family,
        "n_layers": spec.n_layers,
        "dense_layers": spec.n_layers - len(sparse),
        "hidden": spec.hidden,
        "vocab_size": spec.vocab_size,
        "max_context": spec.max_context,
        **_attention(spec),
        "trunk_storage": str(spec.trunk_storage),
        "expert_storage": str(spec.expert_storage),
        "stop_tokens": list(spec.stop_tokens),
    }
    if sparse:
        first = sparse[0]
        facts |= {
            "n_experts": first.n_experts,
            "top_k": first.top_k,
            "intermediate": first.intermediate,
            "shared_intermediate": first.shared_intermediate,
            "n_groups": first.router.n_groups,
        }
    return facts


def _attention(spec: ModelSpec) -> dict[str, Any]:
    """The sizes of each kind of attention; with several kinds, "attention" says how many layers have each."""
    kinds = Counter(layer.attention for layer in spec.layers)
    if len(kinds) == 1:
        return dict(spec.layers[0].attention.facts)
    facts: dict[str, Any] = {"attention": [f"{kind.facts['attention']} in {n} layers" for kind, n in kinds.items()]}
    for kind in kinds:
        short = str(kind.facts["attention"]).rpartition("(")[2].strip(")").lower()
        facts |= {f"{short}_{name}": value for name, value in kind.facts.items() if name != "attention"}
    return facts


def _footprint(spec: ModelSpec, context: int) -> dict[str, Any]:
    size = footprint(spec)
    facts: dict[str, Any] = {
        "total_params": size.total_params,
        "active_params": size.active_params,
        "n_experts_in_all_layers": size.n_experts_in_all_layers,
        "expert_bytes": size.expert_bytes,
        "experts_bytes": size.experts_bytes,
    }
    facts |= {f"trunk_bytes_{kind}": value for kind, value in size.trunk_bytes.items()}
    facts |= {f"cache_bytes_per_token_{kind}": value for kind, value in size.cache_bytes_per_token.items()}
    if size.state_bytes:
        facts["recurrent_state_bytes"] = size.state_bytes
    facts["context"] = context
    facts["prefill_flops_per_token"] = prefill_flops_per_token(spec, context)
    facts["decode_flops_per_token"] = decode_flops_per_token(spec, context)
    facts["decode_flops_per_token_at_1"] = decode_flops_per_token(spec, 1)
    return facts


def _coverage(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Reads every header, so this also checks that the weights fit their config."""
    from earthshine.weights import Checkpoint

    shares = Checkpoint.open(folder, spec).coverage().shares
    return {f"{share.kind}_{share.format}": {"tensors": share.n_tensors, "bytes": share.nbytes} for share in shares}


def _require_place(folder: Path) -> None:
    """Reading all weights takes long, so a folder that can't hold their checksums is refused before."""
    if not has_weights(folder):
        raise UsageError(f"{folder} has no weights to make checksums of.")
    if folder.resolve() == GLEAM:
        raise UsageError(f"gleam is part of the installed package, which is not changed; copy {shown(folder)} first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{shown(folder)} can't be written, and checksums are kept beside the weights.")


def _hash(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Reads every weight once and writes checksums beside them, which later reads are compared with."""
    from earthshine.weights import Checkpoint, Reader, write_manifest

    checkpoint = Checkpoint.open(folder, spec)
    begun = time.perf_counter()
    done_bytes = 0
    with ProgressLine() as progress, Reader() as reader:

        def show(done: int, total: int) -> None:
            nonlocal done_bytes
            done_bytes = done
            progress.loading("weights", done, total)

        path = write_manifest(checkpoint, reader, show)
        reason = reader.reason
    return {
        "written": str(path),
        "bytes_hashed": done_bytes,
        "bytes_per_second": done_bytes / max(time.perf_counter() - begun, 1e-9),
        "reads": reason or "past the page cache",
    }


def _readable(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield f"{value['tensors']:,} tensors, {value['bytes']:,} B"
        yield format_bytes(value["bytes"])
    elif isinstance(value, list):
        yield ", ".join(str(item) for item in value)
    elif value is None:
        yield "none"
    else:
        yield f"{value:,.0f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        if "bytes" in name:
            yield format_bytes(value)
        elif "params" in name or "flops" in name:
            yield format_count(value)


def _label(name: str) -> str:
    for part, label in (
        ("trunk_bytes_", "bytes of the trunk and the embedding in"),
        ("cache_bytes_per_token_", "KV cache per token in"),
    ):
        if name.startswith(part) and name not in _LABELS:
            return f"{label} {name.removeprefix(part)}"
    kind, _, rest = name.partition("_")
    if kind in ("mla", "gqa", "kda"):  # where layers have attention of several kinds
        return f"{kind.upper()}: {_label(rest)}"
    return _LABELS.get(name, name.replace("_", " "))


def _show(report: Report, title: str, rows: dict[str, Any]) -> None:
    report.heading(title)
    report.columns((_label(name), *_readable(name, value)) for name, value in rows.items())
