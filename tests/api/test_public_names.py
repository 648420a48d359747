from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gos_adapt
from gos_adapt import errors

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "tvm", "onnx", "onnxruntime", "numpy", "scipy", "sklearn", "pymoo", "sympy", "plotly")


def test_the_public_names_are_these() -> None:
    assert set(gos_adapt.__all__) == {
        "AdaptConfig",
        "AdaptError",
        "ConfigError",
        "DeviceError",
        "DeviceUnreachableError",
        "ModelImportError",
        "RunFolderError",
        "Task",
        "UnsupportedOperatorError",
        "VerificationError",
        "adapt",
        "load_compiled",
        "load_task",
    }
    assert dir(gos_adapt) == sorted(gos_adapt.__all__)


@pytest.mark.parametrize("name", gos_adapt.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(gos_adapt, name).__doc__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gos_adapt' has no attribute 'adpat'"):
        _ = gos_adapt.adpat


def test_every_error_is_drawn_in_the_tree_and_public() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == {name for name in gos_adapt.__all__ if name.endswith("Error")}
    assert all(name in str(errors.__doc__) for name in classes)


@pytest.mark.parametrize("code", ["import gos_adapt", "from gos_adapt.cli import main; main(['--help'])"])
def test_importing_and_asking_for_help_stay_light(code: str) -> None:
    check = f"{code}\nimport sys\nsys.exit(', '.join(name for name in {HEAVY} if name in sys.modules))"
    light = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=False)
    assert light.stderr.strip() == ""


def test_the_version_is_that_of_the_package() -> None:
    assert f'version = "{gos_adapt.__version__}"' in (ROOT / "pyproject.toml").read_text()
