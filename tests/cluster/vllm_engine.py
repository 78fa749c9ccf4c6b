"""vLLM engines in processes of their own, in vLLM's environment; see `vllm_side.py`."""

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # a bound on a wait that should end at once; never a measure
VARIABLE = "EARTHSHINE_VLLM_PYTHON"


def transfer_config(role: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What makes vLLM load the connector, with its `settings`."""
    return {
        "kv_connector": "EarthshineConnector",
        "kv_connector_module_path": "earthshine.prfaas.vllm.connector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }


def vllm_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def vllm_python() -> str:
    """vLLM's Python; skips where it is not named, because these tests take minutes."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} names no Python with vLLM; `python benchmarks/vllm_environment.py FOLDER` makes one")
    return named


class VllmEngine:
    """Starts at once; `wait` returns when it is ready. `settings`: the connector's."""

    def __init__(self, folder: Path, log: Path, role: str, **settings: Any) -> None:
        given = {"model": str(folder), "transfer": transfer_config(role, settings), "options": {}}
        self._log = log
        command = [vllm_python(), str(Path(__file__).with_name("vllm_side.py")), json.dumps(given)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=vllm_environment(),
                text=True,
            )

    def wait(self) -> "VllmEngine":
        assert self._answer() == {"ready": True}
        return self

    def ask(self, prompt: list[int], max_tokens: int = 12, **more: Any) -> list[int]:
        """The greedy tokens. `held`: the prompt stays for a peer. `salt`: whose cache it uses."""
        self.send(prompt, max_tokens, **more)
        return self.tokens()

    def ask_all(self, prompts: list[list[int]], max_tokens: int = 12, **more: Any) -> list[list[int]]:
        """At once."""
        self._write([{"prompt": prompt, "max_tokens": max_tokens} | more for prompt in prompts])
        return [self.tokens() for _ in prompts]

    def send(self, prompt: list[int], max_tokens: int = 12, **more: Any) -> None:
        self._write({"prompt": prompt, "max_tokens": max_tokens} | more)

    def tokens(self) -> list[int]:
        answer = self._answer()
        assert answer["finish"] == "length", answer
        return answer["tokens"]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()  # which also closes its pipes

    def _write(self, asked: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        alarm = threading.Timer(SECONDS, self.process.kill)
        alarm.start()
        try:
            line = self.process.stdout.readline()
        finally:
            alarm.cancel()
        assert line, f"vLLM ended, or did not answer in {SECONDS:.0f} s:\n{self.log[-3000:]}"
        return json.loads(line)


class VllmServer:
    """vLLM's own HTTP server, which gives itself the prompts that peers ask for."""

    def __init__(self, folder: Path, log: Path, http_port: int, wire_port: int, model: str) -> None:
        self._log, self._url = log, f"http://127.0.0.1:{http_port}"
        settings = {"model": model, "listen": f"earthshine+plain://127.0.0.1:{wire_port}", "submit": self._url}
        options = {
            "model": folder, "host": "127.0.0.1", "port": http_port, "dtype": "bfloat16", "max-model-len": 2048,
            "max-num-seqs": 4, "distributed-executor-backend": "uni",
            "compilation-config": json.dumps({"custom_ops": ["all", "-rotary_embedding"]}),
            "kv-transfer-config": json.dumps(transfer_config("kv_producer", settings)),
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        server = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--skip-tokenizer-init", "--enforce-eager"]
        with log.open("w") as output:
            self.process = subprocess.Popen([*server, *words], stdout=output, stderr=output, env=vllm_environment())

    def wait(self) -> "VllmServer":
        end = time.monotonic() + SECONDS
        while not self.is_healthy():
            ended = self.process.poll() is not None or time.monotonic() > end
            assert not ended, f"vLLM's server did not start:\n{self._log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.2)
        return self

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self._url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def running(self) -> float:
        """Requests that vLLM has now."""
        text = httpx.get(f"{self._url}/metrics").text
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
