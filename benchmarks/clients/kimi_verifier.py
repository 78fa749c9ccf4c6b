"""Kimi Vendor Verifier's tool schemas against a running server: each forced as a tool, streamed and not, and the
arguments held against the schema by the jsonschema package.

git clone https://github.com/MoonshotAI/Kimi-Vendor-Verifier CHECKOUT
python benchmarks/clients/kimi_verifier.py URL CHECKOUT --also '{"frequency_penalty": 2}'

Needs the packages openai and jsonschema. Cases, requests and verdicts are the checkout's own, from
tests/tool_call_json_schema; --also adds fields to every request. A model of gleam's size that decodes greedily repeats
itself in texts and lists that its schema leaves open until max_tokens cuts it; a frequency penalty ends that, and
changes nothing about what the server allows. The exit code is 1 where a case failed.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

_AT_ONCE = 8
_MAX_TOKENS = 2048  # the verifier's own


def _client(url: str, also: dict[str, Any]) -> Any:
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=url, api_key="none", timeout=600)
    create: Callable[..., Any] = client.chat.completions.create

    def with_more(**fields: Any) -> Any:
        return create(**{**fields, "extra_body": fields.get("extra_body", {}) | also})

    client.chat.completions.create = with_more
    return client


def _verdict(verifier: Any, client: Any, model: str, asked: tuple[tuple[Any, Any, str], str]) -> tuple[bool, str]:
    (case, schema, reason), mode = asked
    found = verifier.evaluate_case(
        client, model, case, schema, reason, _MAX_TOKENS, False, "kimi", mode=mode
    )  # thinking off, in Kimi's own words
    return found.status == "passed", f"{verifier.case_id(case)} {mode}: {found.status}: {found.message}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path)
    parser.add_argument("--also", type=json.loads, default={}, help="fields of every request, as JSON")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout.resolve()))
    try:
        verifier = importlib.import_module("tests.tool_call_json_schema.validator")
    except ImportError as error:
        print(f"{arguments.checkout}: {error}", file=sys.stderr)
        return 2
    client = _client(f"{arguments.url.rstrip('/').removesuffix('/v1')}/v1", arguments.also)
    model = client.models.list().data[0].id
    cases = verifier.select_cases(
        verifier.load_cases(verifier.DEFAULT_CASE_DIR), selection="all", requested_cases=set(), max_cases=None
    )
    asked = [(case, mode) for case in cases for mode in verifier.REQUEST_MODES]
    n_passed = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for passed, said in pool.map(partial(_verdict, verifier, client, model), asked):
            n_passed += passed
            if not passed:
                print(f"FAILED  {said}", flush=True)
    print(f"{n_passed} of {len(asked)} passed: {len(cases)} schemas, each in {' and '.join(verifier.REQUEST_MODES)}")
    return int(n_passed < len(asked))


if __name__ == "__main__":
    sys.exit(main())
