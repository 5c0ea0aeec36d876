"""CI's script, with a `make` that only says what it was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from checkout import ROOT, script

# Fails for the targets in $FAILING; like make it then has the last word. No summary for $SILENT.
MAKE = """
for name in VIRTUAL_ENV PYTHONPATH CXX ATTNOPS_ISA ATTNOPS_CPU PYTEST_ADDOPTS; do
  eval "value=\\${$name-}"; [ -z "$value" ] || echo "inherited $name"
done
echo "ran $1"
case "$1" in
test) [ "$SILENT" ] || echo "3 passed, 1 skipped in 2.00s" ;;
test-wheel) echo "2 passed in 1.00s" ;;
esac
case " $FAILING " in *" $1 "*) echo "make: *** [$1] Error 1" >&2; exit 2 ;; esac
"""


@pytest.fixture
def ci(tmp_path):
    """Runs the script and gives its exit status and the lines that it printed."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    script(tmp_path / "bin/make", MAKE)

    def run(**environ: str) -> tuple[int, list[str]]:
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(tmp_path / ".ci/run")],
            env={**os.environ, "PATH": path, "FAILING": "", "SILENT": "", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()

    return run


SUMMARY = "3 passed, 1 skipped in 2.00s"


def test_everything_passes(ci):
    status, lines = ci()
    assert status == 0
    ran = [line for line in lines if line.startswith("ran ")]
    assert ran == ["ran check", "ran test-wheel", "ran test"]
    assert lines[-1] == SUMMARY


@pytest.mark.parametrize("failing", ["check", "test-wheel", "test", "check test"])
def test_any_part_fails(ci, failing):
    """The others run all the same, and the suite's summary stays the last line."""
    status, lines = ci(FAILING=failing)
    assert status == 1
    assert [line for line in lines if line.startswith("ran ")][-1] == "ran test"
    said = [line for line in lines if line.startswith("failed: ")]
    assert said == [f"failed: make {name}" for name in failing.split()]
    assert lines[-1] == SUMMARY


def test_suite_that_never_started(ci):
    status, lines = ci(FAILING="test", SILENT="1")
    assert status == 1
    assert lines[-1] == "failed: make test"


def test_nothing_of_the_caller_counts(ci):
    settings = ("VIRTUAL_ENV", "PYTHONPATH", "CXX", "ATTNOPS_ISA", "ATTNOPS_CPU", "PYTEST_ADDOPTS")
    _, lines = ci(**dict.fromkeys(settings, "x"))
    assert [line for line in lines if line.startswith("inherited")] == []
