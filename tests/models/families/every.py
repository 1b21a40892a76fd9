"""Lists of all model families that are tested by `FamilyContract`."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.modeling.families import FAMILIES, TOWERS
from tests.models.families import test_families, test_mixtures, test_other_names, test_vision
from tests.models.families.contract import FamilyContract

# Each test class in these modules tests one family.
assert all((test_families, test_mixtures, test_other_names, test_vision))
EVERY = FamilyContract.__subclasses__()
# The names of all tested architectures. A language model that transformers provides only as a part
# of a vision-language model is left out, because the tests of the vision-language model cover it.
MODEL_TYPES = [*(name for name in FAMILIES if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), *TOWERS]
