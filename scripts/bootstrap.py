"""Makes the environment in `.venv` from a lock; needs nothing but Python. `bootstrap.py requirements.lock`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD_LOCK = ROOT / "requirements-build.lock"


def main(lock: Path) -> None:
    started = time.monotonic()
    count = sum("==" in line for line in lock.read_text(encoding="utf-8").splitlines())
    print(f"Installing {count} packages into {VENV.name} …", flush=True)
    make_venv()
    install(BUILD_LOCK, "install the installer")
    install(lock, "install the packages")
    run_first(
        [[*way, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)] for way in installers()],
        "install Headrace itself",
    )
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)


def make_venv() -> None:
    """A virtual environment with pip in it where this Python can make one; an intact one is kept."""
    if works(PYTHON):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    ways = [[sys.executable, "-m", "venv", str(VENV)]]
    if works_with_pip(sys.executable):  # Debian's Python comes without ensurepip, but its pip installs from outside
        ways.append([sys.executable, "-m", "venv", "--without-pip", "--clear", str(VENV)])
    if uv := shutil.which("uv"):
        ways.append([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)])
    hint = "; on Debian and Ubuntu: apt-get install python3-venv" if Path("/etc/debian_version").exists() else ""
    run_first(ways, "make a virtual environment", hint)


def install(lock: Path, what: str) -> None:
    ways = ([*way, "--require-hashes", "-r", str(lock)] for way in installers())
    # pip compiles what it installs. Else, where Python may write no bytecode, a process takes 6 s to start, not 1.
    run_first([[*way, "--compile-bytecode"] if Path(way[0]).name == "uv" else way for way in ways], what)


def installers() -> Iterator[list[str]]:
    """The ways to install into `.venv`, the quickest first; each may be refused where the next is not."""
    uv = VENV / "bin" / "uv"
    if works(uv):
        yield [str(uv), "pip", "install", "--quiet", "--python", str(PYTHON)]
    quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if works_with_pip(str(PYTHON)):
        yield [str(PYTHON), "-m", "pip", *quiet]
    elif works_with_pip(sys.executable):
        yield [sys.executable, "-m", "pip", "--python", str(PYTHON), *quiet]
    if found := shutil.which("uv"):
        yield [found, "pip", "install", "--quiet", "--python", str(PYTHON)]


def works(program: Path) -> bool:
    """Whether the program is there and runs; an environment outlives the Python it was made with."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def works_with_pip(python: str) -> bool:
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def run_first(ways: Sequence[Sequence[str]], what: str, hint: str = "") -> None:
    """Run the commands until one succeeds; else one sentence with the last reason."""
    reason = "there is neither pip nor uv"
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    for way in ways:
        done, said = run_counting(way, environment)
        if done == 0:
            return
        reason = next((line for line in said if "rror" in line), said[-1] if said else f"exit code {done}")
    sys.exit(f"Could not {what}: {reason}{hint}.")


def run_counting(way: Sequence[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command, counting seconds on a terminal; its exit code and what it said, errors before all else."""
    started = time.monotonic()
    with subprocess.Popen(
        way, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while True:
            try:
                out, errors = process.communicate(timeout=1.0)
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    print(f"\r  {time.monotonic() - started:.0f} s", end="", flush=True)
                continue
            break
    if sys.stdout.isatty():
        print("\r\x1b[2K", end="", flush=True)
    return process.returncode, [line.strip() for line in (errors or out).splitlines() if line.strip()]


if __name__ == "__main__":
    main(ROOT / sys.argv[1])
