"""With flap, tasks of lm-eval give the same results as a simple loop over their documents.

A measurement leaves lm-eval, the logging and the states of random generators unchanged.
"""

import logging
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import lm_eval
import numpy
import pytest
import torch
from lm_eval.api import task as lm_eval_task
from lm_eval.models import huggingface
from transformers import PreTrainedTokenizerFast

from flap.evaluation import Measurement
from flap.evaluation.generation import Generation
from flap.evaluation.zero_shot import ZeroShot
from flap.evaluation.zero_shot_results import flat_numbers
from flap.models import Resident
from tests.cases import tiny_model
from tests.helpers.zero_shot_toys import (
    ANIMALS,
    CHAT,
    QUESTIONS,
    by_hand,
    log_likelihoods,
    mean,
    only_toys,
)


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let lm-eval find only the tasks of zero_shot_toys.py, and let the hub seem offline."""
    with only_toys(tmp_path_factory.mktemp("toys")):
        yield


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that records the prompts which the model receives."""
    seen: list[str] = []
    for name in ("loglikelihood", "generate_until"):
        real = getattr(huggingface.HFLM, name)

        def spy(self: Any, requests: list[Any], real: Any = real, **options: Any) -> Any:
            seen.extend(request.args[0] for request in requests)
            return real(self, requests, **options)

        monkeypatch.setattr(huggingface.HFLM, name, spy)
    return seen


def measured(
    tokenizer: PreTrainedTokenizerFast, *names: str, weights: int = 0, **options: Any
) -> Measurement:
    found = Measurement()
    for task in ZeroShot(list(names), **options).prepare(tokenizer, 128):
        found |= task.run(Resident(tiny_model("llama-gqa", weights)))
    return found


def run(tokenizer: PreTrainedTokenizerFast, *names: str, **options: Any) -> dict[str, float]:
    return measured(tokenizer, *names, **options).numbers


@pytest.mark.parametrize("limit", [None, 1, 2, 4, 5, 100])
def test_accuracies_equal_a_loop_by_hand(
    limit: int | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = run(tokenizer, "animals", limit=limit)
    model = tiny_model("llama-gqa")
    for measure in ("acc", "acc_norm"):
        hits = by_hand(model, tokenizer, "animals", normalised=measure == "acc_norm", limit=limit)
        assert found[f"animals/{measure}"] == pytest.approx(mean(hits))
        error = (mean(hits) * (1 - mean(hits)) / (len(hits) - 1)) ** 0.5 if len(hits) > 1 else None
        assert found.get(f"animals/{measure}_stderr") == (
            None if error is None else pytest.approx(error)
        )
    # The task has three results (two accuracies, and the margin between right and wrong choices),
    # each with its standard error. With one document, there are no standard errors.
    assert len(found) == (3 if limit == 1 else 6)


@pytest.mark.parametrize(("task", "normalised"), [("animals", True), ("plain", False)])
def test_the_margin_equals_a_loop_by_hand(
    task: str, normalised: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = measured(tokenizer, task)
    margins = []
    for i, scores in enumerate(
        log_likelihoods(tiny_model("llama-gqa"), tokenizer, "animals", normalised)
    ):
        right = scores.pop(i % 3)
        margins.append(right - max(scores))
    assert found.documents[f"{task}/margin"] == pytest.approx(margins, rel=1e-4)
    assert found.numbers[f"{task}/margin"] == pytest.approx(mean(margins), rel=1e-4)
    assert found.numbers[f"{task}/margin_stderr"] == pytest.approx(
        numpy.std(margins, ddof=1) / 6**0.5, rel=1e-4
    )
    accuracy = found.documents[f"{task}/{'acc_norm' if normalised else 'acc'}"]
    assert [float(margin > 0) for margin in margins] == accuracy and len(set(accuracy)) == 2


def test_what_is_no_mean_has_no_error_which_would_take_minutes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = run(tokenizer, "correlated")
    assert {
        "correlated/mcc",
        "correlated/acc_stderr",
    } <= found.keys() and "correlated/mcc_stderr" not in found


def test_averages_and_their_errors(tokenizer: PreTrainedTokenizerFast) -> None:
    of_tasks = measured(tokenizer, "animals", "plain")
    evaluator = ZeroShot(["animals", "plain"])
    found = of_tasks.numbers
    of_average = evaluator.summary(of_tasks)
    summary = of_average.numbers
    assert of_average.better == dict.fromkeys(
        ("zero_shot/average", "zero_shot/average_margin"), "higher"
    )
    for average, parts in {
        "zero_shot/average": ("animals/acc_norm", "plain/acc"),
        "zero_shot/average_margin": ("animals/margin", "plain/margin"),
    }.items():
        assert summary.pop(average) == pytest.approx(sum(found[part] for part in parts) / 2)
        errors = [found[f"{part}_stderr"] for part in parts]
        assert summary.pop(f"{average}_stderr") == pytest.approx(
            sum(error**2 for error in errors) ** 0.5 / 2
        )
    assert not summary
    without = evaluator.summary(Measurement({"animals/acc_norm": 0.5, "plain/acc": 0.5}))
    assert "zero_shot/average_margin" not in without.numbers
    assert evaluator.averages({"animals/acc_norm": 0.3}) == {}


def test_a_group_is_one_task_weighed_by_size(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama-gqa", seed=2)
    [task] = ZeroShot(["pair"]).prepare(tokenizer, 128)
    found = task.run(Resident(model)).numbers
    hits = {
        name: by_hand(model, tokenizer, name, normalised=False) for name in ("animals", "places")
    }
    assert [len(one) for one in hits.values()] == [6, 2]
    assert {name: found[f"{name}/acc"] for name in hits} == pytest.approx(
        {n: mean(one) for n, one in hits.items()}
    )
    assert found["pair/acc"] == pytest.approx(mean(hits["animals"] + hits["places"]))
    assert found["pair/acc"] != pytest.approx((found["animals/acc"] + found["places/acc"]) / 2)


def test_a_tag_is_its_tasks_and_each_runs_once(tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = ZeroShot(["places", "toys", "pair"]).prepare(tokenizer, 128)
    assert [task.name for task in tasks] == ["places", "animals", "pair"]


def test_examples_come_from_the_training_split(
    tokenizer: PreTrainedTokenizerFast, contexts: list[str]
) -> None:
    run(tokenizer, "animals", num_fewshot=2, limit=3)
    assert len(contexts) == 9
    for context in contexts:
        *examples, question = context.split("\n\n")
        assert len(examples) == 2 and all(example.startswith("the w") for example in examples)
        assert not question.startswith("the w")


def test_the_seed_picks_the_examples(
    tokenizer: PreTrainedTokenizerFast, contexts: list[str]
) -> None:
    for seed in (1, 1, 2):
        run(tokenizer, "animals", num_fewshot=2, seed=seed)
    first = contexts[:18]
    again = contexts[18:36]
    other = contexts[36:]
    assert first == again != other


@pytest.mark.parametrize(("asked", "examples"), [(None, 1), (0, 0), (3, 3)])
def test_a_task_has_its_own_number_of_examples(
    asked: int | None, examples: int, tokenizer: PreTrainedTokenizerFast, contexts: list[str]
) -> None:
    [task] = ZeroShot(["own_shots"], num_fewshot=asked, limit=1).prepare(tokenizer, 128)
    for _ in ("dense", "pruned"):
        task.run(Resident(tiny_model("llama-gqa")))
    assert [context.count("\n\n") for context in contexts] == [examples] * 6


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_model_in_memory_is_the_one_measured(
    batch_size: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama-gqa")
    given = {}
    rows = set()
    before = deepcopy(model.state_dict())
    make = huggingface.HFLM.__init__

    def spy(lm: huggingface.HFLM, **options: Any) -> None:
        given.update(options)
        make(lm, **options)

    monkeypatch.setattr(huggingface.HFLM, "__init__", spy)
    model.register_forward_pre_hook(lambda _, args: rows.add(len(args[0])))
    [task] = ZeroShot(["animals"], batch_size=batch_size).prepare(tokenizer, 128)
    expected = run(tokenizer, "animals")
    given.clear()
    assert task.run(Resident(model)).numbers == pytest.approx(expected, abs=1e-6)
    assert given["pretrained"] is model and given["batch_size"] == batch_size
    assert max(rows) == batch_size
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_random_state_logging_and_bars_are_as_before(
    tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("llama-gqa")
    logger = logging.getLogger("lm_eval")
    tqdm = lm_eval_task.tqdm
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="lm_eval")
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    python_state = random.getstate()
    numpy_state = numpy.random.get_state()[1].tolist()
    torch_state = torch.get_rng_state()

    [task] = ZeroShot(["animals"]).prepare(tokenizer, 128)
    task.run(Resident(model))
    assert random.getstate() == python_state
    assert numpy.random.get_state()[1].tolist() == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert logger.level == logging.INFO
    assert lm_eval_task.tqdm is tqdm
    assert huggingface.tqdm is tqdm
    out, err = capfd.readouterr()
    assert out == ""
    # Without a terminal, there is no progress bar, and no progress line in the first minute.
    assert err == ""
    for record in caplog.records:
        assert not record.name.startswith("lm_eval")


def test_the_tokenizer_is_given_no_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = deepcopy(tokenizer)
    bare.pad_token = None
    assert run(bare, "animals") == run(tokenizer, "animals")
    assert bare.pad_token is None


@pytest.mark.parametrize(
    ("evaluator", "choice", "in_chat"),
    [
        (ZeroShot, "auto", False),
        (ZeroShot, "true", True),
        (Generation, "auto", True),
        (Generation, "False", False),
    ],
)
def test_examples_and_question_are_turns_of_the_chat_template(
    evaluator: type[ZeroShot],
    choice: str,
    in_chat: bool,
    tokenizer: PreTrainedTokenizerFast,
    contexts: list[str],
) -> None:
    chatting = deepcopy(tokenizer)
    options = {"num_fewshot": 1, "limit": 1}
    chatting.chat_template = CHAT
    name = "own_shots" if evaluator is ZeroShot else "asked"
    [plain] = evaluator([name], **options, chat_template="false").prepare(chatting, 128)
    [task] = evaluator([name], **options, chat_template=choice).prepare(chatting, 128)
    plain.run(Resident(tiny_model("llama-gqa")))
    before = contexts.copy()
    task.run(Resident(tiny_model("llama-gqa")))
    after = contexts[len(before) :]
    assert (task.identity, task.origin, after) == (plain.identity, plain.origin, before) or in_chat
    if in_chat:
        example, question = before[0].split("\n\n")
        asked, _, answer = example.partition(" was the ")
        turns = (
            f"<s> user {asked} was the </s>\n<s> assistant {answer} </s>\n<s> user {question} "
            "</s>\n<s> a"
        )
        assert after == [turns] * len(before)
        assert task.identity == {**plain.identity, "chat_template": CHAT}
        assert task.origin == plain.origin + "; through the chat template"


def test_answers_are_of_the_likeliest_words_whatever_a_checkpoint_asks_for(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    [task] = Generation(["written"], limit=2).prepare(tokenizer, 128)
    answers = []
    for options in ({}, {"repetition_penalty": 5.0, "max_new_tokens": 1}):
        model = tiny_model("llama-gqa")
        model.generation_config.update(**options)
        calls: list[object] = []
        hook = lambda _, args, __, calls=calls: calls.append(args[0].tolist())  # noqa: E731
        model.get_input_embeddings().register_forward_hook(hook)
        task.run(Resident(model))
        answers.append(calls)
        assert all(
            getattr(model.generation_config, name) == value for name, value in options.items()
        )
    assert answers[0] == answers[1] and len(answers[0]) > 1


def test_a_template_that_refuses_turns_is_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    chatting = deepcopy(tokenizer)
    chatting.chat_template = "{{ raise_exception('one turn only') }}"
    refusal = (
        r"^eval\.generation\.chat_template=auto: the tokenizer's chat template refuses "
        r".* \(one turn only\); expected"
    )
    with pytest.raises(ValueError, match=refusal):
        Generation(["asked"]).prepare(chatting, 128)


def test_identity_holds_every_option_that_changes_numbers(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def identity(**options: Any) -> dict[str, Any]:
        [task] = ZeroShot(["animals"], **options).prepare(tokenizer, 128)
        return dict(task.identity)

    base = identity()
    assert base["lm_eval"] == lm_eval.__version__ and base["documents"].startswith("hub")
    for other in ({"limit": 3}, {"num_fewshot": 2}, {"seed": 3}, {"batch_size": 3}):
        assert identity(**other) != base


def test_filters_stay_in_the_name(tokenizer: PreTrainedTokenizerFast) -> None:
    evaluator = ZeroShot(["written"], limit=2)
    found = measured(tokenizer, "written", limit=2)
    measures = ("written/exact_match,first", "written/f1")
    assert set(found.numbers) == {*measures, *(f"{one}_stderr" for one in measures)}
    assert evaluator.summary(found) == Measurement()  # a task without accuracy is not averaged


def test_lm_eval_says_which_values_are_better(tokenizer: PreTrainedTokenizerFast) -> None:
    found = measured(tokenizer, "mistakes", "written", "pair", "undecided").better
    up = ("acc", "acc_norm", "margin")
    down = {"mistakes/acc": "lower", "mistakes/margin": "higher"}
    leaves = {f"{task}/{measure}": "higher" for task in ("animals", "places") for measure in up}
    # `found` has no value for the group `undecided`, because its two tasks disagree: higher is
    # better in `animals`, and lower is better in `mistakes`.
    written = dict.fromkeys(("written/exact_match,first", "written/f1"), "higher")
    assert found == {**leaves, **down, **written, "pair/acc": "higher"}


def test_only_finite_numbers_are_kept() -> None:
    results = {
        "a": {
            "acc,none": numpy.float32(0.5),
            "f1,none": float("nan"),
            "x,none": "N/A",
            "sample_len": 3,
        }
    }
    assert flat_numbers(results) == {"a/acc": 0.5}


@pytest.mark.parametrize(
    ("task", "num_fewshot", "message"),
    [
        (
            "fixed",
            2,
            (
                r"eval\.zero_shot\.num_fewshot=2: fixed is defined without examples; expected "
                r"null or 0"
            ),
        ),
        (
            "code",
            None,
            r"eval\.zero_shot\.tasks=code: runs code that the model writes; not supported",
        ),
        (
            "zzzzzz",
            None,
            (
                r"eval\.zero_shot\.tasks=zzzzzz: unknown task; expected a task, group or tag "
                r"of lm-eval"
            ),
        ),
    ],
)
def test_what_lm_eval_would_ignore_or_refuse_late(
    task: str, num_fewshot: int | None, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShot([task], num_fewshot=num_fewshot).prepare(tokenizer, 128)


def test_the_workload_counts_documents_choices_and_examples(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def read(name: str, **options: Any) -> float:
        [task] = ZeroShot([name], **options).prepare(tokenizer, 128)
        return task.workload.read

    questions = [len(question) for question in QUESTIONS["animals"]]
    choices = sum(map(len, ANIMALS))
    whole = sum(len(ANIMALS) * characters + choices for characters in questions) / 4
    assert read("animals") == pytest.approx(whole)
    assert read("animals", num_fewshot=2) == pytest.approx(3 * whole)
    assert read("own_shots") == pytest.approx(2 * whole)
    assert read("animals", limit=2) < whole / 2
    [written] = Generation(["written"], num_fewshot=0).prepare(tokenizer, 128)
    # The workload estimates how many tokens the model reads and writes. Each of the six answers has
    # at most two tokens; the estimate is half of this maximum, which is one token for each answer.
    assert written.workload == (sum(questions) / 4, 6 * 1)
