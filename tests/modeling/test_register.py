"""The families that are registered without the rest of the package are those of the table, dense and mixtures."""

import subprocess
import sys
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.modeling.modeling_flap import pruned_class
from flap.modeling.register import DENSE, MIXTURES, VISION, register_configs
from flap.models.families import FAMILIES, TOWERS


def test_every_family_is_registered() -> None:
    alone = {name: family for name, family in FAMILIES.items() if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert list(DENSE) == [name for name, family in alone.items() if not family.experts]
    assert list(MIXTURES) == [name for name, family in alone.items() if family.experts]
    assert list(VISION) == list(TOWERS)


def test_registration_imports_nothing_that_is_missing_beside_an_engine() -> None:
    code = """
import sys
from flap.modeling.register import register
register()
assert not {"hydra", "omegaconf", "flap.models"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_pruned_config_derives_from_that_of_its_model() -> None:
    """Its name is found without the model, whose import takes longer."""
    for config, (architecture, kinds) in register_configs().items():
        for auto, kind in kinds.items():
            if auto != "AutoConfig":
                model = pruned_class(architecture, kind).__bases__[-1]
                assert config.__bases__[-1] is model.config_class, (config, kind)


def test_reading_a_dense_config_imports_no_model(model_dir: Path) -> None:
    code = """
import sys
from flap.models import read_config
before = set(sys.modules)
read_config(sys.argv[1])
assert not [name for name in set(sys.modules) - before if name.startswith("transformers.models.")
            and ".modeling_" in name and ".auto." not in name]
"""
    done = subprocess.run([sys.executable, "-c", code, str(model_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
