"""Runs widely used clients against a running server and reports which of them work.

python benchmarks/clients/run.py URL --work FOLDER --tokenizer MODEL_FOLDER

Nothing is installed or started. FOLDER holds one environment per client: FOLDER/litellm, FOLDER/lm-eval and
FOLDER/guidellm made by `python -m venv`, FOLDER/npm by `npm install`. The exit code is 1 where a check failed, 2 where
none could be made.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import coding
import guidellm
import lm_eval
from outcome import Check, Server, command
from tokenizer import write_tokenizer

from earthshine.errors import EarthshineError

_LITELLM = "litellm/bin/python"
_SIDE = Path(__file__).with_name("ask_litellm.py")


def check_litellm(program: Path, server: Server) -> list[Check]:
    done = command([program, "-P", _SIDE, server.url, server.model, str(server.context_tokens)], 600)
    found = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    checks = [Check("litellm", line["what"], line["passed"], line["detail"]) for line in found]
    return checks if done.code == 0 and checks else [*checks, Check("litellm", "the run", False, done.end)]


@dataclass(frozen=True, slots=True)
class Client:
    """A program in the folder of environments, how to get it, and the context that it needs."""

    program: str
    install: str
    check: Callable[[Path, Server], list[Check]]
    least_context: int = 2048


CLIENTS = {
    "litellm": Client(_LITELLM, "pip install litellm mcp", check_litellm),
    "lm-eval": Client(lm_eval.PROGRAM, lm_eval.INSTALL, lm_eval.check),
    "guidellm": Client(guidellm.PROGRAM, guidellm.INSTALL, guidellm.check),
    "claude-code": Client(coding.CLAUDE, coding.INSTALL_CLAUDE, coding.check_claude, 65536),
    "codex": Client(coding.CODEX, coding.INSTALL_CODEX, coding.check_codex, 16384),
}


def _server(url: str, model: Path, work: Path) -> Server:
    url = url.rstrip("/").removesuffix("/v1")
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        served = json.load(answer)["data"][0]
    folder = work / "tokenizers" / model.resolve().name
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(model, folder)
    return Server(url, served["id"], served["max_model_len"], folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--work", type=Path, required=True, help="the clients' environments")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the served model's folder")
    parser.add_argument("--only", action="append", choices=CLIENTS, help="may be repeated")
    arguments = parser.parse_args()
    try:
        server = _server(arguments.url, arguments.tokenizer, arguments.work.resolve())
    except (OSError, ValueError, KeyError, IndexError, EarthshineError) as error:
        print(f"{arguments.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    checks: list[Check] = []
    for name in arguments.only or CLIENTS:
        client = CLIENTS[name]
        program = arguments.work.resolve() / client.program
        if not program.exists():
            print(f"{'not there':10} {name:12} {program}: {client.install}", flush=True)
            continue
        if server.context_tokens < client.least_context:
            print(f"{'left out':10} {name:12} it needs {client.least_context} tokens of context", flush=True)
            continue
        for found in client.check(program, server):
            checks.append(found)
            print(
                f"{'passed' if found.passed else 'FAILED':10} {found.client:12} {found.what:32} {found.detail}",
                flush=True,
            )
    print(f"{sum(found.passed for found in checks)} of {len(checks)} checks passed")
    return 2 if not checks else int(not all(found.passed for found in checks))


if __name__ == "__main__":
    sys.exit(main())
