"""`kimi_k25`: Kimi-K2.5, K2.6 and K2.7-Code, whose text model is DeepSeek-V3's decoder under `text_config`.

Text only: the vision tower and its projector are not part of the ModelSpec, and their keys beside `text_config` are
ignored. Token ids, dtype and quantisation may be given at either level; if both have them, they must agree, but
stop tokens are united.
"""

from earthshine.spec.families.deepseek import read_decoder, read_tokens
from earthshine.spec.families.quantization import Quantization, check_exceptions, read_quantization
from earthshine.spec.families.reader import KeyReader
from earthshine.spec.model import ModelSpec

_IGNORED = (
    "_name_or_path",
    "auto_map",
    "ignore_index",
    "pad_token_id",
    "transformers_version",
    "use_unified_vision_chunk",
)
_VISION = ("image_", "media_", "mm_", "projection_", "projector_", "video_", "vision_")  # how its keys begin


def read_kimi_k25(config: dict[str, object]) -> ModelSpec:
    """The text model of a `kimi_k25` config. Raises SpecError or Unsupported, naming every wrong key."""
    top = KeyReader(config)
    top.equal("model_type", "kimi_k25")
    top.equal("architectures", ["KimiK25ForConditionalGeneration"], None, optional=True)
    top.equal("torch_dtype", "bfloat16", None, optional=True)
    top.equal("tie_word_embeddings", False, optional=True)
    text = top.block("text_config")
    text.equal("model_type", "kimi_k2", "deepseek_v3")
    quantization = _read_quantization(top, text)
    model = read_decoder(text, "kimi_k25", quantization, read_tokens("kimi_k25", text, top))
    check_exceptions(quantization, model, top.problems)
    top.ignore(_IGNORED)
    top.ignore_beginning(_VISION)
    top.finish()
    return model


def _read_quantization(top: KeyReader, text: KeyReader) -> Quantization:
    """Moonshot puts quantization_config inside text_config; re-exports put it at the top. Each is read for itself
    first, so that what is wrong with one is not taken for a difference."""
    levels = [level for level in (text, top) if level.has("quantization_config")]
    found = [read_quantization(level) for level in levels] or [Quantization()]
    top.require(
        found[0] == found[-1], "quantization_config and text_config.quantization_config differ; one of them must go"
    )
    return found[0]
