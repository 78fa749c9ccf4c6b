"""The commands: what they print, where errors go, and the exit codes."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from earthshine import cli
from earthshine.cli.doctor import print_served, run_doctor
from earthshine.cli.layout import Report
from earthshine.engine import Session, load_model
from earthshine.hub import GLEAM
from earthshine.kernels import Implementation
from earthshine.machine import machine_json
from earthshine.machine.probe import identity
from earthshine.plan import PlanArgs
from earthshine.text import load_tokenizer

from .plans import MINI

RUN = [sys.executable, "-c", "from earthshine.cli import main; main()"]


def test_one_question_has_one_answer(earthshine):
    code, out, err = earthshine("chat", "-p", "hello")
    assert (code, err) == (0, "")
    assert out.startswith("Hello!")
    assert out.count("\n") == 1


def test_the_answer_is_cut_at_max_tokens_and_says_so(earthshine):
    code, out, err = earthshine("chat", "-p", "hello", "--max-tokens", 3)
    assert code == 0
    assert len(out) < 20
    assert "stopped after 3 tokens" in err


def test_a_stop_text_ends_the_answer_before_it(earthshine):
    whole = earthshine("chat", "-p", "hello")[1].strip()
    assert earthshine("chat", "-p", "hello", "--stop", "Tell")[1].strip() == whole.split("Tell")[0].strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature must be"),
        (["--top-p", "0"], "--top-p must be above 0"),
        (["--max-tokens", "0"], "--max-tokens must be"),
        (["--dtype", "fp8"], "fp8"),
        (["--stop", ""], "--stop must be up to 64 texts"),
        (["--context", "5000"], "5000"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_use_is_named_and_exits_2(earthshine, arguments, message):
    code, out, err = earthshine("chat", "-p", "hello", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_question_longer_than_the_context_is_refused(earthshine):
    code, out, err = earthshine("chat", "-p", "copy a file " * 3000)
    assert (code, out) == (1, "")
    assert "4096" in err


@pytest.mark.parametrize("model", ["no/such folder", "/nowhere/at/all", "config.json"])
def test_a_model_that_is_not_there_is_named(earthshine, model):
    code, _, err = earthshine("chat", model, "-p", "hello")
    assert code == 1
    assert model in err


def test_an_empty_question_is_wrong_use(earthshine):
    assert earthshine("chat", "-p", "  ")[0] == 2


def test_standard_input_is_one_question(earthshine, forker):
    done = forker.run([*RUN, "chat"], input=b"hello\n")
    assert done.returncode == 0
    assert done.stdout.decode() == earthshine("chat", "-p", "hello")[1]


def test_text_on_standard_input_comes_before_the_question(earthshine):
    code, out, _ = earthshine("chat", "-p", "explain", stdin=b"list\n\nfiles\n")
    assert code == 0
    assert out == earthshine("chat", "-p", "list\n\nfiles\n\nexplain")[1]
    assert out != earthshine("chat", "-p", "explain")[1]


def test_words_after_the_model_are_the_question(earthshine):
    code, out, err = earthshine("chat", "gleam", "list", "all", "files")
    assert (code, err) == (0, "")
    assert out == earthshine("chat", "-p", "list all files")[1]
    assert (
        earthshine("chat", "gleam", "explain", stdin=b"list files")[1]
        == earthshine("chat", "-p", "list files\n\nexplain")[1]
    )


def test_a_question_that_is_given_twice_is_refused(earthshine):
    code, out, err = earthshine("chat", "gleam", "hello", "-p", "hello")
    assert (code, out) == (2, "")
    assert "The question is given twice, after the model and with -p; leave one out." in err


@pytest.mark.parametrize("question", [["-p", "hello"], []])
def test_an_open_pipe_that_is_waited_for_is_named(forker, question):
    code = "from earthshine.cli import chat, main; chat._WAIT_SECONDS = 0.0; main()"
    process = forker.popen(
        [sys.executable, "-c", code, "chat", *question, "--max-tokens", "2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        said = process.stderr.readline()
        assert said.startswith(b"(reading standard input to its end, which ")
        assert (b"</dev/null gives none" in said) is bool(question)
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read().startswith(b"Hello")
    assert process.returncode == 0


def test_invalid_utf8_on_standard_input_is_named(earthshine):
    code, out, err = earthshine("chat", stdin=b"list files \xff\xfe")
    assert (code, out) == (1, "")
    assert "not UTF-8 text: byte 11" in err
    assert "Traceback" not in err


def test_a_closed_output_pipe_ends_without_a_traceback(forker):
    """`earthshine inspect | head -1`."""
    process = forker.popen([*RUN, "inspect"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(300) in (0, 1)


def test_a_terminal_holds_a_conversation(start):
    chat = start()
    chat.until_asked()
    for question, answer in (("hello\r", "Hello!"), ("who are you?\r", "I am gleam")):
        chat.type(question)
        chat.until(answer)
        chat.until_asked()
    chat.type("\x04")
    assert chat.end() == 0
    assert "Traceback" not in chat.shown


def test_inspect_reads_a_config_without_torch(shared_data):
    config = shared_data / "configs" / "moonshotai--Kimi-K2.6_config.json"
    code = (
        "import sys\nfrom earthshine.cli.inspect import run_inspect\n"
        f"run_inspect({str(config)!r}, 32768, True)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    facts = json.loads(done.stdout)["footprint"]
    assert facts["expert_bytes"] == 24_772_632
    assert facts["cache_bytes_per_token_bf16"] == 70_272
    assert facts["total_params"] == 1_026_408_232_448


def test_inspect_counts_every_tensor_of_gleam(earthshine):
    code, out, _ = earthshine("inspect", "--json")
    facts = json.loads(out)
    assert code == 0
    size = facts["footprint"]
    shares = facts["weights"]
    assert shares["experts_int4-g32"]["bytes"] == size["experts_bytes"]
    trunk = sum(share["bytes"] for name, share in shares.items() if name.startswith("trunk"))
    assert trunk == size["trunk_bytes_bf16"]


def test_inspect_prints_words_and_no_keys(earthshine):
    code, out, _ = earthshine("inspect")
    facts = json.loads(earthshine("inspect", "--json")[1])
    assert code == 0
    labels = [line.split("  ")[0] for line in out.splitlines() if line]
    del facts["summary"]  # in words of its own: five lines
    assert len(labels) == 5 + len(facts) + sum(map(len, facts.values()))
    assert not [label for label in labels if "_" in label]
    assert {"routed experts per token", "KV cache per token in bf16", "active parameters per token"} <= set(labels)


def test_inspect_names_a_config_it_can_not_read(earthshine, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "kimi_k3"}')
    code, _, err = earthshine("inspect", tmp_path)
    assert code == 1
    assert "kimi_k3" in err


def test_score_is_the_sum_of_its_tokens(earthshine, tmp_path):
    text = "List all files in a directory, then count them."
    (tmp_path / "text.txt").write_text(text)
    code, out, _ = earthshine("score", "gleam", tmp_path / "text.txt", "--json", "--dtype", "fp32")
    scored = json.loads(out)
    assert code == 0
    tokens = load_tokenizer(GLEAM).encode(text, allow_special=False)
    assert scored["token_ids"] == tokens
    expected = load_model(GLEAM, PlanArgs(dtype="fp32")).session(256).score(tokens)
    assert scored["logprobs"][0] is None
    assert scored["logprobs"][1:] == pytest.approx(expected.tolist(), abs=1e-5)
    total = sum(scored["logprobs"][1:])
    assert scored["log_likelihood"] == pytest.approx(total)
    assert scored["perplexity"] == pytest.approx(math.exp(-total / (len(tokens) - 1)))
    first = len(load_tokenizer(GLEAM).decode_bytes(tokens[:1]))
    assert scored["bits_per_byte"] == pytest.approx(-total / math.log(2) / (len(text) - first))


def test_score_of_a_long_text_runs_in_windows(earthshine, tmp_path):
    """Every token but the first is scored, in windows that share one token."""
    (tmp_path / "text.txt").write_text("print the working directory " * 20)
    _, out, _ = earthshine("score", "gleam", tmp_path / "text.txt", "--json", "--context", 16)
    scored = json.loads(out)
    assert scored["scored_tokens"] == scored["tokens"] - 1
    assert all(logprob < 0 for logprob in scored["logprobs"][1:])


@pytest.mark.parametrize(("raw", "code"), [(b"\xff", 1), (b"", 2)])
def test_score_refuses_bytes_that_are_not_text(earthshine, tmp_path, raw, code):
    (tmp_path / "text.txt").write_bytes(raw)
    assert earthshine("score", "gleam", tmp_path / "text.txt")[0] == code


def test_doctor_names_what_serves_each_operation(earthshine):
    code, out, _ = earthshine("doctor")
    assert code == 0
    served = out.split("\n\n")[-1].split()
    for operation in ("attend", "decode", "linear", "rms_norm", "route"):
        assert sum(word.rstrip(",.") == operation for word in served) == 1
    assert "gleam" in out
    assert not re.search(r"gleam +unusable", out)


def test_doctor_begins_with_one_line_that_sums_up(monkeypatch, capsys):
    """What serves most operations decides, and whether anything better would run here."""
    torch, amx = Implementation("attend", "torch", "Few use it."), Implementation("ffn", "native amx", "")
    avx2 = Implementation("ffn", "native avx2", "There is no AVX-512.")
    for served, line in (
        ((amx, amx, torch), "All is well: native amx, the best kernels for this processor, serves 2 of 3 operations."),
        ((avx2, avx2, torch), "Works, but the best kernels are not in use: native avx2 serves 2 of 3 operations."),
        ((torch, torch, amx), "Slow: torch serves 2 of 3 operations instead of native kernels; the reason is below."),
    ):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("earthshine.cli.doctor.implementations", lambda served=served: served)
        run_doctor()
        assert capsys.readouterr().out.splitlines()[0] == line


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', None], ids=["no JSON", "lacks fields", "of another machine"])
def test_doctor_does_not_call_all_well_beside_a_profile_that_it_calls_unusable(no_profile, earthshine, tmp_path, text):
    profile = tmp_path / "state" / "earthshine" / "machine.json"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        text or machine_json(replace(MINI, measured="2026-01-01", identity={**identity(), "cpu_model": "another"}))
    )
    code, out, _ = earthshine("doctor")
    assert code == 0
    assert "All is well" not in out
    assert out.splitlines()[0].endswith("Unusable: profile; see below.")
    assert re.search(r"profile +unusable: ", out)


@pytest.mark.parametrize(
    ("name", "instead"), [("show", "inspect MODEL"), ("ps", "/metrics"), ("ls", "list"), ("download", "pull MODEL")]
)
def test_another_programs_name_of_a_command_is_answered_with_ours(earthshine, name, instead):
    for words in ((name,), (name, "gleam", "--json")):
        code, out, err = earthshine(*words)
        assert (code, out) == (2, "")
        assert err.startswith(f"earthshine: There is no command {name}: ")
        assert instead in err
    assert "No such command 'shout'" in earthshine("shout")[2]


def test_doctor_says_each_reason_once(capsys):
    """As where the kernels lack three instruction sets, and one operation has a reason of its own."""
    slow = [Implementation(name, "native avx2", "There is no AVX-512.") for name in ("decode", "linear", "route")]
    more = [Implementation("kda", "torch", "There is no AVX-512."), Implementation("attend", "torch", "Few use it.")]
    print_served([*slow, *more, Implementation("ffn", "native amx", "")], Report())
    assert capsys.readouterr().out == (
        "native avx2 serves decode, linear, route.\n  There is no AVX-512.\n"
        "torch serves kda.\ntorch serves attend.\n  Few use it.\nnative amx serves ffn.\n"
    )


def test_inspect_begins_with_what_a_person_needs(earthshine, monkeypatch, shared_data):
    monkeypatch.setenv("COLUMNS", "200")
    config = shared_data / "configs/moonshotai--Kimi-K2.6_config.json"
    found = json.loads(earthshine("inspect", config, "--json")[1])
    assert list(found) == ["summary", "architecture", "footprint"]
    assert found["summary"]["download_bytes"] == 23_040 * 24_772_632 + 23_444_463_616
    code, out, _ = earthshine("inspect", config)
    assert code == 0
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert list(lines) == ["Download", "Smallest memory", "Family", "Parameters", "Longest context"]
    assert lines["Download"].startswith("553.40 GiB")
    assert lines["Family"] == "kimi_k25"
    least = lines["Smallest memory"].partition(";")[0].replace(" ", "")
    at = ("plan", config, "--machine", "mini-24gb", "--memory")
    assert earthshine(*at, least)[0] == 0
    assert earthshine(*at, f"{found['summary']['smallest_memory_bytes'] - 1}B")[0] == 2
    assert json.loads(earthshine("inspect", "--json")[1])["summary"]["download_bytes"] == 0


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_inspect_and_doctor_fit_the_terminal(earthshine, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ("inspect", "doctor"):
        code, out, _ = earthshine(command)
        assert code == 0
        assert all(len(line) <= columns for line in out.splitlines())


def test_no_command_shows_help(earthshine):
    code, out, err = earthshine()
    assert code == 2
    assert "inspect" in out + err


def test_an_interrupted_answer_is_marked_and_exits_130(earthshine, monkeypatch):
    whole = Session.generate

    def interrupted(self, *request):
        events = whole(self, *request)
        yield next(events)
        yield next(events)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "generate", interrupted)
    code, out, err = earthshine("chat", "-p", "hello", "--no-thinking")
    assert code == 130
    assert "Hello!".startswith(out.strip()[:6])
    assert "(interrupted)" in err
    assert "Traceback" not in err


def test_memory_that_torch_can_not_get_is_a_sentence(earthshine, monkeypatch):
    monkeypatch.setattr("earthshine.cli.open_chat.load_model", lambda *_, **__: torch.empty(10**15))
    code, _, err = earthshine("chat", "-p", "hello")
    assert code == 1
    assert "not enough memory" in err


def test_a_score_reads_control_words_as_text_and_never_overflows(earthshine, tmp_path, monkeypatch):
    monkeypatch.setattr("earthshine.cli.score.score_windows", lambda *_: torch.full((9,), -1e4))
    (tmp_path / "text.txt").write_text("one <|im_end|> two")
    code, out, _ = earthshine("score", "gleam", tmp_path / "text.txt", "--json")
    assert code == 0
    assert json.loads(out)["perplexity"] == pytest.approx(math.exp(700))
    assert json.loads(out)["token_ids"] == load_tokenizer(GLEAM).encode("one <|im_end|> two", allow_special=False)


def test_an_interrupt_while_modules_are_imported_ends_with_130(monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "earthshine.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "earthshine.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
