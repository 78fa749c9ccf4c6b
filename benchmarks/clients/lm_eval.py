"""lm-evaluation-harness (`pip install 'lm_eval[api]' transformers`): a log-likelihood task and a generating one.

The tasks are local, and nothing is fetched. Log-likelihoods must be the same with one request at once and with eight.
"""

import json
import tempfile
from pathlib import Path

from outcome import Check, Done, Server, command

PROGRAM = "lm-eval/bin/lm-eval"
INSTALL = "pip install 'lm_eval[api]' transformers"
_TASKS = Path(__file__).parent / "tasks"
_SECONDS = 600


def check(program: Path, server: Server) -> list[Check]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for task in _TASKS.glob("*.yaml"):
            (place / task.name).write_text(task.read_text().replace("ROWS", str(_TASKS / "rows.jsonl")))
        alone, scores = _likelihood(program, server, place, 1)
        together, again = _likelihood(program, server, place, 8)
        same = bool(scores) and scores == again
        answered = _run(program, server, place, "earthshine_answer", 4)
        accuracy = _metric(place / "earthshine_answer4", "exact_match,none")
    return [
        Check("lm-eval", "log-likelihoods", bool(scores), f"{len(scores)} of them" if scores else alone.end),
        Check("lm-eval", "the same, eight at once", same, "equal to the last digit" if same else together.end),
        Check(
            "lm-eval",
            "generation",
            accuracy is not None,
            answered.end if accuracy is None else f"accuracy {accuracy:.3f}",
        ),
    ]


def _likelihood(program: Path, server: Server, place: Path, at_once: int) -> tuple[Done, list[float]]:
    """The log-likelihood of every choice of every row; none where the run failed."""
    done = _run(program, server, place, "earthshine_likelihood", at_once)
    rows = sorted(
        (row["doc_id"], [float(answer[0]) for answer in row["filtered_resps"]])
        for path in (place / f"earthshine_likelihood{at_once}").rglob("samples_*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    )
    return done, [score for _, scores in rows for score in scores]


def _run(program: Path, server: Server, place: Path, task: str, at_once: int) -> Done:
    model = (
        f"model={server.model},base_url={server.url}/v1/completions,num_concurrent={at_once},max_retries=1,"
        f"tokenizer_backend=huggingface,tokenizer={server.tokenizer},max_length={min(server.context_tokens, 2048)}"
    )
    words = [program, "run", "--model", "local-completions", "--model_args", model, "--tasks", task, "--log_samples"]
    words += ["--include_path", place, "--output_path", place / f"{task}{at_once}"]
    return command(words, _SECONDS, {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})


def _metric(folder: Path, name: str) -> float | None:
    for path in folder.rglob("results_*.json"):
        for values in json.loads(path.read_text())["results"].values():
            return float(values[name])
    return None
