"""Makes the Python environment that the Makefile's targets run in, and names its interpreter.

Runs before anything is installed: standard library only, on any Python 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The version that the tests run with; another one >= 2.10 that is there already is kept.
TORCH = "torch==2.11.0"
BUILD_REQUIREMENTS = ["setuptools>=77,<82", "wheel", "ninja", "pybind11"]
OLDEST = (3, 10)

# Pre-releases too: 2.10.0a0+... of NVIDIA's containers.
_HAS_TORCH = r"""
import re, sys
try:
    from importlib.metadata import version
    number = re.match(r"(\d+)\.(\d+)", version("torch"))
    sys.exit(tuple(map(int, number.groups())) < (2, 10))
except Exception:
    sys.exit(1)
"""


def has_torch(python: str) -> bool:
    return subprocess.run([python, "-c", _HAS_TORCH]).returncode == 0


def base_python() -> str:
    """The interpreter running this if it is new enough, else one from the path."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11, 10):
        found = shutil.which(f"python3.{minor}")
        # Version managers put names on the path that do not run.
        if found and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return found
    sys.exit("attnops needs Python >= 3.10: make ... PYTHON=/path/to/python3.11")


def chosen_environment(venv: str, given: bool) -> Path | None:
    """The virtual environment to use; None: the interpreter that runs this, as it is.

    venv: a folder, or "" for the default. given: the user named this interpreter.
    """
    if venv:
        return Path(venv).absolute()
    if given and (sys.prefix != sys.base_prefix or has_torch(sys.executable)):
        return None
    if not given and os.environ.get("VIRTUAL_ENV"):
        return Path(os.environ["VIRTUAL_ENV"])
    return ROOT / ".venv"


def interpreter(environment: Path | None) -> str:
    return sys.executable if environment is None else str(environment / "bin" / "python")


def existing_interpreter(environment: Path | None) -> str:
    """An interpreter with torch, for machines where nothing may be installed."""
    for python in (interpreter(environment), sys.executable):
        if os.path.exists(python) and has_torch(python):
            return python
    sys.exit("no torch >= 2.10 found: make ... PYTHON=/path/to/a/python/that/has/it")


def _keep_torch(python: str, prefix: Path) -> list[str]:
    """Pip's arguments that keep the torch that is there: others of its family have to fit it."""
    program = "from importlib.metadata import version; print(version('torch').partition('+')[0])"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    constraints = prefix / ".attnops-constraints.txt"
    constraints.write_text(f"torch=={found.stdout.strip()}\n")
    return ["--constraint", str(constraints)]


def _run(*command: str) -> None:
    print("+", " ".join(command), flush=True)
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode != 0:
        sys.exit(f"setting up the environment failed: {' '.join(command)}")


def _fingerprint() -> dict[str, str]:
    """What an install depends on. The checkout too: two of them may share an environment."""
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", Path(__file__)]
    text = b"".join(path.read_bytes() for path in files)
    # Packages of an editable install are listed when it is made.
    folders = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    digest = hashlib.sha256(text + " ".join(folders).encode()).hexdigest()
    return {"checkout": str(ROOT), "sha256": digest}


def _read_stamp(path: Path) -> object:
    """None: there is none, or a run that was interrupted left a piece of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def set_up(environment: Path | None, extra: str = "") -> None:
    """Creates the environment and installs attnops into it; nothing to do: returns at once.

    extra: one of pyproject.toml's that is installed besides "dev".
    """
    python = interpreter(environment)
    if environment is not None and not os.path.exists(python):
        _run(base_python(), "-m", "venv", str(environment))
    prefix = environment or Path(sys.prefix)
    fingerprint = _fingerprint()
    stamps = {"dev": prefix / ".attnops-install.json"}
    if extra:
        stamps[extra] = prefix / f".attnops-install-{extra}.json"
    missing = [name for name, stamp in stamps.items() if _read_stamp(stamp) != fingerprint]
    if not missing:
        return
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    _run(*pip, *([] if has_torch(python) else [TORCH]), *BUILD_REQUIREMENTS)
    attnops = f".[{','.join(missing)}]"
    _run(*pip, *_keep_torch(python, prefix), "--no-build-isolation", "-e", attnops)
    for name in missing:
        stamps[name].write_text(json.dumps(fingerprint))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default="", help="folder of the virtual environment")
    parser.add_argument("--given", action="store_true", help="this interpreter was asked for")
    parser.add_argument("--extra", default="", help="an extra to install besides dev")
    parser.add_argument("--print", action="store_true", help="only print the interpreter's path")
    parser.add_argument(
        "--existing", action="store_true", help="print an interpreter with torch; install nothing"
    )
    options = parser.parse_args()
    environment = chosen_environment(options.venv, options.given)
    if options.existing:
        print(existing_interpreter(environment))
    elif options.print:
        print(interpreter(environment))
    else:
        set_up(environment, options.extra)


if __name__ == "__main__":
    main()
