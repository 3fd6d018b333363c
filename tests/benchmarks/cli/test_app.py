"""What all commands share: their options, their one line of JSON, their exit codes, and how soon they answer."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

import purify
from benchmarks import cli, datasets
from benchmarks.cli.machine_readable import as_line
from benchmarks.cli.options import complete_config
from benchmarks.cli.session import EXIT_CODES, Session
from benchmarks.config import configs_folder

SMALL = ("--set", "data.images=2", "--set", "draws=1", "--set", "pictures=0", "--device", "cpu")
TINY = (*SMALL, "--set", "purifier.steps=1", "--set", "attacks=[]")


def commands(found=None, path=()):
    """("models", "list"), ...: every command there is."""
    found = typer.main.get_command(cli.app) if found is None else found
    below = getattr(found, "commands", None)
    return [path] if below is None else [c for name, one in below.items() for c in commands(one, (*path, name))]


COMMANDS = commands()


@pytest.fixture
def run(monkeypatch, capsys):
    """run(arguments) -> exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capsys.readouterr()

    return call


def in_a_process(code, **options):
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, **options
    )


def test_the_commands_that_are_promised():
    names = {" ".join(path) for path in COMMANDS}
    of_models = {f"models {name}" for name in ("list", "fetch", "verify", "convert", "info", "card")}
    assert (
        of_models | {"bench", "audit", "certify", "clean", "compare", "sweep", "rivals", "report", "speed", "train"}
        <= names
    )


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_names_the_options_and_the_exit_codes(path):
    text = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "300"}).output
    assert all(option in text for option in ("--quiet", "--verbose", "--json")) and EXIT_CODES in text


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("before", [False, True], ids=["--json after", "--json before"])
def test_a_refused_option_is_one_line_of_json(path, before, run):
    code, out, err = run(*(("--json", *path) if before else (*path, "--json")), "--no-such-option")
    assert json.loads(out) == {"error": err.removeprefix("error: ").rstrip("\n"), "exit_code": 2} and code == 2
    assert "No such option: --no-such-option" in err


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_a_missing_or_unknown_command_is_one_line_of_json(arguments, run):
    code, out, _ = run("--json", *arguments)
    assert code == json.loads(out)["exit_code"] == 2 and "command" in json.loads(out)["error"].lower()


def test_refused_input_is_one_line_of_json_too(run, tmp_path):
    code, out, err = run("bench", "no/such/preset", "--json")
    error = json.loads(out)
    assert code == error["exit_code"] == 2 and err == f"error: {error['error']}\n"
    assert error["error"].startswith("no configuration 'no/such/preset'")
    code, out, _ = run("models", "--json", "info", tmp_path / "none.pt")
    assert code == json.loads(out)["exit_code"] == 2


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    Image.fromarray(datasets.load("fashion-mnist-embedded").images[0, 0].numpy()).save(tmp_path / "boot.png")
    return tmp_path / "boot.png"


RESULTS = {
    "bench": (TINY, {"folder", "schema", "results"}),
    "sweep": (("fashion-mnist/bench", "--over", "draws=1", *TINY), {"folder", "kind", "points"}),
    "certify": (("--set", "data.images=1", "--set", "n=20", "--set", "n0=10", "--device", "cpu"), {"folder", "claim"}),
    "clean": (("{images}", "--steps", "1", "--device", "cpu"), {"folder", "images"}),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_line_of_json(name, run, images, tmp_path):
    arguments, keys = RESULTS[name]
    arguments = [str(argument).format(images=images) for argument in arguments]
    code, out, err = run(name, *arguments, "--out", tmp_path / "out", "--json")
    assert code == 0 and out.count("\n") == 1 and err
    assert keys <= json.loads(out).keys() and json.loads(out)["folder"] == str(tmp_path / "out")


def test_results_without_a_folder_are_one_line_of_json(run):
    listed = json.loads(run("models", "list", "--json")[1])
    assert {"name", "kind", "size", "here", "licence", "used_by"} == listed[0].keys()
    verdicts = json.loads(run("models", "verify", "fashion-mnist", "--json")[1])
    assert [verdict["state"] for verdict in verdicts] == ["ok"]
    info = json.loads(run("models", "info", "fashion-mnist", "--json")[1])
    assert info["format"] == "safetensors" and info["tensors"]
    measured = json.loads(run("speed", "--batch", "1", "--steps", "1", "--rounds", "1", "--device", "cpu", "--json")[1])
    assert measured["images"] == 1 and measured["seconds"]
    assert json.loads(run("--version", "--json")[1]) == {"purify": purify.__version__}


def test_a_failed_check_has_its_result_and_its_code(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path))
    code, out, _ = run("models", "verify", "cifar10-ddpmpp-vp", "--json")
    assert code == 1 and json.loads(out)[0]["state"] == "FAIL"
    code, out, err = run("models", "verify", "cifar10-ddpmpp-vp", "--quiet")
    assert code == 1 and out == "" and err.startswith("FAIL      cifar10-ddpmpp-vp")


def test_quiet_says_nothing(run, tmp_path):
    assert run("bench", *TINY, "--out", tmp_path / "out", "--quiet") == (0, "", "")
    assert (tmp_path / "out" / "summary.json").is_file()
    assert run("--quiet", "report", tmp_path / "out") == (0, "", "")
    code, out, err = run("report", tmp_path / "out", "--quiet", "--json")
    assert code == 0 and err == "" and json.loads(out)[0]["folder"] == str(tmp_path / "out")
    code, out, err = run("bench", "--quiet", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and "already holds files" in err


def test_verbose_says_more(run, tmp_path):
    code, out, err = run("bench", *TINY, "--out", tmp_path / "out", "--verbose")
    assert (
        code == 0 and "\ntorch " in err.replace(", ", "\n") and "\npurifier:\n" in err and "results and figures" in out
    )
    code, _, err = run("bench", "no/such/preset", "--verbose")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: no configuration")
    assert "\ntorch " in run("--version", "--verbose")[1]


@pytest.mark.parametrize("name", ["a[b]", "r[/x]", "a [red]b", "t:smile:"])
def test_names_are_printed_as_they_are(name, run, tmp_path, capsys):
    """Brackets and colons are markup to the library that draws the tables."""
    out = tmp_path / name
    code, printed, _ = run("bench", *TINY, "--out", out)
    assert code == 0 and f"results and figures: {out}\n" in printed and (out / "summary.json").is_file()
    summary = json.loads((out / "summary.json").read_text())
    summary["results"][0]["model"] = name
    (out / "summary.json").write_text(json.dumps(summary))
    code, printed, _ = run("report", out)
    assert code == 0 and f"| {name} |" in printed
    table = Table(name, title=name)
    table.add_row(name)
    Session().show(table)
    assert capsys.readouterr().out.count(name) == 3


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["bench", "--help"], ["bench", "--nope"], [], ["configs"]]
)
def test_answers_at_once(arguments):
    """Neither torch nor robustbench is imported to say what a command or a preset is, or to refuse an option."""
    code = (
        "import sys; from purify.__main__ import main; sys.argv = ['purify', *%r]\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'robustbench', 'numpy') if name in sys.modules])"
    )
    result = in_a_process(code % arguments)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert result.returncode == (2 if arguments in (["bench", "--nope"], []) else 0)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("bench", "fashion-mnist/sweep"), "sweep"),
        (("audit", "fashion-mnist/train_score"), "train"),
        (("train", "fashion-mnist/bench"), "bench"),
    ],
)
def test_a_configuration_of_another_command_is_named_as_such(run, arguments, command):
    code, _, error = run(*arguments)
    assert (code, error) == (2, f"error: {arguments[1]} is a configuration for `purify {command}`\n")


def test_the_shell_completes_configurations(tmp_path, monkeypatch):
    shipped = {str(path.relative_to(configs_folder()).with_suffix("")) for path in configs_folder().rglob("*.yaml")}
    assert set(complete_config("fashion-mnist/")) == {name for name in shipped if name.startswith("fashion-mnist/")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one.yaml").touch()
    (tmp_path / "mine" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert list(complete_config("mi")) == ["mine/"] and list(complete_config("mine/")) == ["mine/one.yaml"]
    script = (
        "import os, sys; sys.argv = ['purify']\n"
        "os.environ |= {'_PURIFY_COMPLETE': 'complete_bash', 'COMP_CWORD': '2'}\n"
        "os.environ['COMP_WORDS'] = 'purify bench cifar10/ref'\n"
        "from purify.__main__ import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    lines = in_a_process(script).stdout.splitlines()
    assert {"cifar10/reference", "cifar10/reference_32"} <= set(lines) and lines[-1] == "False"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(number, code, tmp_path):
    command = [sys.executable, "-m", "purify", "bench", *TINY, "--set", "data.images=1000", "--set", "draws=1000"]
    command += ["--set", "batch_size=8", "--out", str(tmp_path / "out"), "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not (tmp_path / "out" / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    message = f"stopped; go on with the same command and --out {tmp_path / 'out'} --resume"
    assert process.returncode == code and message in err and "Traceback" not in err
    assert json.loads(out) == {"error": message, "exit_code": code}
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_unforeseen_error_keeps_its_traceback(run, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("of ours")

    monkeypatch.setattr("benchmarks.experiments.models.known", broken)
    monkeypatch.setattr("sys.argv", ["purify", "models", "list", "--json"])
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main()
    assert json.loads(capsys.readouterr().out) == {"error": "RuntimeError: of ours", "exit_code": 1}


def test_what_json_has_no_number_for_is_null():
    line = as_line({"a": float("nan"), "b": [float("-inf"), 1.5, None, True]})
    assert line == '{"a": null, "b": [null, 1.5, null, true]}' and as_line(None) == "{}" and as_line([]) == "[]"
