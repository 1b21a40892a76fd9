"""The families that are registered without the rest of the package are those of the table, dense and mixtures."""

import subprocess
import sys

from flap.checkpoint.register import DENSE, MIXTURES
from flap.models.families import FAMILIES


def test_every_family_is_registered() -> None:
    assert list(DENSE) == [name for name, family in FAMILIES.items() if not family.experts]
    assert list(MIXTURES) == [name for name, family in FAMILIES.items() if family.experts]


def test_registration_imports_nothing_that_is_missing_beside_an_engine() -> None:
    code = """
import sys
from flap.checkpoint.register import register
register()
assert not {"hydra", "omegaconf", "flap.models"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
