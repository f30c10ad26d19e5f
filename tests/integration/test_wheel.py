"""The wheel holds everything that the main job needs: configuration, study, base model, templates."""

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_configuration_study_model_and_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "prefopt/conf/train.yaml",
        "prefopt/conf/experiment/dpo_brand_voice.yaml",
        "prefopt/experiments/brand_voice/train.jsonl",
        "prefopt/experiments/brand_voice/held_out.jsonl",
        "prefopt/assets/base_model/model.safetensors",
        "prefopt/assets/base_model/chat_template.jinja",
        "prefopt/assets/neutral_texts.jsonl",
        "prefopt/assets/regression.jsonl",
        *(
            f"prefopt/reports/templates/{name}"
            for name in ("report.html.j2", "audit.html.j2", "page.html.j2", "charts.css")
        ),
        "prefopt/comparison/templates/compare.html.j2",
    ):
        assert needed in names
    results = {name for name in names if "/runs/" in name and not name.startswith("prefopt/runs/")}
    assert not results | {name for name in names if name.endswith(".pyc")}


def test_the_wheel_names_its_licence_and_holds_it(wheel):
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        folder = metadata.removesuffix("METADATA")
        head = content.read(metadata).decode().partition("\n\n")[0].splitlines()
        text = content.read(f"{folder}licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in head
    assert not [line for line in head if line.startswith(("Project-URL", "Home-page"))]
    assert "Apache License" in text
    assert "The prefopt authors" in text


def test_an_unpacked_wheel_composes_the_same_configuration_from_anywhere(wheel, tmp_path):
    """Without the checkout on its path, the package finds its own conf/ and resolves its own files."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from prefopt.process.paths import PACKAGE, resolve\n"
        "assert str(PACKAGE).startswith(sys.argv[1]), PACKAGE\n"
        "from prefopt.config.load import load_config, to_yaml\n"
        "config = load_config(['+experiment=dpo_brand_voice'])\n"
        "assert str(resolve(config.data.train)).startswith(sys.argv[1])\n"
        "print(to_yaml(config))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site")], cwd="/", capture_output=True, text=True, check=True
    )
    from prefopt.config.load import load_config, to_yaml

    assert done.stdout.strip() == to_yaml(load_config(["+experiment=dpo_brand_voice"])).strip()
