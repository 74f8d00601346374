# ruff: noqa: RUF001
"""The command line: one line and an exit code for whatever is typed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from optin.app import cli
from optin.app.options import show
from optin.errors import unknown
from optin.support.files import cache_folder
from tests.networks import build, tokenizer
from tests.test_cli import run  # noqa: F401


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "dense"
    build("bert", num_labels=2).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder.parent / "texts.csv").write_text("text,label\n" + "good film,1\nbad plot,0\n" * 20)
    return folder


@pytest.fixture
def refused(run, dense, tmp_path, monkeypatch):  # noqa: F811
    """Run a command in an empty folder; it must end in one clear line, and leave nothing."""

    def refused(*arguments, codes=(2,), words=""):
        monkeypatch.chdir(tmp_path)
        code, out, err = run(*(str(a).replace("DENSE", str(dense)) for a in arguments))
        assert code in codes, (code, out, err)
        assert "Traceback" not in err and out == "" and words in err, err
        # The messages of typer are in a box.
        assert len(err.strip().splitlines()) == 1 or "Usage" in err, err
        assert [path.name for path in tmp_path.iterdir()] == []
        return err

    return refused


PRUNE = ("prune", "DENSE", "--data", "DENSE/../texts.csv", "--examples", "8")
BUDGETS = (
    "", " ", "%", "-5%", "0%", "100%", "101%", "1e400%", "1e-400%", "nan%", "inf", "½", "50％", "５０%", "٥٠%", "50٪",
    "40 Kparams", "10 mſ", "5O%", "50%%", "50 % of", "--", "12", "0x10%", "1_0%", "5 0%", "50;rm",
    "1e999 GMACs", "0 params", "-1 ms", "9" * 5000 + "%", "[bold]50%", "²%", "50 lightyears",
)  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=[f"{i}" for i in range(len(BUDGETS))])
def test_budgets(budget, refused):
    refused(*PRUNE, f"--budget={budget}", codes=(4,))


NUMBERS = {
    "--examples": ("-1", "0", "1", "9" * 30, "x", "1.5", ""),
    "--max-length": ("-1", "0", "9" * 12, "x"),
    "--round-to": ("-1", "0", "9" * 12),
    "--latency-batch": ("-1", "0", "9" * 12),
    "--seed": ("-1", "9" * 30, "x", ""),
}


@pytest.mark.parametrize(("option", "value"), [(name, value) for name in NUMBERS for value in NUMBERS[name]])
def test_numbers_of_a_run(option, value, refused):
    refused(*PRUNE, "--budget", "50%", f"{option}={value}")


@pytest.mark.parametrize("value", ["-1", "0", "41", "70000", "9" * 12, "9" * 30, "x"])
def test_lengths(value, refused):
    refused("inspect", "DENSE", f"--length={value}")
    refused("bench", "DENSE", "DENSE", f"--length={value}")


@pytest.mark.parametrize("value", ["-1", "0", "9" * 12, "9" * 30, "x"])
def test_batches_and_counts(value, refused):
    refused("bench", "DENSE", "DENSE", "--length", "8", f"--batch={value}")
    if len(value) < 10:
        refused("draw", "DENSE", f"--count={value}")
        refused("export", "DENSE", f"--batch={value}")


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--learning-rate"])
@pytest.mark.parametrize("value", ["-1", "0", "1e300", "nan", "x"])
def test_numbers_of_training(option, value, refused):
    refused("finetune", "DENSE", "--out", "out", f"{option}={value}")


LONG = "x" * 300
NAMES = ("", LONG, f"{LONG}/{LONG}", "~nobody-of-this-name/x", "[/b]", "[bold]x[/bold]", "a\nb", "-")


PLACES = [
    (what, name)
    for what in ("model", "recipe", "out", "scores", "plan", "report", "draw")
    for name in (NAMES[:4] if what in ("out", "draw") else NAMES)  # a folder may be called like the others
]


@pytest.mark.parametrize(("what", "name"), PLACES, ids=[f"{what}-{index}" for index, (what, _) in enumerate(PLACES)])
def test_names(what, name, refused):
    arguments = {
        "model": ("inspect", "--", name),
        "recipe": (*PRUNE, f"--recipe={name}"),
        "out": (*PRUNE, "--budget", "50%", f"--out={name}"),
        "scores": ("plan", "--budget=50%", "--", "DENSE", name),
        "plan": (*PRUNE, f"--plan={name}"),
        "report": ("report", "--", name),
        "draw": ("draw", f"--out={name}", "--", "DENSE"),
    }[what]
    refused(*arguments)


@pytest.mark.parametrize("preset", ["beta", "paper", "tau"])
def test_a_preset_for_a_recipe(preset, refused):
    refused(*PRUNE, "--recipe", preset, words=f"--preset {preset}")


@pytest.mark.parametrize(
    "arguments",
    [
        (*PRUNE, "--budget", "50%", "--criterion", ""),
        (*PRUNE, "--budget", "50%", "--search", "[/]"),
        (*PRUNE, "--budget", "50%", "--task", "ernie"),
        (*PRUNE, "--preset", ""),
        (*PRUNE, "--preset", "betta"),
        ("export", "DENSE", "--to", "../onnx"),
        ("export", "DENSE", "--to", ""),
        ("export", "DENSE", "--to", "onnx/../../x"),
        ("inspect", "DENSE", "--device", "[/red]"),
        ("inspect", "DENSE", "--dtype", "int8"),
        ("inspect", "DENSE", "--dtype", "float8_e4m3fn"),
        ("inspect", "DENSE", "--dtype", "nn"),
        ("score", "DENSE", "--out", "out", "--engine", "spark", "--data", "DENSE/../texts.csv", "--examples", "8"),
        ("nothing",),
        ("inspect",),
        ("inspect", "DENSE", "--colour"),
    ],
)
def test_words(arguments, refused):
    refused(*arguments)


def test_brackets_are_shown(run, dense, tmp_path):  # noqa: F811
    folder = tmp_path / "[bold]small[red]"
    folder.symlink_to(dense)
    common = ("--data", dense.parent / "texts.csv", "--examples", 8, "--criterion", "magnitude")
    code, out, err = run("score", folder, "--out", tmp_path / "[/x]", *common)
    assert code == 0 and "[/x]" in out.translate(dict.fromkeys(map(ord, "\n│ "))), err  # a table breaks long paths
    code, _, err = run("plan", folder, tmp_path / "[/y]", "--budget", "50%")
    assert code == 2 and "[/y]" in err


@pytest.mark.parametrize(
    ("command", "extra"),
    [("export", "export"), ("sweep", "pictures"), ("draw", "pictures"), ("finetune", "finetune"), ("demo", "demo")],
)
def test_help_says_which_extra(command, extra):
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert shown.exit_code == 0 and f"optin[{extra}]" in shown.output


@pytest.mark.parametrize("place", ["a file", "in a file", "read only", "a long name"])
def test_a_bad_cache_folder(place, refused, run, dense, tmp_path, tmp_path_factory, monkeypatch):  # noqa: F811
    there = tmp_path_factory.mktemp("cache")
    (there / "file").write_text("")
    monkeypatch.setenv(
        "OPTIN_CACHE",
        {
            "a file": str(there / "file"),
            "in a file": str(there / "file" / "x"),
            "read only": "/proc/optin",
            "a long name": str(there / LONG),
        }[place],
    )
    assert run("inspect", dense, "--length", 8)[0] == 0  # which needs none
    refused(
        *PRUNE, "--budget", "30 ms", "--criterion", "magnitude", words="OPTIN_CACHE"
    ) if place == "a file" else None
    with pytest.raises(cli.OptinError, match="OPTIN_CACHE"):
        cache_folder()


def test_no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("OPTIN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.OptinError, match="OPTIN_CACHE"):
        cache_folder()
    monkeypatch.setenv("OPTIN_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "optin"
    monkeypatch.setenv("OPTIN_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("kind", "name", "known", "hint"),
    [
        ("architecture", "ernie", ["upernet", "bert"], None),
        ("architecture", "ibert", ["bert"], None),  # a program wrote it: another architecture
        ("task", "ernie", ["upernet"], None),
        ("task", "sst", ["sst2", "mnli"], "sst2"),
        ("option", "sed", ["seed"], "seed"),
        ("preset", "fast", ["beta", "tau"], None),
    ],
)
def test_only_a_slip_of_the_pen_is_corrected(kind, name, known, hint):
    words = unknown(kind, name, known)
    assert ("Did you mean" in words) == (hint is not None) and (hint is None or repr(hint) in words)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied", "x"), OSError("no disk")])
def test_what_nobody_thought_of(error, run, monkeypatch):  # noqa: F811
    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    code, out, err = run("inspect", "x")
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1


def test_figures_that_are_no_numbers_are_still_json(capsys):
    show({"a": float("nan")}, None, as_json=True, quiet=False)
    assert json.loads(capsys.readouterr().out) == {"a": None}
