"""The families that are registered without the rest of the package are those of the table, dense and mixtures."""

import subprocess
import sys

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.checkpoint.register import DENSE, MIXTURES, VISION
from flap.models.families import FAMILIES, TOWERS


def test_every_family_is_registered() -> None:
    alone = {name: family for name, family in FAMILIES.items() if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert list(DENSE) == [name for name, family in alone.items() if not family.experts]
    assert list(MIXTURES) == [name for name, family in alone.items() if family.experts]
    assert list(VISION) == list(TOWERS)


def test_registration_imports_nothing_that_is_missing_beside_an_engine() -> None:
    code = """
import sys
from flap.checkpoint.register import register
register()
assert not {"hydra", "omegaconf", "flap.models"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
