"""flap's packages import in one direction, its functions are short, and `import flap` is fast."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flap
from flap.config import config_dir
from flap.modeling.modeling_flap import FlapLlamaConfig
from tests.helpers.code import (
    Size,
    functions_of,
    length_of,
    num_parameters_of,
    size_of,
    walruses_in_arguments,
)

PACKAGE = Path(flap.__file__).parent
# The packages of flap, called rooms, in the order of their imports. A room imports only from itself
# and from rooms before it (to its left in the diagram of CONTRIBUTING.md). The same rule holds for
# STAGES, the packages in flap/method.
ROOMS = [
    "config",
    "runtime",
    "storage",
    "data",
    "modeling",
    "models",
    "method",
    "checkpoint",
    "evaluation",
    "results",
    "runs",
]
COMMANDS = "commands"  # `flap doctor`, `flap reproduce` and `flap study`
STAGES = [
    "calibration",
    "importance",
    "allocation",
    "compression",
    "search",
    "vocabulary",
    "recovery",
]
# The files and packages of flap/models, in the order in which they should be read. A file imports
# only from files before it.
MODELS = [
    # These files access devices, and the parts of a model such as attentions, MLPs and experts.
    "devices",
    "offload",
    "block",
    "stacked_experts",
    "experts",
    "whole_experts",
    "adapter",
    "mixture_adapter",
    "architecture",
    "forward",
    "random_weights",
    # These files read the files of a model.
    "weights",
    "config_files",
    "gguf_header",
    "copied_head",
    "gguf_file",
    "locate",
    "model_files",
    # These files place weights in memory or on disk, and pass tokens through the layers.
    "placed_model",
    "predictions",
    "hidden_files",
    "walk",
    "placement",
    # These files find a model by its name or path, and describe it.
    "source",
    "loaded_source",
    "find",
]
INNER = [
    *(f"method/{stage}" for stage in STAGES),
    "checkpoint/export",
    "results/tracking",
    "runs/sweeps",
]
DOORS = {"api", "cli", "pipeline"}
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of all imports of a file, including those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(*paths: Path, inside: str = "flap") -> set[str]:
    """Return the packages in the package `inside` from which these files import."""
    names = {name for path in paths for name in imports(path) if name.startswith(f"{inside}.")}
    return {name.removeprefix(f"{inside}.").split(".")[0] for name in names}


def calls(path: Path, module: str) -> set[str]:
    """Return the attributes of a module that a file uses, such as {"load"} for torch.load."""
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
    ]
    return {
        node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == module
    }


def test_every_folder_is_a_room_and_the_root_holds_doors() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ROOMS, COMMANDS}
    assert {
        path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/*/__init__.py")
    } >= set(INNER)
    assert {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")} == DOORS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_its_left(room: str) -> None:
    assert rooms_imported(*(PACKAGE / room).rglob("*.py")) <= set(ROOMS[: ROOMS.index(room) + 1])


def test_a_command_imports_from_rooms_and_from_the_pipeline() -> None:
    allowed = {*ROOMS, COMMANDS, "pipeline"}
    assert rooms_imported(*(PACKAGE / COMMANDS).rglob("*.py")) <= allowed


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_the_method_imports_only_from_its_left(stage: str) -> None:
    imported = rooms_imported(*(PACKAGE / "method" / stage).rglob("*.py"), inside="flap.method")
    assert imported <= set(STAGES[: STAGES.index(stage) + 1])


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_models_imports_only_from_those_before_it(name: str) -> None:
    file = PACKAGE / "models" / f"{name}.py"
    files = [file] if file.exists() else sorted((PACKAGE / "models" / name).glob("*.py"))
    imported = rooms_imported(*files, inside="flap.models")
    assert imported <= set(MODELS[: MODELS.index(name) + 1])


def test_every_file_of_models_has_its_place() -> None:
    found = {path.stem for path in (PACKAGE / "models").iterdir() if not path.stem.startswith("__")}
    assert found == set(MODELS)


def test_no_files_import_each_other_in_a_circle() -> None:
    """No files import each other in a circle, not even by imports inside functions.

    Files that only export names are not checked.
    """
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES
    }
    # If imports form a circle, this raises an error that names the circle.
    TopologicalSorter(
        {
            name: {given.rpartition(".")[0] for given in imports(path)} & files.keys()
            for name, path in files.items()
        }
    ).prepare()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_package_exports_a_name_of_one_of_its_modules(package: Path) -> None:
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    exported = {
        name.rpartition(".")[2]
        for name in imports(package / "__init__.py")
        if name.startswith("flap.")
    }
    assert not exported & modules


# Public names that two modules may define, each with the reason.
SHARED_NAMES = {
    "main": "the entry point of each command",
    "prune": "flap.prune for users, and the method as the stages of a run",
    "register": "flap.register for users, and the entry point that vLLM calls",
}


def public_names(path: Path) -> set[str]:
    """Return the names of the public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
    return {name for name in defined if not name.startswith("_")}


def test_no_public_name_stands_for_two_things() -> None:
    counts = Counter(name for path in MODULES for name in public_names(path))
    assert {name for name, count in counts.items() if count > 1} == SHARED_NAMES.keys()


# Limits for expressions per line, and for the numbers of lines and parameters of functions.
MOST_EXPRESSIONS = {"flap": 4.6, "tests": 5.0}  # mean number of expressions per line in a folder
MOST_EXPRESSIONS_OF_A_FILE = 6.0  # mean number of expressions per line of code in a file
MOST_LINES_OF_A_FUNCTION = 40
MOST_PARAMETERS = 6
# Functions that may exceed the limits of lines and parameters, each with the reason.
ENTRY_POINTS = {
    "flap/api.py:prune": "users pass the options of the method as keyword arguments",
}
FILES = {
    "flap": MODULES,
    "tests": sorted(Path(__file__).parent.rglob("*.py")),
}
ALL_FILES = [*FILES["flap"], *FILES["tests"]]


def shown(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


@pytest.mark.parametrize("folder", FILES)
def test_lines_are_not_crowded(folder: str) -> None:
    total = Size(0, 0)
    for path in FILES[folder]:
        total = total.plus(size_of(path))
    assert total.density <= MOST_EXPRESSIONS[folder]


def test_no_file_is_crowded() -> None:
    crowded = {}
    for path in ALL_FILES:
        density = size_of(path).density
        if density > MOST_EXPRESSIONS_OF_A_FILE:
            crowded[shown(path)] = round(density, 2)
    assert crowded == {}


def test_functions_are_short_and_have_few_parameters() -> None:
    large = {}
    for path in ALL_FILES:
        for function in functions_of(path):
            name = f"{shown(path)}:{function.name}"
            length = length_of(function)
            parameters = num_parameters_of(function)
            if length > MOST_LINES_OF_A_FUNCTION or parameters > MOST_PARAMETERS:
                large[name] = f"{length} lines, {parameters} parameters"
    assert large.keys() == ENTRY_POINTS.keys(), large


@pytest.mark.parametrize("folder", FILES)
def test_no_call_assigns_in_its_arguments(folder: str) -> None:
    found = {}
    for path in FILES[folder]:
        lines = walruses_in_arguments(path)
        if lines:
            found[shown(path)] = lines
    assert found == {}


PLACED = (
    r"PLACEMENTS|Resident|Spread|OnDisk|isinstance\(model|on_disk|placement *[!=]=|placement in"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_but_the_room_of_models_asks_where_weights_are(path: Path) -> None:
    if not {"models", "placement", "config"} & {path.parent.name}:
        assert not re.findall(PLACED, path.read_text())


def test_config_imports_neither_torch_nor_transformers() -> None:
    tops = {
        name.split(".")[0] for path in (PACKAGE / "config").glob("*.py") for name in imports(path)
    }
    assert "hydra" in tops
    assert not tops & {"torch", "transformers", "datasets"}


def test_the_file_that_travels_needs_transformers_and_torch_alone() -> None:
    names = {name.split(".")[0] for name in imports(PACKAGE / "modeling" / "modeling_flap.py")}
    assert names - sys.stdlib_module_names == {"transformers", "torch"}


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
    FlapLlamaConfig(
        per_layer_config={0: {"intermediate_size": 7}}, num_hidden_layers=1
    ).save_pretrained(path)
    return path


def test_import_flap_changes_nothing_and_imports_nothing_heavy() -> None:
    code = """
import sys
finders = list(sys.meta_path)
import flap
assert sys.meta_path == finders and not {"torch", "transformers", "hydra"} & set(sys.modules)
from transformers import AutoConfig
assert AutoConfig.from_pretrained.__module__ == AutoConfig.__module__
import flap.api, flap.checkpoint.load, flap.cli
assert AutoConfig.from_pretrained.__module__ == AutoConfig.__module__
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import flap; flap.register(); from transformers import AutoConfig",
        pytest.param(
            (
                "from transformers import AutoConfig, AutoModelForCausalLM; import flap; "
                "flap.register(); flap.register()"
            ),
            # `make test` leaves out this case, in which the Auto classes are imported before
            # `register` is called. Many other tests do this, too.
            marks=pytest.mark.long,
        ),
    ],
)
def test_after_register_auto_classes_read_pruned_checkpoints(
    code: str, pruned_config: Path, tmp_path: Path
) -> None:
    code += (
        f"; assert type(AutoConfig.from_pretrained({str(pruned_config)!r})).__name__ == "
        "'FlapLlamaConfig'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
