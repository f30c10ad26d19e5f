"""README's table of the packages, read from top to bottom, is the order that import-linter holds."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = re.compile(r"`(?:src/prefopt/)?(\w+)/`")


def table_of_packages(readme: str) -> list[str]:
    """The packages directly in `src/prefopt/`, in the order in which README's table names them."""
    rows = readme.partition("## Where things are")[2].partition("\n## ")[0].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `src/prefopt/")]
    return [name for cell in cells for name in PACKAGE.findall(cell)]


def layers_of_packages() -> list[set[str]]:
    """The packages of each layer of `pyproject.toml`, from the top; commands are modules, and left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    layers = [set(re.split(r"\s*[|:]\s*", layer)) for layer in contract["layers"]]
    packages = {path.parent.name for path in (ROOT / "src" / "prefopt").glob("*/__init__.py")}
    return [found for layer in layers if (found := layer & packages)]


def test_readme_names_the_packages_in_the_order_of_the_layers() -> None:
    named, layers = table_of_packages((ROOT / "README.md").read_text(encoding="utf-8")), layers_of_packages()
    place = {package: number for number, layer in enumerate(layers) for package in layer}
    assert sorted(named) == sorted(place), "README names each package of src/prefopt once"
    assert named == sorted(named, key=place.__getitem__), f"the order, from the top: {layers}"
