"""Complete runs with vocabulary=trim change only what depends on the vocabulary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import flap
from flap.data import Batch
from flap.method.recovery import distillation
from flap.pipeline import run
from flap.results import Report
from flap.results.report_tables import show
from flap.results.tracking.base import summary
from flap.runs import keys
from flap.runs.preparation import prepare
from tests.cases import tiny_model
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB, smollm
from tests.helpers.zero_shot_toys import only_toys

SIZE = 320
TRIM = ("vocabulary=trim", f"vocabulary.size={SIZE}")
Trimmed = Callable[..., Report]


@pytest.fixture
def trimmed(words_dir: Path, words_file: Path, other_file: Path, tmp_path: Path) -> Trimmed:
    """Return a function that does a run with vocabulary=trim and further options in tmp_path."""
    texts = (f"eval.perplexity.datasets=[{other_file}]", "eval.perplexity.max_tokens=320")
    inputs = [*tiny(words_dir, words_file), *texts]
    return lambda *options: run(composed(*inputs, *TRIM, *options), tmp_path)


def test_more_is_measured_with_the_tokens_of_the_checkpoint(
    trimmed: Trimmed, words_dir: Path, words_file: Path, other_file: Path, tmp_path: Path
) -> None:
    before = trimmed("ratio=0.4")
    inputs = (*tiny(words_dir, words_file), *TRIM, "ratio=0.4")
    texts = f"eval.perplexity.datasets=[{other_file},{words_file}]"
    after = run(composed(*inputs, texts, "eval.perplexity.max_tokens=320"), tmp_path)
    assert after.vocabulary == before.vocabulary
    measured_before = "other.txt/bits_per_byte@16"
    measured_more = "fox.txt/bits_per_byte@16"
    numbers = after.evaluation["pruned"]
    assert numbers[measured_before] == before.evaluation["pruned"][measured_before]
    assert numbers[measured_more] != after.evaluation["dense"][measured_more]


def test_reconstruction_trains_on_windows_of_the_trimmed_tokenizer(
    trimmed: Trimmed,
    words_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training windows equal the calibration windows of a run on the trimmed checkpoint.

    After trimming, flap uses only the trimmed model and its tokenizer.
    """
    trained: list[Batch] = []
    train = distillation.distil

    def distil(*arguments: Any) -> dict[str, Any]:
        trained.append(arguments[3])
        return train(*arguments)

    monkeypatch.setattr(distillation, "distil", distil)
    (tmp_path / "counted.txt").write_text(" ".join(TEXT[1:]) * 30)
    counted = f"vocabulary.dataset={tmp_path / 'counted.txt'}"
    trimmed("ratio=0.4", "recover=reconstruct", "recover.epochs=1", "recover.batch_size=2", counted)

    inputs = tiny(tmp_path / "checkpoint", words_file)
    checkpoint = prepare(composed(*inputs, "ratio=0"), tmp_path / "read")
    [windows] = trained
    expected_NT = checkpoint.texts["calibration"].batch.tokens_NT
    assert sorted(windows.tokens_NT.tolist()) == sorted(expected_NT.tolist())


def test_no_layer_changes_and_its_checkpoint_is_a_stock_one(
    trimmed: Trimmed, words_dir: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    report = trimmed("ratio=0")
    assert report.vocabulary == {"before": VOCAB, "after": SIZE, "covered": 1.0}
    parameters = report.parameters
    assert parameters["total_before"] - parameters["total_after"] == (VOCAB - SIZE) * 32

    before = load_file(words_dir / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.embed_tokens.weight"}
    assert len(after["model.embed_tokens.weight"]) == SIZE

    old = AutoTokenizer.from_pretrained(words_dir)
    new = AutoTokenizer.from_pretrained(checkpoint)
    dense = AutoModelForCausalLM.from_pretrained(words_dir)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(model) is type(dense)
    assert len(new) == model.config.vocab_size == SIZE
    assert model.config.eos_token_id == model.generation_config.eos_token_id == new.eos_token_id
    ids = old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(SIZE)))
    with torch.no_grad():
        expected = dense(**old(TEXT[0], return_tensors="pt")).logits[..., ids]
        assert torch.equal(model(**new(TEXT[0], return_tensors="pt")).logits, expected)


def test_perplexities_of_two_tokenizers_share_no_row(
    trimmed: Trimmed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perplexities of models with different tokenizers cannot be compared.

    So a run measures only bits per byte, and no perplexity, for a trimmed model. The console,
    report.md, the model card and trackers show no perplexity.
    """
    training = ("recover=reconstruct", "recover.epochs=1", "recover.batch_size=2")
    report = trimmed("ratio=0.4", *training)
    perplexity = "other.txt/perplexity@16"
    bits = "other.txt/bits_per_byte@16"
    assert report.evaluation["dense"].keys() == {perplexity, bits}
    assert report.evaluation["pruned"].keys() == {bits}
    assert report.evaluation["compressed"].keys() == {bits}
    assert report.difference_stderr.keys() == {bits}
    assert report.recovery["difference_stderr"].keys() == {bits}

    capsys.readouterr()
    show(report, tmp_path)
    texts = {
        "console": capsys.readouterr().out,
        "report.md": (tmp_path / "report.md").read_text(),
        "model card": (tmp_path / "checkpoint" / "README.md").read_text(),
    }
    for text in texts.values():
        assert bits in text
        assert perplexity not in text
        assert "perplexities do not compare" in text.replace("\n", " ")
    tracked = summary(report)
    assert f"pruned/{bits}" in tracked
    assert f"pruned/{perplexity}" not in tracked


def test_tokens_are_counted_in_the_given_text(
    trimmed: Trimmed, other_file: Path, tmp_path: Path
) -> None:
    report = trimmed(
        "ratio=0",
        f"vocabulary.dataset={other_file}",
        "vocabulary.size=null",
        "vocabulary.coverage=0.9",
    )
    assert 0.9 <= report.vocabulary["covered"] < 1
    assert report.sources["vocabulary"] == str(other_file)
    assert report.domains["other.txt/perplexity@16"] == "calibration"


def test_documents_whose_tokens_were_counted_are_not_measured_on(
    trimmed: Trimmed, tmp_path: Path
) -> None:
    """The evaluation leaves out documents of `vocabulary.dataset` and of the calibration text.

    The same documents are left out for the dense and the trimmed model, although their tokenizers
    differ.
    """
    documents = [(text + " ") * 20 for text in TEXT]
    counted = tmp_path / "counted.jsonl"
    counted.write_text(json.dumps({"text": documents[1]}))
    for name, texts in (("all", documents), ("rest", documents[2:])):
        (tmp_path / name).mkdir()
        rows = [json.dumps({"text": text}) for text in texts]
        (tmp_path / name / "mine.jsonl").write_text("\n".join(rows))

    def numbers(name: str) -> Report:
        measured = f"eval.perplexity.datasets=[{tmp_path / name / 'mine.jsonl'}]"
        return trimmed(f"vocabulary.dataset={counted}", measured, "resume=false")

    whole, rest = numbers("all"), numbers("rest")
    assert whole.left_out == {"mine.jsonl/perplexity@16": 2} and rest.left_out == {}
    assert whole.evaluation == rest.evaluation


def test_a_result_is_of_the_text_that_was_counted(
    words_dir: Path, words_file: Path, tmp_path: Path
) -> None:
    counted = tmp_path / "counted.txt"

    def keys_with(text: str) -> dict[str, Any]:
        counted.write_text(text)
        config = composed(*tiny(words_dir, words_file), *TRIM, f"vocabulary.dataset={counted}")
        prepared = prepare(config, tmp_path / "run")
        return {**keys.inputs(prepared), "work": keys.workspace(prepared)}

    before = keys_with("one text")
    after = keys_with("another text")
    assert {name for name in before if before[name] != after[name]} == {"vocabulary", "work"}


FULL = ("recover=full", "recover.tokens=2432", "recover.seq_len=16")


@pytest.mark.parametrize(
    "training", [FULL, ("recover=reconstruct", "recover.batch_size=1")], ids=lambda one: one[0]
)
def test_training_and_measurements_use_the_new_tokens(
    training: tuple[str, ...], trimmed: Trimmed, tmp_path: Path
) -> None:
    (tmp_path / "toys").mkdir()
    tasks = ("eval=[perplexity,zero_shot]", "eval.zero_shot.tasks=[animals]")
    with only_toys(tmp_path / "toys"):
        report = trimmed("ratio=0.4", *tasks, *training, "recover.learning_rate=0.015")
    assert report.recovery["nats_after"] < report.recovery["nats_before"]
    measured = {"other.txt/bits_per_byte@16", "animals/acc"}
    assert measured <= report.evaluation["pruned"].keys()
    assert measured <= report.difference_stderr.keys()
    assert "| vocabulary | 512 | 320 (" in (tmp_path / "report.md").read_text()
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "Of 512 tokens of its vocabulary 320 stay." in card


def test_a_model_that_lost_only_tokens_learns_from_the_untrimmed_one(
    trimmed: Trimmed, words_file: Path, other_file: Path
) -> None:
    texts = (f"vocabulary.dataset={words_file}", f"recover.dataset={other_file}")
    training = ("recover=full", "recover.tokens=2048", "recover.seq_len=16")
    report = trimmed("ratio=0", *texts, *training, "recover.learning_rate=0.015")
    assert 0 < report.recovery["nats_after"] < report.recovery["nats_before"]


def test_it_learns_on_its_own_answers_too(trimmed: Trimmed, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} {TEXT[number % 2]}"} for number in range(40)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    answers = ("calibration.answers=self", "calibration.max_new_tokens=8")
    training = ("recover=reconstruct", "recover.batch_size=1", "recover.writer=both")
    report = trimmed("ratio=0", f"calibration.dataset={prompts}", *answers, *training)
    assert report.recovery["nats_before"] > 0
    assert report.recovery["own_text"]


def test_from_python_model_and_tokenizer_change_together(words_file: Path, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", vocab_size=VOCAB)
    tokenizer = smollm()
    options = {"dataset": str(words_file), "num_samples": 8, "seq_len": 16, "overrides": TRIM}
    other = type(model)(model.config)  # this model shares the config object of the first model
    flap.prune(model, tokenizer, ratio=0, **options)
    assert len(tokenizer) == model.config.vocab_size == SIZE
    assert len(other.get_input_embeddings().weight) == other.config.vocab_size == VOCAB
