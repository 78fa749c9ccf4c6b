"""Kimi Vendor Verifier's tool schemas against a running server: each forced as a tool, streamed and not, and the
arguments validated against the schema by the jsonschema package.

git clone https://github.com/MoonshotAI/Kimi-Vendor-Verifier CHECKOUT
python benchmarks/clients/kimi_verifier.py URL CHECKOUT

Needs the packages openai and jsonschema. Cases, requests and verdicts are the checkout's own, from
tests/tool_call_json_schema; the schemas that its own run leaves out are sent too, and counted apart. The same run
by its own means: pytest tests/tool_call_json_schema --base-url URL/v1 --api-key none --smoke-model MODEL, in CHECKOUT.
The exit code is 1 where a case of the verifier's own run failed.
"""

import argparse
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

_AT_ONCE = 8
_MAX_TOKENS = 2048  # the verifier's own
_Case = tuple[Any, Any, str | None]  # its case, the schema, why it was chosen


def _client(url: str) -> Any:
    return importlib.import_module("openai").OpenAI(base_url=url, api_key="none", timeout=600)


def _verdict(
    verifier: Any, client: Any, model: str, asked: tuple[tuple[Any, Any, str | None], str]
) -> tuple[bool, str]:
    (case, schema, reason), mode = asked
    found = verifier.evaluate_case(
        client, model, case, schema, reason or "", _MAX_TOKENS, False, "kimi", mode=mode
    )  # thinking off, in Kimi's own field
    return found.status == "passed", f"{verifier.case_id(case)} {mode}: {found.status}: {found.message}"


def _cases(verifier: Any) -> list[_Case]:
    """All that can be sent, each as the arguments of a tool; None for a reason: the verifier's run leaves it out."""
    found = []
    for case in verifier.load_cases(verifier.DEFAULT_CASE_DIR):
        schema, reason = verifier.classify_case(case)
        if schema is None:
            sendable, schema, _ = verifier.parse_for_transport(case)
            if not sendable:
                continue
            schema = verifier.strip_keyword_recursive(verifier.wrap_schema_as_parameter_property(schema), "default")
            reason = None
        found.append((case, schema, reason))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout.resolve()))
    try:
        verifier = importlib.import_module("tests.tool_call_json_schema.validator")
    except ImportError as error:
        print(f"{arguments.checkout}: {error}", file=sys.stderr)
        return 2
    client = _client(f"{arguments.url.rstrip('/').removesuffix('/v1')}/v1")
    model = client.models.list().data[0].id
    cases = _cases(verifier)
    n_failed = 0
    for what, own in (("the verifier's own run", True), ("what that leaves out", False)):
        asked = [(case, mode) for case in cases for mode in verifier.REQUEST_MODES if (case[2] is not None) is own]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            verdicts = list(pool.map(partial(_verdict, verifier, client, model), asked))
        for passed, verdict in verdicts:
            n_failed += own and not passed
            print("" if passed else f"FAILED  {verdict}\n", end="", flush=True)
        print(f"{what}: {sum(passed for passed, _ in verdicts)} of {len(asked)} passed", flush=True)
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
