"""What is installed is what is locked, what is locked is what pyproject.toml asks for, and known holes stay out."""

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).parents[1]
LOCK = PROJECT / "requirements-dev.txt"

# The first versions without the holes that are known; 2.6.2 and 2.6.3 of lightning were malware.
FLOORS = {
    "torch": "2.10",
    "lightning": "2.6.6",
    "hydra-core": "1.3.8",
    "pillow": "13",
    "streamlit": "1.67",
    "ray": "2.52",
}
CEILINGS = {"hydra-core": "1.4"}  # the first version that the sweep's callbacks do not follow

ENVIRONMENTS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_machine": machine,
    }
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]
everywhere = pytest.mark.parametrize(
    "environment", ENVIRONMENTS, ids=lambda environment: "-".join(environment.values())
)


def asked() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: by each extra, and by "" to run and to be built."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    always = settings["project"]["dependencies"] + settings["build-system"]["requires"]
    groups = {"": always, **settings["project"]["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


def developing() -> list[Requirement]:
    """What of it the extra `test` needs, and the extras that it names."""
    groups = asked()
    named = [
        extra for requirement in groups["test"] for extra in requirement.extras if requirement.name == "deepfake"
    ]
    own = [requirement for requirement in groups["test"] if requirement.name != "deepfake"]
    return own + [requirement for extra in ["", *named] for requirement in groups[extra]]


def entries() -> list[str]:
    """The entries of the lock, each a line with its hashes."""
    return re.sub(r"^ *#.*\n|\\\n", "", LOCK.read_text(), flags=re.MULTILINE).splitlines()


def locked(environment: dict[str, str] | None = None) -> dict[str, Version]:
    """The version of each package that the lock names, in this environment or another."""
    pins = [Requirement(entry.split(" --hash=")[0]) for entry in entries()]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    found = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in here}
    assert len(found) == len(here), "a package is named twice"
    return found


@everywhere
def test_everything_that_developing_needs_is_locked(environment: dict[str, str]) -> None:
    pins = locked(environment)
    needed = {str(requirement): pins.get(canonicalize_name(requirement.name)) for requirement in developing()}
    missing = {line: pin for line, pin in needed.items() if pin is None or pin not in Requirement(line).specifier}
    assert not missing, "make lock"


def test_the_lock_holds_versions_and_hashes_and_no_place_to_get_them() -> None:
    assert entries()
    for entry in entries():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+ (; [^-]+)?(    --hash=sha256:[0-9a-f]{64} ?)+", entry), entry
    assert "/" not in LOCK.read_text()


def test_versions_with_known_holes_are_neither_asked_for_nor_locked() -> None:
    for requirement in (requirement for group in asked().values() for requirement in group):
        if floor := FLOORS.get(canonicalize_name(requirement.name)):
            bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
            assert bounds, f"{requirement}: no lower bound"
            assert max(bounds) >= Version(floor), requirement
            assert CEILINGS.get(requirement.name, "0") not in requirement.specifier
    for environment in ENVIRONMENTS:
        pins = locked(environment)
        assert FLOORS.keys() & pins.keys()
        assert not {name: pins[name] for name in FLOORS.keys() & pins.keys() if pins[name] < Version(FLOORS[name])}


def test_what_is_installed_is_what_is_locked() -> None:
    if not Path(sys.prefix, ".test").exists():
        pytest.skip("not the environment that make builds from the lock")
    # Not wherever a test has led the search since: setuptools adds a folder of its own copies.
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    installed = {canonicalize_name(one.name): Version(one.version) for one in found}
    other = {name: (pin, installed.get(name)) for name, pin in locked().items() if pin != installed.get(name)}
    assert not other, "make test installs what is locked"


MAKE = shutil.which("make")
with_make = pytest.mark.skipif(MAKE is None, reason="needs make")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """make with the programs of this environment, whoever made it, and nothing from a make around it."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    env = {name: value for name, value in os.environ.items() if name not in outer} | {"NO_PROXY": "127.0.0.1"}
    command = [MAKE or "make", "-C", str(PROJECT), f"BIN={Path(sys.executable).parent}", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@with_make
def test_everything_is_installed_by_hash(tmp_path: Path) -> None:
    steps = make("--dry-run", f"VENV={tmp_path}", f"{tmp_path}/.test", f"{tmp_path}/.demo").stdout.splitlines()
    installs = [step for step in steps if "pip install" in step]
    assert len(installs) == 4  # uv, the lock, the project, the demo
    for step in installs:
        # uv holds what it installs against the hashes of its constraints, too.
        assert re.search(f"--require-hashes|--no-deps|--constraints {LOCK.name}", step), step
    assert "uv" in locked()


Audit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    """`make audit` of a lock, with a vulnerability service that gives one answer for each package."""
    answers: dict[str, tuple[int, object]] = {}

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = answers.get(query["package"]["name"], (200, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: object) -> None:
            pass

    def run(lock: str, service: str | None = None, **given: tuple[int, object]) -> subprocess.CompletedProcess[str]:
        answers.update(given)
        (tmp_path / "lock.txt").write_text(lock)
        place = service or f"http://127.0.0.1:{server.server_port}"
        built = tmp_path / ".test"
        return make("-o", str(built), "audit", f"VENV={tmp_path}", f"LOCK={tmp_path / 'lock.txt'}", f"OSV={place}")

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield run
        server.shutdown()


def pinned(*names: str) -> str:
    return "".join(f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in names)


HOLE = {"vulns": [{"id": "OSV-1", "affected": [{"package": {"name": "one", "ecosystem": "PyPI"}}]}]}


@with_make
@pytest.mark.slow
def test_an_audit_fails_on_a_finding_and_passes_without_one(audit: Audit) -> None:
    clean = audit(pinned("one", "two"))
    assert clean.returncode == 0, clean.stdout
    assert "No known vulnerabilities" in clean.stdout
    found = audit(pinned("one", "two"), one=(200, HOLE))
    assert found.returncode != 0
    assert "OSV-1" in found.stdout


@with_make
@pytest.mark.slow
def test_an_audit_that_cannot_be_made_says_so_and_does_not_fail(audit: Audit) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken by nobody else, and nobody listens
        unreached = audit(pinned("one"), f"http://127.0.0.1:{silent.getsockname()[1]}")
    for ended in (unreached, audit(pinned("one"), one=(503, {}))):
        assert ended.returncode == 0, ended.stdout
        (line,) = [line for line in ended.stdout.splitlines() if not line.startswith("make")]
        assert line.startswith("not audited: http://127.0.0.1:")


@with_make
@pytest.mark.slow
def test_an_audit_that_breaks_fails(audit: Audit) -> None:
    assert audit("one\n").returncode != 0
    assert audit(pinned("one"), one=(200, "no answer")).returncode != 0
    assert audit(pinned("one"), one=(404, {})).returncode != 0
