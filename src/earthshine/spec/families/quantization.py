"""How a checkpoint stores its linear layers, from the quantization_config block of its config.json.

Three answers exist: bf16 throughout (no block), FP8 e4m3 in 128x128 blocks throughout (DeepSeek, Kimi-K2-Instruct),
and INT4 in groups of 32 for the routed experts alone (Kimi-K2-Thinking and later). A list of exceptions is judged by
what it says of the model's own modules: one that leaves them in another form is refused by the module's name. Every
other method, width or group is refused by name too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from earthshine.spec.families.modules import LAYERS, expert_module, expert_names, prefix_of, trunk_module
from earthshine.spec.families.patterns import (
    ANY,
    Either,
    End,
    Expression,
    One,
    PatternError,
    Patterns,
    Repeat,
    Row,
    State,
    literal,
    parse,
)
from earthshine.spec.families.reader import KeyReader, Problems
from earthshine.spec.layout import EXPERT_PARTS, moe_layers, trunk_tensors
from earthshine.spec.model import ModelSpec
from earthshine.storage import FP8_BLOCK, INT4_GROUP, Storage
from earthshine.untrusted import shown

_MOST_EXCEPTIONS = 4096  # entries; a list of each module of Kimi-K2.6 that stays in bf16 has 489
# compressed-tensors matches the classes of layers too, and every quantised layer is one of these.
_LAYER_CLASSES = frozenset(("Linear", "Module"))
_READABLE = "fp8 (e4m3 in 128x128 blocks), compressed-tensors (int4 in groups of 32) and no quantization_config (bf16)"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How linear layers are stored, and the modules that stay in bf16 by `key`: expressions and whole names."""

    trunk: Storage = Storage.BF16
    experts: Storage = Storage.BF16
    key: str = field(default="", compare=False)
    kept: tuple[Expression, ...] = field(default=(), repr=False)
    names: frozenset[str] = field(default=frozenset(), repr=False)


def read_quantization(keys: KeyReader) -> Quantization:
    """From `quantization_config` of `keys`; absent or null means bf16. `check_exceptions` must follow."""
    if not keys.has("quantization_config"):
        return Quantization()
    block = keys.block("quantization_config")
    method = block.raw("quant_method")
    if method == "fp8":
        return _read_fp8(block)
    if method == "compressed-tensors":
        return _read_int4(block)
    block.waive()
    block.problems.unsupported(_refused_method(block, method))
    return Quantization()


def check_exceptions(quantization: Quantization, model: ModelSpec, problems: Problems) -> None:
    """Refuse exceptions that keep a module in bf16 which the model holds quantised, or the other way round.

    Names are compared with and without the prefix of the family's text model, since both are found in lists.
    """
    if not quantization.key or problems:  # stand-ins have no modules
        return
    try:
        wrong = next(_contradictions(quantization, model), None)
    except PatternError as error:
        wrong = f"can't be read: {error}"
    if wrong is not None:
        problems.unsupported(f"{quantization.key} {wrong}")


def _contradictions(quantization: Quantization, model: ModelSpec) -> Iterator[str]:
    patterns, prefix = Patterns(quantization.kept), prefix_of(model.family)
    starts = {patterns.start, patterns.after(patterns.start, prefix)} if prefix else {patterns.start}
    only = f"only {model.expert_storage} of "
    trunk_in_bf16 = quantization.trunk is Storage.BF16
    for tensor in trunk_tensors(model):
        if not (tensor.linear or (tensor.name == "head" and trunk_in_bf16)):
            continue
        module = trunk_module(model.family, tensor.name)
        kept = not quantization.names.isdisjoint((module, prefix + module))
        kept = kept or any(patterns.matches(_read(patterns, start, module)) for start in starts)
        if kept and not trunk_in_bf16:
            yield f"keeps {prefix}{module} in bf16; {only}all linear layers is implemented"
        if trunk_in_bf16 and not kept:
            yield f"does not keep {prefix}{module} in bf16; {only}the routed experts is implemented"
    for module in chain(_named_experts(quantization.names, model), _matched_experts(patterns, starts, model)):
        yield f"keeps {prefix}{module} in bf16; {only}all routed experts is implemented"


def _named_experts(names: frozenset[str], model: ModelSpec) -> Iterator[str]:
    """Names that are those of routed experts' matrices."""
    layers, pattern = dict(moe_layers(model)), expert_names(model.family).pattern
    for name in sorted(names):
        found = pattern.fullmatch(name.removeprefix(prefix_of(model.family)))
        if found and int(found[1]) in layers and int(found[2]) < layers[int(found[1])].n_experts:
            yield found[0]


def _matched_experts(patterns: Patterns, starts: set[State], model: ModelSpec) -> Iterator[str]:
    """Modules of routed experts that the patterns match, from the states in which their names may begin."""
    published = expert_names(model.family)
    seen = set()  # after "experts." most layers are alike
    for layer, moe in moe_layers(model):
        for start in starts:
            state = _read(patterns, start, f"{LAYERS}{layer}.{published.module}")
            for expert in range(moe.n_experts) if state not in seen else ():
                at = patterns.after(state, f"{expert}.")
                for part in EXPERT_PARTS:
                    if patterns.matches(patterns.after(at, published.parts[part])):
                        yield expert_module(model.family, layer, expert, part)
            seen.add(state)


def _read(patterns: Patterns, state: State, name: str) -> State:
    """The state after a name, a piece between dots at a time, so that pieces are known by the next layer."""
    *pieces, last = name.split(".")
    for piece in pieces:
        state = patterns.after(state, piece + ".")
    return patterns.after(state, last) if last else state


def _refused_method(block: KeyReader, method: object) -> str:
    name = block.name("quant_method")
    if method == "modelopt":
        algorithm = block.raw("quant_algo")
        what = "NVFP4" if algorithm == "NVFP4" else "a modelopt format"
        return f"{name} is 'modelopt', and {what} weights are not implemented; those that are: {_READABLE}"
    state = f"is {shown(method)}, which" if block.given("quant_method") else "is missing; it"
    return f"{name} {state} names no implemented quantisation; those that are: {_READABLE}"


def _read_fp8(block: KeyReader) -> Quantization:
    block.equal("quant_method", "fp8")
    block.equal("fmt", "e4m3", None, optional=True)  # transformers writes none
    block.equal("activation_scheme", "dynamic")
    block.equal("weight_block_size", [FP8_BLOCK, FP8_BLOCK])
    # ue8m0 (DeepSeek-V3.1) means that the scales were rounded to powers of two; they are stored as f32 all the same.
    block.equal("scale_fmt", "float", "ue8m0", None, optional=True)
    block.equal("expert_dtype", "fp8", None, optional=True)
    key = "modules_to_not_convert"
    kept = _expressions(block, key, block.strings(key, _MOST_EXCEPTIONS), _boundary_match) if block.has(key) else ()
    return Quantization(Storage.FP8_BLOCK128, Storage.FP8_BLOCK128, block.name(key), kept)


def _read_int4(block: KeyReader) -> Quantization:
    block.equal("quant_method", "compressed-tensors")
    block.equal("format", "pack-quantized")
    block.equal("quantization_status", "compressed", optional=True)
    block.ignore(("version", "global_compression_ratio"))
    groups = block.block("config_groups").blocks()
    block.require(len(groups) == 1, f"{block.name('config_groups')} must hold exactly one group")
    for group in groups[1:]:
        group.waive()
    for group in groups[:1]:
        _check_group(group)
    # compressed-tensors' rule: a whole name or, after "re:", an expression for how it begins.
    entries = block.strings("ignore", _MOST_EXCEPTIONS)
    names = frozenset(entry for entry in entries if not entry.startswith("re:"))
    for entry in sorted(names & _LAYER_CLASSES):
        block.problems.unsupported(
            f"{block.name('ignore')} holds the layer class {entry}, which would leave all of them "
            "in bf16; name modules instead"
        )
    kept = _expressions(block, "ignore", [entry for entry in entries if entry not in names], _after_mark)
    return Quantization(Storage.BF16, Storage.INT4_GROUP32, block.name("ignore"), kept, names)


def _expressions(
    block: KeyReader, key: str, entries: list[str], read: Callable[[str], Expression]
) -> tuple[Expression, ...]:
    found = []
    for entry in entries:
        try:
            found.append(read(entry))
        except PatternError as error:
            block.problems.unsupported(f"{block.name(key)} holds {shown(entry)}, which can't be read: {error}")
    return tuple(found)


def _after_mark(entry: str) -> Expression:
    return parse(entry.removeprefix("re:"))


def _boundary_match(entry: str) -> Expression:
    """transformers' rule: an expression for how a name begins, up to a dot or its end, or plain text that ends it."""
    begins = parse(entry)
    if not entry.endswith("."):
        begins = Row((begins, Either((One(frozenset(".")), End()))))
    return Either((begins, Row((Repeat(ANY, 0, None), literal(entry), End()))))


def _check_group(group: KeyReader) -> None:
    group.equal("targets", ["Linear"])
    group.equal("format", "pack-quantized", None, optional=True)
    weights = group.block("weights")
    weights.equal("num_bits", 4)
    weights.equal("type", "int")
    weights.equal("strategy", "group")
    weights.equal("group_size", INT4_GROUP)
    weights.equal("symmetric", True)
    weights.equal("dynamic", False)
    weights.ignore(("observer", "observer_kwargs"))
