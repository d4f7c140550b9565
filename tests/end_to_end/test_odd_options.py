"""Any word on the command line: accepted, or one message and exit code 2; and how early."""

import os
import subprocess
import sys

import click
import pytest

from fp4scope.cli.app import app
from fp4scope.study import Study

WORDS = [
    "", ",", "\udce9", "~nosuchuser/m", "x" * 5000, "9" * 5000, "18446744073709551616", "layers:",
    "[", "nvfp4/", "hpu", "/dev/zero", "/", "/nowhere/at/all", "-1", "1.5",
]  # fmt: skip
COMMANDS = app.commands
OPTIONS = [
    pytest.param(name, option, id=f"{name} {option.opts[-1]}")
    for name in ("run", "stats", "compare", "report", "demo")  # plan has the options of run
    for option in COMMANDS[name].get_params(click.Context(COMMANDS[name]))
    if "--help" not in option.opts
    and (name != "stats" or option.name in ("out", "windows", "model"))
]


@pytest.fixture
def reached(monkeypatch):
    """What stands behind the checks, instead of torch and a model."""
    studies = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def stop(study, *args, **options):
        studies.append(study)
        raise SystemExit(0)

    monkeypatch.setattr("fp4scope.conductor.run_study", stop)
    monkeypatch.setattr("fp4scope.cli.plan.print_plan", stop)
    monkeypatch.setattr("fp4scope.cli.stats.print_statistics", stop)
    return studies


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_any_word_is_accepted_or_refused_in_one_message(
    command, option, fp4scope, reached, model_folder, monkeypatch, tmp_path
):
    if os.geteuid() == 0:  # root may make folders where they don't belong
        monkeypatch.setattr("fp4scope.preflight.writable_folder", lambda path: path)
    needed = [model_folder] if command in ("run", "stats") else []
    flag = option.is_flag if isinstance(option, click.Option) else None
    for word in [None] if flag else WORDS:
        if flag is None:
            arguments = [command, "--", word]
        else:
            arguments = [command, *needed, option.opts[-1], *([] if flag else [word])]
        code, out, err = fp4scope(*arguments)
        assert "Traceback" not in err
        if code:
            assert code == 2, (arguments, out, err)
            assert 1 <= len(err.strip().splitlines()) < 8, err
            assert len(err) < 12_000
        elif command in ("run", "stats"):
            assert isinstance(reached[-1], Study)


EARLY = {
    "text": (["--text", "nothing.txt"], "cannot read the text nothing.txt: No such file"),
    "folder as text": (["--text", "/"], "cannot read the text /: Is a directory"),
    "endless text": (["--text", "/dev/zero"], "/dev/zero: not a regular file"),
    "calibration text": (["--calibration-text", "no.txt"], "cannot read the calibration text no"),
    "output": (["-o", "/proc/no/folder"], "cannot write to /proc/no/folder"),
    "config": (["--config", "no.yaml"], "cannot read the study no.yaml"),
    "device": (["--device", "cuda 1"], "device is 'cuda 1'"),
    "no such device": (["--device", "cudo"], "did you mean cuda or cpu? (choices: cpu"),
    "dtype": (["--dtype", "fp8"], "dtype: unknown 'fp8'"),
    "seed": (["--seed", str(2**64)], "seed is '18446744073709551616'"),
    "memory": (["--memory", "9" * 400], "more than any machine has"),
    "formats": (["--formats", ""], "formats is empty; give one or more of mxfp4:floor"),
}


def _python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


MAIN = "import sys; sys.argv[0] = 'fp4scope'; from fp4scope.cli import main; main()"


def test_what_can_be_known_is_said_before_torch_is_imported(model_folder, tmp_path):
    """All in one process: none of these may bring torch into it."""
    text = tmp_path / "text.txt"
    text.write_text("w1 w2")
    plain = [str(model_folder), "--text", str(text)]
    cases = {name: ["run", *plain, *options] for name, (options, _) in EARLY.items()}
    for name, config in {"torn": "{", "nameless": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    models = {"./torn": "it is no JSON", "./nameless": "it names no model_type",
              "~nosuchuser/m": "cannot be a model's name", "x" * 400: "File name too long",
              "./no": "./no does not exist", "a b": "is not there and no hub id",
              "some/model": "cannot load 'some/model' from the hub", "/": "no config.json",
              str(text): "not a GGUF file", "/dev/zero": "not a regular file"}  # fmt: skip
    cases |= {name: ["run", name, "--text", str(text)] for name in models}
    cases |= {
        "stats": ["stats", *plain, "-o", "/no/where.csv"],
        "plan": ["plan", *plain, "--bos", "x"],
    }
    code = f"""
import io, sys
from contextlib import redirect_stderr
from fp4scope.cli import main
said = {{}}
for name, arguments in {cases!r}.items():
    sys.argv = ["fp4scope", *arguments]
    with redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2, (name, stop.code, err.getvalue())
    assert not {{"torch", "transformers"}} & set(sys.modules), name
    said[name] = err.getvalue()
print(repr(said))
"""
    done = _python(code, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    said = eval(done.stdout)
    expected = {name: words for name, (_, words) in EARLY.items()} | models
    expected |= {"stats": "cannot write /no/where.csv", "plan": "bos: unknown 'x'"}
    assert set(said) == set(expected)
    for name, words in expected.items():
        assert words in said[name]


def test_stdout_of_another_encoding_gets_what_is_like_it_or_escapes():
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = _python(MAIN, "formats", env=env)
    assert done.returncode == 0, done.stderr
    assert "+/-{0, 0.5, 1" in done.stdout
    done = _python(MAIN, "report", "\N{MINUS SIGN}5 \N{CJK UNIFIED IDEOGRAPH-4E16}", env=env)
    assert (done.returncode, done.stderr.split(":")[1]) == (2, " -5 \\u4e16 has no results.json\n")


def test_the_home_folder_is_meant_where_no_shell_expands_it(tmp_path):
    """A shell leaves `--out=~/x` alone."""
    env = os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = _python(MAIN, "run", "gone", "--text=~/a.txt", env=env)
    said = f"fp4scope: cannot read the text {tmp_path / 'a.txt'}: No such file or directory\n"
    assert (done.returncode, done.stderr) == (2, said)
    done = _python(MAIN, "report", "~/out", env=env)
    assert done.stderr == f"fp4scope: {tmp_path / 'out'} has no results.json\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "formats"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "fp4scope: cannot write to stdout: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_stderr_changes_nothing_on_stdout():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{MAIN}", "run"], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert (done.returncode, done.stdout) == (2, "")


def test_nobody_reads_stdout():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "formats"], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == ""


def test_a_fault_of_the_program_is_no_answer():
    """It was 1, as of a checkpoint that is off."""
    code = """
import sys
import fp4scope.cli.lint as lint
from fp4scope.cli import main

def broken(*_):
    raise RuntimeError("out of memory")

lint.print_lint = broken
sys.argv = ["fp4scope", "lint", "config.json"]
main()
"""
    done = _python(code)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: out of memory\n")


def test_to_be_stopped_anywhere_is_no_answer():
    code = """
import sys
from fp4scope.cli import app, main

def stopped(**_):
    raise KeyboardInterrupt  # as while modules are imported

app.verify.callback = stopped
sys.argv = ["fp4scope", "verify"]
main()
"""
    done = _python(code)
    assert (done.returncode, done.stderr) == (2, "fp4scope: stopped; repeat the same command\n")


def test_the_hub_is_asked_twice_at_most(monkeypatch):
    import fp4scope.preflight as preflight

    asked = []

    def unreachable(url, timeout):
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(preflight, "_PAUSE_S", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    assert str(preflight.hub_error("u")) == "no network"
    assert asked == ["u", "u"]
