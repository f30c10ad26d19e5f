"""The file of code that a setting names is found without running that code, and whatever is wrong with it."""

import pytest

from prefopt.process.named_code import find_file


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, content: str):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(content)
        (folder / "points.py").write_text("raise RuntimeError('must not be run')")
        return folder

    return write


def test_a_module_of_a_package_is_found_and_not_run(package):
    folder = package("package_that_works", "")
    assert find_file("package_that_works.points:count") == folder / "points.py"


@pytest.mark.parametrize(
    ("name", "content"),
    [("package_that_raises", "raise RuntimeError('no')"), ("package_with_a_typo", "def"), ("package_cut", "1 / 0")],
)
def test_a_module_of_a_package_that_cannot_be_imported_has_no_file(package, name, content):
    package(name, content)
    assert find_file(f"{name}.points:count") is None


@pytest.mark.parametrize("name", ["no_such_module_anywhere:f", "sys:exit", ".:f", ":f"])
def test_what_is_no_module_of_a_file_has_none(name):
    assert find_file(name) is None
