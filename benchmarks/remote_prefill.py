"""Time to the first token of a prompt that a worker prefills: its cache sent layer by layer, or all of it at the end.

    python benchmarks/remote_prefill.py --layers 24 --tokens 2048 --rounds 5

A seeded model of many small layers runs in a worker process and here. Between them is a relay that lets through as many
bytes per second as make the transfer take as long as the prefill, which is measured first. Both ways alternate, each
round with a new prompt. Both end with the same reply. Ends with one line of JSON.
"""

import argparse
import json
import queue
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from result_rows import result_rows

from earthshine.engine import Engine, Finished, Request, SamplingParams, TokenEvent, load_model
from earthshine.net.listen import ListenOptions
from earthshine.plan import PlanArgs
from earthshine.prfaas.client import RemotePrefill
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.live import LiveFleet
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.wire import PrefillPeer, WireServer
from earthshine.prfaas.worker import PrefillWorker

VOCAB = 512
PARAMS = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROFILE = Profile("a benchmark", "Nothing is known.", Curve(((1.0, 600.0),)), Curve(((1.0, 1.0),)), None, 0, False, 0.0)
STEP_BYTES = 1 << 16


def config(n_layers: int, context: int) -> dict[str, Any]:
    """Latent attention of Kimi-K2's width in narrow layers."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
        "attention_bias": False, "bos_token_id": 0, "eos_token_id": VOCAB - 1, "first_k_dense_replace": 1,
        "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 1024, "kv_lora_rank": 512,
        "max_position_embeddings": context, "moe_intermediate_size": 256, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": 16, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 8,
        "num_experts_per_tok": 4, "num_hidden_layers": n_layers, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 0, "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
        "v_head_dim": 64, "vocab_size": VOCAB,
    }  # fmt: skip


def synthesized(folder: Path, described: dict[str, Any]) -> Path:
    """A seeded model of that config in a folder below."""
    like, tool = folder / "config.json", Path(__file__).resolve().parent.parent / "tools" / "synthesize.py"
    like.write_text(json.dumps(described))
    subprocess.run([sys.executable, tool, folder / "model", "--like", like], check=True, stdout=sys.stderr)
    return folder / "model"


class AtEnd(PrefillWorker):
    """Sends nothing before everything is computed."""

    def _send(self, request: Any, export: Any, out: Any) -> None:
        held, items = export.items, SimpleQueue[Any]()
        while True:
            items.put(item := held.get())
            if isinstance(item, Finished):
                break
        export.items = items
        super()._send(request, export, out)


def serve(folder: Path, context: int) -> None:
    """The worker process: a port for each way, over one engine."""
    model = load_model(folder, PlanArgs(context_tokens=context, batch=2))
    engine, log = Engine(model), lambda name, columns, fields: None
    ways = [kind(engine, most_waiting=8, log=log) for kind in (PrefillWorker, AtEnd)]
    wires = [WireServer(ListenOptions(port=0), way, fingerprint=model.fingerprint) for way in ways]
    print(*(wire.port for wire in wires), flush=True)
    sys.stdin.read()


class Relay:
    """Carries connections to `target` at `rate` bytes per second in all."""

    def __init__(self, target: int, rate: float) -> None:
        self._target, self._rate = target, rate
        self._lock, self._free = threading.Lock(), 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._carry, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, True), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, limited: bool) -> None:
        while data := source.recv(STEP_BYTES):
            if limited:
                with self._lock:
                    now = time.monotonic()
                    self._free = max(now, self._free) + len(data) / self._rate
                    free = self._free
                time.sleep(max(0.0, free - now))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


class Here:
    """The engine of this process, with a peer for each way."""

    def __init__(self, folder: Path, context: int) -> None:
        self._model = load_model(folder, PlanArgs(context_tokens=context, batch=2))
        self._engine = Engine(self._model)
        self.lines: SimpleQueue[Any] = SimpleQueue()

    def first_token(self, port: int, tokens: list[int]) -> tuple[float, list[Any], dict[str, Any]]:
        """Seconds, the reply, and the line of the log."""
        url = f"earthshine+plain://127.0.0.1:{port}"
        peer = PrefillPeer(url)
        fleet = LiveFleet(PROFILE, {url: PROFILE}, {url: 1e9}, self._engine.context_tokens)
        log = lambda name, columns, fields: self.lines.put(fields)  # noqa: E731
        remote = RemotePrefill(self._engine, {url: peer}, fleet, log, PROFILE, above=0)
        events: SimpleQueue[Any] = SimpleQueue()
        began, first, reply = time.monotonic(), 0.0, []
        remote.submit(Request(tokens, PARAMS, f"tenant {random.random()}"), events.put)
        while not isinstance(event := events.get(timeout=600), Finished):
            if isinstance(event, TokenEvent):
                first = first or time.monotonic() - began
                reply.append((event.token, event.logprob))
        peer.close()
        line = self.lines.get(timeout=600)
        assert line["end"] == "whole", line
        return first, reply, line

    def alone(self, tokens: list[int]) -> list[Any]:
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._engine.submit(Request(tokens, PARAMS, f"alone {random.random()}"), events.put)
        reply = []
        while not isinstance(event := events.get(timeout=600), Finished):
            if isinstance(event, TokenEvent):
                reply.append((event.token, event.logprob))
        return reply


def measure(options: argparse.Namespace, here: Here, ports: list[int]) -> dict[str, Any]:
    draw = random.Random(options.seed)

    def prompt() -> list[int]:
        return [draw.randrange(VOCAB - 1) for _ in range(options.tokens)]

    here.first_token(ports[0], prompt())  # what only the first one costs
    free = [here.first_token(ports[0], prompt()) for _ in range(options.rounds)]
    seconds = statistics.median(line["seconds"] for _, _, line in free)
    nbytes = free[0][2]["received_bytes"]
    relays = [
        subprocess.Popen([sys.executable, __file__, "--relay", str(port), str(nbytes / seconds)],
                         stdout=subprocess.PIPE, text=True)
        for port in ports
    ]  # fmt: skip
    try:
        shaped = [int(relay.stdout.readline()) for relay in relays if relay.stdout is not None]
        found: dict[str, list[float]] = {"streamed": [], "at_end": []}
        for _ in range(options.rounds):
            tokens = prompt()
            replies = [here.alone(tokens)]
            for name, port in zip(found, shaped, strict=True):
                first, reply, _ = here.first_token(port, tokens if name == "streamed" else prompt_like(tokens))
                found[name].append(first)
                if name == "streamed":
                    replies.append(reply)
            assert replies[0] == replies[1], "the reply differs from the one alone"
    finally:
        for relay in relays:
            relay.kill()
    ratios = [one / other for one, other in zip(found["streamed"], found["at_end"], strict=True)]
    size = f"{options.layers} layers, {options.tokens} tokens"
    return {"rows": result_rows({
        f"first token over sending at the end, {size}": ratios,
        f"first token, sent layer by layer, {size} (s)": found["streamed"],
        f"first token, sent at the end, {size} (s)": found["at_end"],
        f"prefill and transfer without a limit, {size} (s)": [line["seconds"] for _, _, line in free],
        f"rate of the link, {size} (MB/s)": [nbytes / seconds / 1e6],
    })}  # fmt: skip


def prompt_like(tokens: list[int]) -> list[int]:
    """As long, but with nothing in the worker's cache."""
    return [(token + 1) % (VOCAB - 1) for token in tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--relay", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(Path(options.worker[0]), int(options.worker[1]))
    elif options.relay:
        relay = Relay(int(options.relay[0]), float(options.relay[1]))
        print(relay.port, flush=True)
        relay.run()
    else:
        context = options.tokens + 256
        with tempfile.TemporaryDirectory() as folder:
            model = synthesized(Path(folder), config(options.layers, context))
            worker = subprocess.Popen([sys.executable, __file__, "--worker", str(model), str(context)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
            assert worker.stdout is not None
            try:
                ports = list(map(int, worker.stdout.readline().split()))
                found = measure(options, Here(model, context), ports)
            finally:
                worker.kill()
        print(json.dumps(found))


if __name__ == "__main__":
    main()
