"""The shape of the house: data flows one way, and importing flap stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flap
from flap.checkpoint.modeling_flap import FlapLlamaConfig
from flap.config import config_dir

PACKAGE = Path(flap.__file__).parent
STAGES = [
    "config", "models", "calibration", "importance", "allocation", "compression", "checkpoint", "evaluation",
    "reporting",
]  # fmt: skip
NEUTRAL = ["config", "errors", "files", "progress", "cache", "status"]  # any stage may use them, and they use no stage
SEE_ALL = [
    "pipeline", "stages", "pruning", "cli", "api", "study", "callbacks", "cache_command", "launching", "streaming",
    "export", "job", "searching",
    "__init__", "__main__",
]  # fmt: skip
FIRST_MOMENT = ["auto_classes"]  # runs at `import flap`, and may reach the checkpoint classes alone
MODULES = sorted(PACKAGE.rglob("*.py"))
BLOCKS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES})


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def blocks_imported(block: str) -> set[str]:
    """The direct children of flap that a stage or top-level module imports from."""
    files = [path for path in MODULES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == block]
    names = {name for path in files for name in imports(path) if name.split(".")[0] == "flap"}
    return {name.split(".")[1] for name in names}


def calls(path: Path, module: str) -> set[str]:
    """Attributes of a module that a file names: {"load"} for torch.load."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == module}


def test_every_module_has_its_place() -> None:
    assert set(BLOCKS) == {*STAGES, *NEUTRAL, *SEE_ALL, *FIRST_MOMENT}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_from_its_left(stage: str) -> None:
    assert blocks_imported(stage) <= {*STAGES[: STAGES.index(stage) + 1], *NEUTRAL}


@pytest.mark.parametrize("helper", NEUTRAL)
def test_helpers_import_no_stage(helper: str) -> None:
    assert blocks_imported(helper) <= {*NEUTRAL}


def test_importing_flap_reaches_the_checkpoint_classes_alone() -> None:
    assert blocks_imported("auto_classes") == {"checkpoint"}


def test_the_pipeline_sees_all_stages() -> None:
    assert blocks_imported("pipeline") | blocks_imported("stages") | blocks_imported("pruning") >= set(STAGES)


def test_config_imports_neither_torch_nor_transformers() -> None:
    tops = {name.split(".")[0] for name in imports(PACKAGE / "config.py")}
    assert "hydra" in tops
    assert not tops & {"torch", "transformers", "datasets"}


def test_the_file_that_travels_needs_transformers_and_torch_alone() -> None:
    names = imports(PACKAGE / "checkpoint" / "modeling_flap.py")
    assert {name.split(".")[0] for name in names} == {"transformers", "torch"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module(path: Path) -> None:
    if path.name != "__main__.py":
        assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"
    pickling = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imports(path)} & pickling
    assert not calls(path, "torch") & {"load", "save"}


def test_no_folder_shadows_the_typed_ratio() -> None:
    assert (Path(config_dir()) / "metric").is_dir()
    assert not (Path(config_dir()) / "ratio").exists()


@pytest.fixture(scope="module")
def pruned_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned")
    FlapLlamaConfig(per_layer_config={0: {"intermediate_size": 7}}, num_hidden_layers=1).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "code",
    [
        "import sys, flap; assert not {'torch', 'transformers', 'hydra'} & set(sys.modules)"
        "; from transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM; import flap",
        "import flap; from transformers import AutoConfig",
        "from transformers import AutoConfig; import flap",
        "import flap; from transformers import LlamaForCausalLM, AutoConfig",
        "import flap; from transformers import Qwen3Model, AutoConfig",
    ],
)
def test_import_flap_is_all_that_the_auto_classes_need(code: str, pruned_config: Path, tmp_path: Path) -> None:
    code += f"; assert type(AutoConfig.from_pretrained({str(pruned_config)!r})).__name__ == 'FlapLlamaConfig'"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
