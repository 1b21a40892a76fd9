"""Every family that is under the contract."""

from tests.models.families import test_families, test_mixtures, test_other_names
from tests.models.families.contract import FamilyContract

assert all((test_families, test_mixtures, test_other_names))  # each of their classes is a family
EVERY = FamilyContract.__subclasses__()
