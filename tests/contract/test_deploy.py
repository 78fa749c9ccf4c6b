"""The unit, the image and the page on installation name options, commands and files that exist."""

import re
import shlex
import subprocess

import pytest
from typer.main import get_command

from earthshine.cli.app import app

from .source import ROOT

UNIT = (ROOT / "deploy" / "earthshine.service").read_text(encoding="utf-8")
IMAGE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def _options(command):
    return {name for parameter in get_command(app).commands[command].params for name in parameter.opts}


def test_the_unit_starts_serve_with_options_that_it_has():
    start = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1]
    used = re.findall(r"--[a-z-]+", start)
    assert "--drain-seconds" in used
    assert set(used) <= _options("serve")


def test_the_unit_passes_further_options_to_serve():
    program, flag, line = shlex.split(re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1])
    given = dict(re.findall(r"([A-Z]+)=(\S*)", re.search(r"^Environment=(EARTHSHINE.*)$", UNIT, re.MULTILINE)[1]))
    for options in ("", "--disk-cache 50GiB --context 65536"):
        environment = given | {"EARTHSHINE": "/bin/echo", "OPTIONS": options}
        printed = subprocess.run([program, flag, line], env=environment, capture_output=True, text=True, check=True)
        words = printed.stdout.split()
        assert words[:2] == ["serve", "gleam"]
        assert words[words.index("60") + 1 :] == options.split()


def test_the_settings_on_the_page_are_taken_by_the_unit():
    line = re.search(r"^\[Service\]\nEnvironment=(.*)$", PAGE, re.MULTILINE)[1]
    given = dict(each.split("=", 1) for each in shlex.split(line))
    known = re.search(r"^Environment=(EARTHSHINE.*)$", UNIT, re.MULTILINE)[1]
    assert set(given) <= set(re.findall(r"([A-Z]+)=", known))
    assert set(re.findall(r"--[a-z-]+", given["OPTIONS"])) <= _options("serve")


@pytest.mark.parametrize("fault", ["no program", "no interpreter", "no right"])
def test_the_unit_does_not_restart_for_ever_without_its_program(fault, tmp_path):
    program = tmp_path / "earthshine"
    if fault != "no program":
        program.write_text("#!/nonexistent/python\n" if fault == "no interpreter" else "#!/bin/sh\n")
        program.chmod(0o644 if fault == "no right" else 0o755)
    words = shlex.split(re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1])
    done = subprocess.run(words, env={"EARTHSHINE": str(program), "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert str(done.returncode) in re.search(r"^RestartPreventExitStatus=(.*)$", UNIT, re.MULTILINE)[1].split()


def test_the_unit_and_the_page_name_the_same_setting_for_models_in_a_home_folder():
    for text in (UNIT, PAGE):
        assert set(re.findall(r"ProtectHome=[a-z-]+", text)) - {"ProtectHome=yes"} == {"ProtectHome=read-only"}


def test_the_unit_waits_longer_than_serve_drains():
    drain = int(re.search(r"--drain-seconds (\d+)", UNIT)[1])
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1]) > drain


def test_the_image_runs_as_a_user_without_rights_and_has_its_checks():
    assert re.search(r"^USER 10001", IMAGE, re.MULTILINE)
    assert "/health" in IMAGE.partition("HEALTHCHECK")[2]
    assert re.search(r'^VOLUME \["/models", "/state"\]$', IMAGE, re.MULTILINE)
    assert len(re.findall(r"^FROM ", IMAGE, re.MULTILINE)) == 2


def test_the_health_check_has_only_options_that_docker_and_podman_share():
    """`--start-interval`, for one, fails a build with buildah 1.28."""
    used = re.findall(r"--[a-z-]+", IMAGE.partition("HEALTHCHECK")[2].partition("CMD")[0])
    assert used
    assert set(used) <= {"--interval", "--timeout", "--start-period", "--retries"}


def test_the_engine_of_docker_gets_what_the_build_needs():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    assert {"CMakeLists.txt", "LICENSE", "README.md", "native", "pyproject.toml", "src"} <= sent
    copied = {part for line in re.findall(r"^COPY (?!--from)(.*)$", IMAGE, re.MULTILINE) for part in line.split()[:-1]}
    assert copied - {"."} <= sent


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("earthshine ")])
def test_commands_of_the_installation_page_exist(line):
    words = shlex.split(line, comments=True)
    root = get_command(app)
    assert words[1] in root.commands or words[1] in {name for one in root.params for name in one.opts}


def test_targets_of_the_installation_page_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]*)", PAGE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
