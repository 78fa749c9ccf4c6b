"""/metrics, and the files in `deploy` that read it: the scrape of Prometheus and the dashboard of Grafana."""

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from earthshine.net.access import make_access

from .serving import serving, until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_NAME = re.compile(r"\b(?:vllm|earthshine):\w+")


def samples_of(text):
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


@pytest.fixture(scope="module")
def scraped():
    """The text after a few requests, one of them refused."""
    with serving() as server:
        for prompt in ("a b c", "d", ""):
            httpx.post(f"{server.url}/v1/echo", json={"prompt": prompt})
        httpx.post(f"{server.url}/v1/echo", json={})
        until(lambda: sum("POST" in line for line in server.lines) == 4)
        return httpx.get(f"{server.url}/metrics").text


def test_every_metric_of_the_dashboard_exists(scraped):
    there = {sample.name for sample in samples_of(scraped)}
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in _NAME.findall(target["expr"])}
    assert len(asked) > 25
    assert asked <= there
    exprs = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(expr.count("(") == expr.count(")") for expr in exprs)


def test_the_dashboard_asks_by_labels_that_exist(scraped):
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = {(name, label) for panel in board["panels"] for target in panel["targets"]
             for name, label in re.findall(r"((?:vllm|earthshine):\w+)\{(\w+)=~", target["expr"])}  # fmt: skip
    labels = {(sample.name, label) for sample in samples_of(scraped) for label in sample.labels}
    assert asked
    assert asked <= labels
    (model,) = [each["query"] for each in board["templating"]["list"] if each["name"] == "model"]
    assert re.fullmatch(r"label_values\((.+), (.+)\)", model).groups() in labels


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)


def test_times_of_requests_have_vllms_names(scraped):
    sums = {sample.name: sample.value for sample in samples_of(scraped)}
    for name in ("queue", "prefill", "decode", "inference"):
        assert sums[f"vllm:request_{name}_time_seconds_count"] == 2, "those that had a prompt"
    whole = sums["vllm:request_prefill_time_seconds_sum"] + sums["vllm:request_decode_time_seconds_sum"]
    assert sums["vllm:request_inference_time_seconds_sum"] == pytest.approx(whole)
    assert sums["vllm:request_prompt_tokens_sum"] == 4


def test_no_series_says_when_another_was_created(scraped):
    assert "_created" not in scraped


def test_the_example_scrapes_a_server_with_a_key(tmp_path):
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8000"], "where `earthshine serve` listens by default"
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    keys.chmod(0o600)
    with serving(access=make_access("127.0.0.1", keys)) as server:
        url = f"{job['scheme']}://127.0.0.1:{server.port}{job['metrics_path']}"
        kind = job["authorization"]["type"]
        answer = httpx.get(url, headers={"authorization": f"{kind} {keys.read_text()}"})
        assert (answer.status_code, httpx.get(url).status_code) == (200, 401)
        assert samples_of(answer.text)
