"""What a worker script needs: its request in, one line of JSON out. Standard library alone, for any side's Python.

    python WORKER '{"what": "decode", "model": ..., ...}'

The last line on stdout is the answer: `seconds` (a list, one entry per piece of work) and `peak_bytes` (this process's
highest resident memory, mapped files included) at least. Whatever else is printed comes before it and is not read.
"""

import json
import sys
import time
import traceback
from pathlib import Path


def serve(kinds):
    """Answers the request in argv[1] by the function of its `what`, which takes the request (a dict) and returns a
    dict with `seconds`. A failure is answered too, as `failed`: the last line of its traceback, and exit code 1."""
    request = json.loads(sys.argv[1])
    try:
        answer = kinds[request["what"]](request)
    except BaseException as error:
        traceback.print_exc()
        answer = {"failed": traceback.format_exception_only(type(error), error)[-1].strip()}
    print(json.dumps({**memory(), **answer}), flush=True)
    sys.exit(1 if "failed" in answer else 0)


def memory():
    """`peak_bytes`, the highest resident memory so far; `anonymous_bytes`, the part of it now that is not a file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return {"peak_bytes": kib["VmHWM"] * 1024, "anonymous_bytes": kib["RssAnon"] * 1024}


def timed(work, repeats):
    """Seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def prompt(n_tokens, vocab_size, seed=0):
    """Token ids that are the same in every Python: a multiplicative sequence over the lower part of the vocabulary."""
    span = min(vocab_size, 2000) - 5
    state, ids = seed * 7919 + 12345, []
    for _ in range(n_tokens):
        state = (state * 1103515245 + 12345) % (1 << 31)
        ids.append(5 + (state >> 8) % span)
    return ids
