"""Wheel and sdist: what is in them, what they say of themselves, and the wheel at work on each Python of this machine.

Nothing here runs unless AMORSIZE_TEST_PACKAGING=1 is set: it takes a while, and asks a package index for dependencies.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest

from amorsize_executor import __version__

from .pythons import VERSIONS, pythons

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
#: Folders of the checkout that go into the sdist whole: with them it can run its tests and build its documentation.
WHOLE = (".ci", "amorsize_executor", "benchmarks", "docs", "examples", "tests")
#: A cold package index may be slow, and all environments are made at the same time.
LIMIT_S = 300

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("AMORSIZE_TEST_PACKAGING") != "1",
        reason="set AMORSIZE_TEST_PACKAGING=1 to build the package and install it on each Python that is found",
    ),
    pytest.mark.timeout(LIMIT_S),
]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist of the checkout, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT), folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(distributions: Path) -> Path:
    (path,) = distributions.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return email.message_from_string(_read(wheel, "METADATA"))


@pytest.fixture(scope="module")
def dependencies(metadata: Message) -> list[str]:
    """What is installed with the package, each as NAME>=VERSION."""
    return [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]


@pytest.fixture(scope="module")
def installations(
    wheel: Path, dependencies: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Path]]]:
    """Environments by name, as many at a time as there are CPUs: versions of Python, and the oldest of everything."""
    threads = ThreadPoolExecutor(os.cpu_count())

    def start(name: str, python: str, *requirements: str) -> Future[Path]:
        return threads.submit(_install, python, wheel, requirements, tmp_path_factory.mktemp(f"python{name}-"))

    started = {version: start(version, python) for version, python in pythons().items()}
    if VERSIONS[0] in started:
        started["oldest"] = start(
            "oldest", pythons()[VERSIONS[0]], *(line.replace(">=", "==") for line in dependencies)
        )
    yield started
    threads.shutdown(cancel_futures=True)


def _install(python: str, wheel: Path, requirements: Sequence[str], folder: Path) -> Path:
    """The interpreter of a new environment with the wheel."""
    _run(python, "-m", "venv", str(folder / "env"), folder=folder)
    installed = folder / "env" / "bin" / "python"
    pip = (str(installed), "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "install", str(wheel), *requirements, folder=folder)
    return installed


def _run(*command: str, folder: Path) -> None:
    """Run a program that must end well; of this process's environment it gets nothing that tells Python what to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AMORSIZE_"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def _read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as file:
        return file.read(f"amorsize_executor-{__version__}.dist-info/{name}").decode()


def _files(folder: Path) -> set[str]:
    """Files below a folder of the checkout."""
    paths = {path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"amorsize_executor-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == _files(ROOT / "amorsize_executor")
    assert "amorsize_executor/py.typed" in names
    assert not [name for name in names if PurePosixPath(name).name.startswith(("test_", "conftest"))]
    assert "MIT License" in _read(wheel, "licenses/LICENSE")


def test_the_sdist_has_all_that_its_tests_need(sdist: Path) -> None:
    root = f"amorsize_executor-{__version__}/"
    with tarfile.open(sdist) as file:
        names = {name.removeprefix(root) for name in file.getnames()}
    expected = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    for name in WHOLE:
        expected |= _files(ROOT / name)
    assert expected <= names
    assert names - expected <= {".gitignore"}


def test_the_metadata_says_what_people_and_tools_look_for(
    wheel: Path, metadata: Message, dependencies: list[str]
) -> None:
    assert metadata["Version"] == __version__
    assert metadata["Summary"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == f">={VERSIONS[0]}"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = set(metadata.get_all("Classifier", []))
    told = {
        name.rpartition(" :: ")[2] for name in classifiers if name.startswith("Programming Language :: Python :: 3.")
    }
    assert told == set(VERSIONS)
    assert {"Typing :: Typed", "Framework :: Pytest"} <= classifiers
    assert sorted(line.partition(">=")[0] for line in dependencies) == ["cloudpickle", "loky", "numpy", "psutil"]
    assert "amorsize = amorsize_executor.cli:main" in _read(wheel, "entry_points.txt")
    assert "amorsize = amorsize_executor.pytest_plugin" in _read(wheel, "entry_points.txt")


@pytest.mark.parametrize("name", [*VERSIONS, "oldest"])
def test_the_wheel_works_alone(name: str, installations: dict[str, Future[Path]], tmp_path: Path) -> None:
    if name not in installations:
        pytest.skip(f"there is no Python {VERSIONS[0] if name == 'oldest' else name} on this machine")
    python = installations[name].result()
    (code,) = python.parents[1].glob("lib/python*/site-packages/amorsize_executor")
    _run(str(python), "-W", "error", "-m", "compileall", "-q", "-f", str(code), folder=tmp_path)
    shutil.copy(SMOKE, tmp_path)
    _run(str(python), SMOKE.name, folder=tmp_path)
