"""Sends a running server thousands of requests made from its own /openapi.json, sound ones and broken ones.

python benchmarks/clients/fuzz.py URL        # schemathesis must be installed in this Python's environment

Twice: with the document as it is published, where most requests are refused, and with one that is narrowed so that most
are computed. Nothing may be answered with 5xx, outside of what the document says, or not at all; afterwards the server
must still answer. The exit code is 1 otherwise. Each finding comes with a curl command.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_ANSWER_SECONDS = 60
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What the server refuses by its meaning, which a schema does not express; the first pass covers it.
_REFUSED = ("audio", "background", "best_of", "chat_template", "conversation", "function_call", "functions",
            "logit_bias", "modalities", "previous_response_id", "prompt_logprobs", "stop_token_ids", "suffix",
            "truncate_prompt_tokens", "use_beam_search", "web_search_options")  # fmt: skip
_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": ["user"]}, "content": _TEXT},
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}


def narrowed(document: dict[str, Any], model: str) -> dict[str, Any]:
    """The document with short replies of the model that is there, and without what is never computed."""
    document = copy.deepcopy(document)
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties", {})
        if not name.endswith("Body") or "model" not in fields:
            continue
        for refused in _REFUSED:
            fields.pop(refused, None)
        if name == "ResponsesBody":
            fields.pop("prompt", None)
            fields["input"] = _TEXT
        elif "prompt" in fields:
            fields["prompt"] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2}]}
        if "messages" in fields:
            fields["messages"] = _MESSAGES
        if "n" in fields:
            fields["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        fields["model"] = {"enum": [model]}
        lengths = [length for length in _LENGTHS if length in fields]
        for length in lengths:
            fields[length] = {"type": "integer", "minimum": 1, "maximum": 16}
        fields.pop("min_tokens", None)
        schema["required"] = sorted({*schema.get("required", ()), "model", *lengths})
        schema["additionalProperties"] = False
    return document


def _run(document: dict[str, Any], url: str, examples: int, workers: int, seed: int) -> tuple[int, int, str]:
    """(exit code, requests sent, output)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "openapi.json"
        place.write_text(json.dumps(document))
        words = [Path(sys.executable).with_name("schemathesis"), "run", place, "--url", url, "--checks", CHECKS]
        words += ["--phases", "coverage,fuzzing", "-n", examples, "--workers", workers, "--seed", seed, "--no-color"]
        words += ["--request-timeout", _ANSWER_SECONDS, "--continue-on-failure", "--warnings", "off"]
        words += ["--generation-database", "none", "--output-sanitize", "false"]
        done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True, check=False)
    found = re.search(r"([0-9]+) generated", done.stdout)
    return done.returncode, int(found[1]) if found else 0, done.stdout + done.stderr


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
        return json.load(answer)


def _alive(url: str, model: str) -> str | None:
    """None, or why the server no longer answers."""
    body = {"model": model, "prompt": "List the files.", "max_tokens": 4}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return None if json.load(answer)["choices"] else "it answers without choices"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument(
        "--examples", type=int, default=100, help="per route and pass, on top of those that cover the schema"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    url = arguments.url.rstrip("/")
    try:
        document, model = _get(f"{url}/openapi.json"), _get(f"{url}/v1/models")["data"][0]["id"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        print(f"{url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    sent, failed = 0, False
    for what, described in (("as published", document), ("narrowed", narrowed(document, model))):
        code, cases, output = _run(described, url, arguments.examples, arguments.workers, arguments.seed)
        print(f"{what}: {cases} requests, {'nothing found' if code == 0 else 'FAILED'}", flush=True)
        if code:
            print(output, flush=True)
        sent, failed = sent + cases, failed or code != 0
    problem = _alive(url, model)
    print(f"{sent} requests in all; afterwards the server {problem or 'answers'}")
    return int(failed or problem is not None)


if __name__ == "__main__":
    sys.exit(main())
