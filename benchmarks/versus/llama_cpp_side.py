"""llama.cpp as a worker, through llama-cpp-python's low-level functions, so that each llama_decode is timed by itself.

Request, in addition to the measurement's: model (a GGUF file), threads, load ("none", "mmap" or "direct"), repack,
ubatch, flash (all but model optional). See worker.py for the protocol, versus_llama_cpp.py for the measurements.
"""

import ctypes
import logging
import os
import struct
import time

import llama_cpp as llama
import numpy as np
from worker import prompt, serve

LOAD = {
    "none": llama.LLAMA_LOAD_MODE_NONE,
    "mmap": llama.LLAMA_LOAD_MODE_MMAP,
    "direct": llama.LLAMA_LOAD_MODE_DIRECT_IO,
}
_HEADER, _CELL, _BODY, _LAYER = (
    struct.Struct("<IiII"),
    struct.Struct("<iIi"),
    struct.Struct("<II"),
    struct.Struct("<iQ"),
)
_F16 = 1


class Model:
    """A loaded model with one context; tokens go in, greedy tokens come out."""

    def __init__(self, request, context_tokens, every=False):
        if not os.path.isfile(request["model"]):
            raise ValueError(f"{request['model']} is not a file")
        began = time.perf_counter()
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.load_mode = LOAD[request.get("load", "mmap")]
        options.use_extra_bufts = request.get("repack", True)
        self._model = llama.llama_model_load_from_file(request["model"].encode(), options)
        if not self._model:
            raise ValueError("llama.cpp did not load the model")
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        settings = llama.llama_context_default_params()
        settings.n_ctx = -(-context_tokens // 256) * 256
        settings.n_batch = max(context_tokens, 32)
        settings.n_ubatch = min(request.get("ubatch", 512), settings.n_batch)
        settings.n_outputs_max = 0 if every else 1  # room for logits: 0 is a row for every token of a batch
        settings.n_threads = settings.n_threads_batch = request["threads"]
        settings.flash_attn_type = {True: 1, False: 0}.get(request.get("flash"), -1)
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            raise ValueError("llama.cpp did not make a context")
        self.load_seconds = time.perf_counter() - began

    def feed(self, ids):
        """One llama_decode; the logits of the last token, float32 [vocab]."""
        tokens = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(self._context, llama.llama_batch_get_one(tokens, len(ids))):
            raise ValueError("llama_decode failed")
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, -1), (self.vocab_size,))

    def every(self, ids):
        """Logits of every token, float32 [len(ids), vocab]."""
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama.llama_decode(self._context, batch):
            raise ValueError("llama_decode failed")
        rows = [llama.llama_get_logits_ith(self._context, i) for i in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def fabricate(self, n_tokens, seed=0):
        """A state of `n_tokens` cells of random latents, set as if they had been computed.

        Grown from the state of one computed token, whose layout is checked first: a header, a cell's position and
        sequence, then every layer's rows of float16. The rows are normal with the spread of the computed row, as
        large in the 512 latents as in the 64 rotated ones.
        """
        self.clear()
        self.feed([7])
        one = self._state()
        magic, sequence, streams, cells = _HEADER.unpack_from(one)
        transposed, layers = _BODY.unpack_from(one, _HEADER.size + _CELL.size)
        at = _HEADER.size + _CELL.size + _BODY.size
        kind, row = _LAYER.unpack_from(one, at)
        known = (streams, cells, kind) == (1, 1, _F16) and len(one) == at + layers * (_LAYER.size + row)
        if not known:
            raise ValueError("this llama.cpp keeps its state in another layout than the one known here")
        generator = np.random.default_rng(seed)
        parts = [_HEADER.pack(magic, sequence, 1, n_tokens)]
        parts += [_CELL.pack(i, 1, sequence) for i in range(n_tokens)]
        parts.append(_BODY.pack(transposed, layers))
        for layer in range(layers):
            begin = at + layer * (_LAYER.size + row) + _LAYER.size
            spread = np.frombuffer(one, np.float16, row // 2, begin).astype(np.float32).std()
            values = generator.standard_normal((n_tokens, row // 2), np.float32) * spread
            parts += [_LAYER.pack(kind, row), values.astype(np.float16).tobytes()]
        grown = b"".join(parts)
        self.clear()
        buffer = (ctypes.c_uint8 * len(grown)).from_buffer_copy(grown)
        if not llama.llama_state_seq_set_data(self._context, buffer, len(grown), 0):
            raise ValueError("llama.cpp refused the synthetic state")

    def _state(self):
        size = llama.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = llama.llama_state_seq_get_data(self._context, buffer, size, 0)
        return bytes(buffer)[:written]


def decode(request):
    context, tokens, warm = request.get("context", 0), request["tokens"], request.get("warm", 4)
    model = Model(request, max(context, request.get("touch", 0), 16) + warm + tokens + 16)
    if request.get("touch"):
        model.feed(prompt(request["touch"], model.vocab_size, 1))
    model.clear()
    if context and not request.get("computed"):
        model.fabricate(context)
        token = 11
    else:
        token = int(model.feed(prompt(context or 16, model.vocab_size)).argmax())
    seconds = []
    for _ in range(warm + tokens):
        began = time.perf_counter()
        token = int(model.feed([token]).argmax())
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[warm:], "load_seconds": model.load_seconds}


def whole_prompt(request):
    tokens, repeats = request["tokens"], request.get("repeats", 1)
    model = Model(request, tokens + 16)
    ids, seconds = prompt(tokens, model.vocab_size, request.get("seed", 0)), []
    warm = 0 if request.get("cold") else 1
    if warm:
        model.feed(prompt(min(tokens, request.get("touch", 512)), model.vocab_size, 1))
    for _ in range(repeats):
        model.clear()
        began = time.perf_counter()
        model.feed(ids).argmax()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "load_seconds": model.load_seconds}


def logits(request):
    """Logits of every position of a prompt, into the file `out`; then `steps` greedy tokens."""
    tokens, steps = request["tokens"], request.get("steps", 16)
    model = Model({**request, "ubatch": tokens}, tokens + steps + 16, every=True)
    ids = prompt(tokens, model.vocab_size, request.get("seed", 0))
    rows = model.every(ids)
    np.save(request["out"], rows)
    greedy = [int(rows[-1].argmax())]
    while len(greedy) < steps:
        greedy.append(int(model.feed([greedy[-1]]).argmax()))
    return {"seconds": [model.load_seconds], "greedy": greedy}


def about(request):
    """What was compiled in, in llama.cpp's own words."""
    return {"seconds": [0.0], "built": llama.llama_print_system_info().decode(), "version": llama.__version__}


if __name__ == "__main__":
    logging.getLogger("llama-cpp-python").setLevel(logging.WARNING)
    serve({"decode": decode, "prompt": whole_prompt, "logits": logits, "about": about})
