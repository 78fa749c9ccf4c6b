"""Rows that benchmarks print for docs/results: figures, units, and how they were measured."""

import subprocess

import result_rows


def test_names_end_in_their_unit():
    first, second = result_rows.result_rows({"decode (tokens/s)": [1, 2.34567, 3], "ratio": [0.5]})
    assert (first["what"], first["unit"], first["median"]) == ("decode", "tokens/s", 2.346)
    assert (first["low"], first["high"]) == (1, 3)
    assert second["what"] == "ratio"
    assert "unit" not in second


def test_command_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks/run.py", "--model", "a b"])
    assert result_rows.result_row("x", 1, 1, 1)["command"] == "python benchmarks/run.py --model 'a b'"


def test_commit_outside_a_checkout_is_not_recorded(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    result_rows.commit.cache_clear()
    try:
        assert result_rows.commit() == "not recorded"
    finally:
        result_rows.commit.cache_clear()
