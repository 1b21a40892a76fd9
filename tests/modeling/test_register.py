"""Registration with transformers' Auto classes works even if optional packages are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from flap.modeling.modeling_flap import pruned_class
from flap.modeling.register import register_configs


@pytest.mark.long
def test_registration_and_a_dense_config_import_no_more_than_they_need(model_dir: Path) -> None:
    """`register` and `read_config` do not import the code of models.

    In addition, `register` imports no package that the environment of an inference engine may lack.
    """
    code = """
import sys
from flap.modeling.register import register
register()
assert not {"hydra", "omegaconf", "flap.models"} & set(sys.modules)
from flap.models import read_config
before = set(sys.modules)
read_config(sys.argv[1])
assert not [name for name in set(sys.modules) - before if name.startswith("transformers.models.")
            and ".modeling_" in name and ".auto." not in name]
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_dir)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_pruned_config_derives_from_that_of_its_model() -> None:
    """The base class of a pruned model's config is the `config_class` of the dense model's class.

    `register_configs` finds this class without importing the dense model's class, because the
    import is slow.
    """
    for config, names in register_configs().items():
        for name in names:
            model = pruned_class(name).__bases__[-1]
            assert config.__bases__[-1] is model.config_class, (config, name)
