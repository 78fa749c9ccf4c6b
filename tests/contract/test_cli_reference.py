"""docs/cli.md is the help that the commands print."""

import importlib.util

import pytest

from .source import ROOT


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


def test_page_is_what_the_commands_print(reference):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference, "the page is stale: run python tools/cli_reference.py"


def test_every_command_is_there(reference):
    for name in (
        "chat",
        "serve",
        "inspect",
        "score",
        "plan",
        "doctor",
        "list",
        "pull",
        "rm",
        "bench machine",
        "prfaas solve",
        "prfaas borrow",
        "prfaas profile",
        "prfaas simulate",
        "eval claims",
        "eval compare",
    ):
        assert f"## earthshine {name}\n\n```\nUsage: earthshine {name} " in reference
    assert "--max-stall" in reference
    assert "\x1b" not in reference
    assert max(map(len, reference.splitlines())) <= 120


def test_width_does_not_depend_on_the_terminal(reference, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    spec = importlib.util.spec_from_file_location("cli_reference_again", ROOT / "tools" / "cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.reference() == reference
