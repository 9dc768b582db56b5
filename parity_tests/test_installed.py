"""The wheel holds everything, and works where there is no checkout."""

import subprocess
import sysconfig
import zipfile

import pytest

from parity_tests import installed
from parity_tests.compiling import CHEAP_FLAGS
from parity_tests.installed import ROOT, Environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return installed.build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_packages_under_names_of_its_own(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "unet_*", "train"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    expected = {name.replace("train/", "unet_train/", 1) if name.startswith("train/") else name
                for name in tracked if name != "unet_train"}  # fmt: skip
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    packages = {name.partition("/")[0] for name in names if "/" in name}
    assert {f"{package}/py.typed" for package in packages} <= names
    assert all(name.startswith("unet_") for name in names)


def test_what_is_installed_trains_predicts_and_converts(wheel, tmp_path, capsys):
    """The new environment borrows its dependencies from this one, and nothing else of it."""
    environment = Environment(tmp_path, {"XLA_FLAGS": CHEAP_FLAGS})
    environment.run("pip", "install", "--quiet", "--no-deps", str(wheel))
    (site,) = environment.place.glob("lib/*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = environment.run("python", "-c", "import unet_cli, unet_train; print(unet_train)")
    assert str(site) in found
    installed.check_training(environment)
