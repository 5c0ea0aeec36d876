"""The console script: environment, benchmark commands, and what wrong usage says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import attnops
from attnops import cli, env
from attnops._backends import library


def test_env_json_parses(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["attnops"] == attnops.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["backends"]["pyramid_pool"]["reference"] == {"available": True, "reason": ""}
    assert facts["choice"] in ("auto", "reference", "cpu", "triton", "cuda")
    for device in ("cpu", "cuda"):
        for op, backend in facts["auto"][device].items():
            assert facts["backends"][op][backend]["available"]


def test_env_says_why_a_backend_is_missing(capsys: pytest.CaptureFixture) -> None:
    assert env.main([]) == 0
    text = capsys.readouterr().out
    for op, states in attnops.backends().items():
        assert op in text
        for backend, state in states.items():
            if not state:
                assert f"no {backend}: {state.reason}" in text


def test_env_tells_the_current_choice() -> None:
    with attnops.use_backend("reference"):
        assert env.environment()["choice"] == "reference"


def test_env_works_with_nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(env, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "attnops._C", None)
    facts = env.environment()
    assert set(facts["libraries"].values()) == {None}
    assert "CPU library   none" in env.as_text(facts)


def test_env_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "attnops.env", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["versions"]["torch"] == torch.__version__


def test_unknown_command_exits_with_2(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["paint"])
    assert stop.value.code == 2
    assert "paint" in capsys.readouterr().err


def test_unknown_table_exits_with_2(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bench", "apnb-tabel"]) == 2
    error = capsys.readouterr().err
    assert "'apnb-tabel'" in error and "apnb-table" in error and "pyramid_pool" in error


def test_bench_lists_its_commands(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bench", "--help"]) == 0
    assert "apnb-table" in capsys.readouterr().out
    assert cli.main(["bench"]) == 2


def test_bench_options_reach_the_table(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "apnb-table", "--size", "96"])
    assert stop.value.code == 2
    assert "96x96" in capsys.readouterr().err


def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "attnops.benchmarks.report.plots", raising=False)
    assert cli.main(["bench", "figure2", "--size", "8x8", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "matplotlib" in error and 'pip install "attnops[bench]"' in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_run_needs_a_gpu(capsys: pytest.CaptureFixture, tmp_path) -> None:
    assert cli.main(["bench", "gpu", "--out", str(tmp_path)]) == 1
    assert "CUDA" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_lists_networks_with_their_sizes(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["models", "segnext_[tl]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["segnext_l", "segnext_t"]
    assert "48.93 M parameters, 150 classes" in lines[0]
    assert cli.main(["models", "nothing*"]) == 1
    assert "nothing*" in capsys.readouterr().err


def test_models_names_the_package_that_is_missing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.resnet", None)
    assert cli.main(["models", "ann_r50"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["ann_r50", "-"]
    assert 'pip install "attnops[models]"' in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("attnops", "models", "segnext_*"),
        ("attnops", "env"),
        ("attnops.env", "--json"),
        ("attnops.benchmarks", "--help"),
    ],
)
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...]) -> None:
    """As `attnops models | head -1`; here nobody reads anything."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_package_runs_as_the_console_script() -> None:
    command = [sys.executable, "-m", "attnops", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"attnops {attnops.__version__}\n"


@pytest.mark.parametrize(
    "table", ["apnb-table", "gald-table", "figure2", "networks", "demo", "pyramid_pool"]
)
@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_numbers_of_threads_that_are_refused(
    table: str, threads: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", table, f"--threads={threads}"])
    assert stop.value.code == 2
    wanted = f"argument --threads: expected an integer of at least 1, got '{threads}'"
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0x8", "8x-1", "8", "8xeight"])
def test_sizes_that_are_refused(size: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "apnb-table", f"--size={size}"])
    assert stop.value.code == 2
    assert f"got '{size}'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "x"
    assert cli.main(["bench", "report", "--out", str(place)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("attnops: ") and error.count("\n") == 1 and str(place.parent) in error


def test_an_unknown_network_is_wrong_usage(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "networks", "--networks", "segnext_t,nope"])
    assert stop.value.code == 2
    assert "no network 'nope'" in capsys.readouterr().err
