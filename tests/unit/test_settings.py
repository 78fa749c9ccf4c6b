"""The environment as one frozen value; invalid variables are refused by name."""

import os
import pwd
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.settings import CPU_CHOICES, KERNEL_CHOICES, Settings, child_environment, expanded, read_settings


def test_nothing_set_is_the_defaults():
    assert read_settings({}) == Settings(kernels="auto", home=None, token=None)


def test_an_empty_variable_counts_as_unset():
    assert read_settings({"EARTHSHINE_KERNELS": "", "EARTHSHINE_HOME": "", "HF_TOKEN": " "}) == Settings()


@pytest.mark.parametrize("choice", KERNEL_CHOICES)
def test_each_permitted_choice_is_taken(choice):
    assert read_settings({"EARTHSHINE_KERNELS": choice}).kernels == choice


@pytest.mark.parametrize("choice", ["AUTO", "avx", "auto ", "reference,avx2"])
def test_another_choice_names_the_permitted_ones(choice):
    with pytest.raises(UsageError, match="permitted are auto, reference, portable, avx2, avx512"):
        read_settings({"EARTHSHINE_KERNELS": choice})


@pytest.mark.parametrize("choice", CPU_CHOICES)
def test_each_permitted_processor_is_taken(choice):
    assert read_settings({"EARTHSHINE_CPU": choice}).cpu == choice


@pytest.mark.parametrize("choice", ["reference", "AVX2", "haswell", "avx2 "])
def test_another_processor_names_the_permitted_ones(choice):
    with pytest.raises(UsageError, match=r"EARTHSHINE_CPU .* permitted are auto, portable, avx2, avx512, .*amx\."):
        read_settings({"EARTHSHINE_CPU": choice})


def test_home_may_be_new_and_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_settings({"EARTHSHINE_HOME": "~/models"}).home == tmp_path / "models"
    assert read_settings({"EARTHSHINE_HOME": "/srv/models"}).home == Path("/srv/models")


@pytest.mark.parametrize("home", ["models", "./models", "~no-such-person-here/models"])
def test_home_must_name_one_place(home):
    with pytest.raises(UsageError, match="EARTHSHINE_HOME"):
        read_settings({"EARTHSHINE_HOME": home})


def test_home_must_not_be_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        read_settings({"EARTHSHINE_HOME": str(tmp_path / "file")})


def test_the_token_is_taken_and_never_shown():
    settings = read_settings({"HF_TOKEN": "hf_secret\n"})
    assert settings.token == "hf_secret"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("token", ["hf secret", "hf\r\nX-Injected: 1", "hf_señor"])
def test_a_token_that_would_break_a_header_is_refused_without_showing_it(token):
    with pytest.raises(UsageError, match="HF_TOKEN") as refusal:
        read_settings({"HF_TOKEN": token})
    assert token not in str(refusal.value)


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Settings().kernels = "reference"


def test_this_process_is_read_by_default(monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", "portable")
    assert read_settings().kernels == "portable"


def test_the_profile_lies_in_the_folder_for_state(monkeypatch):
    assert read_settings({"XDG_STATE_HOME": "/srv/state"}).profile == Path("/srv/state/earthshine/machine.json")
    monkeypatch.setenv("HOME", "/home/me")
    expected = Path("/home/me/.local/state/earthshine/machine.json")
    assert Settings().profile == read_settings({"XDG_STATE_HOME": ""}).profile == expected
    assert read_settings({"XDG_STATE_HOME": "relative/state"}).profile == expected


def test_without_a_home_the_profile_has_no_place(monkeypatch):
    def unknown(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(UsageError, match="set XDG_STATE_HOME"):
        _ = Settings().profile
    assert read_settings({"XDG_STATE_HOME": "/srv"}).profile.is_relative_to("/srv")


def test_an_empty_home_counts_as_unset(monkeypatch):
    monkeypatch.delenv("HOME")
    unset = expanded("~/x")
    monkeypatch.setenv("HOME", "")
    assert unset == expanded("~/x") == expanded("~") / "x"
    settings = read_settings({"EARTHSHINE_HOME": "~/models"})
    assert settings.home == expanded("~/models")
    assert settings.profile == expanded("~/.local/state/earthshine/machine.json")
    assert settings.pages == expanded("~/.cache/earthshine/pages")
    assert read_settings({}).downloads == expanded("~/.cache/huggingface/hub")
    user = pwd.getpwuid(os.getuid())
    assert expanded("~/x") == Path(user.pw_dir, "x")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(UsageError, match="home folder is unknown"):
        _ = settings.profile


def test_child_process_gets_only_the_path_of_libraries(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    assert child_environment() == {"LD_LIBRARY_PATH": "/opt/python/lib"}
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert child_environment() == {}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/srv/cache"},
        {"HF_HOME": "/srv/hf", "HF_HUB_CACHE": "$HOME/hub"},
        {"HUGGINGFACE_HUB_CACHE": "/srv/old", "XDG_CACHE_HOME": "/srv/cache"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_downloads_go_where_the_downloader_puts_them(monkeypatch, variables):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "EARTHSHINE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "import huggingface_hub.constants as found; print(found.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(read_settings().downloads) == done.stdout.strip()
    assert read_settings({**variables, "EARTHSHINE_HOME": "/srv/own"}).downloads == Path("/srv/own")


def test_history_is_on_unless_it_is_switched_off():
    assert read_settings({}).history
    assert read_settings({"EARTHSHINE_HISTORY": "on"}).history
    assert not read_settings({"EARTHSHINE_HISTORY": "off"}).history
    with pytest.raises(UsageError, match="EARTHSHINE_HISTORY is '0'; permitted are on, off"):
        read_settings({"EARTHSHINE_HISTORY": "0"})
    assert read_settings({"XDG_STATE_HOME": "/s"}).history_file == Path("/s/earthshine/questions.jsonl")


@pytest.mark.parametrize(("term", "dumb"), [("", True), ("dumb", True), ("xterm-256color", False), ("linux", False)])
def test_a_terminal_without_a_name_is_dumb(term, dumb):
    assert read_settings({"TERM": term}).dumb_terminal is dumb
