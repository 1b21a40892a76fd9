"""Bad options on the command line are refused. Most tests run `flap` in a forked process.

The console shows one line with the error, the exit code is 1, and no files are left. If the error
occurs only after the run has begun, the file flap.log stays, and contains the traceback. If Hydra
cannot compose the options, the error appears before torch is imported. test_bad_input.py tests
further errors without separate processes.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess

import huggingface_hub
import pytest

from flap.cli import SUBCOMMANDS
from flap.config import help_text
from tests.helpers.damaged import damage
from tests.helpers.marks import quick
from tests.helpers.permissions import bound_by_permissions
from tests.helpers.runs import tiny

Cli = Callable[..., "CompletedProcess[str]"]
HUGE = "y" * 5000
OPTIONS = "AL-AM, AL-MM, UL-MM, UL-UM, middle, search"


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """Create a folder of damaged input files. In the list REAL, {bad} stands for its path."""
    return damage(tmp_path_factory.mktemp("bad"), model_dir)


DOES_NOT_COMPOSE = [
    ("ratio=-0.1", "ratio=-0.1: expected a number with 0 <= ratio < 1"),
    ("ratio=abc", "ratio: Value 'abc' .* Float"),
    ("ratio=20%", "ratio: Value '20%' .* Float; 20 % is ratio=0.2"),
    (
        "target.bytes=200MB",
        "target.bytes=200MB: expected a number without a unit; write target.bytes=200e6$",
    ),
    ("target.memory=1.5GiB", "target.memory=1.5GiB: .*; write target.memory=1610612736$"),
    ("target.parameters=7B", "target.parameters=7B: .*; write target.parameters=7e9$"),
    ("target.bytes=many", "target.bytes: Value 'many' .* Float$"),
    ("metric=FOO", "metric=FOO: expected one of EAN, IFV, MoNE, OBS, REAP, WIFN, WIFV, .*, wanda"),
    ("metric=wifv", "metric=wifv: did you mean WIFV\\? expected one of EAN"),
    ("structure=AL_AM", "structure=AL_AM: did you mean AL-AM\\? "),
    ("structure=FOO", f"structure=FOO: expected one of {OPTIONS}"),
    ("model=gpt-5", "model=gpt-5: expected one of .*smollm2-135m"),
    ("model=org/x", "model=org/x: .*; a model of the hub or of a directory is model.path=org/x"),
    (
        "model.path=~/x",
        f"model.path=~/x: no shell replaces ~ here; write model.path={Path.home()}/x",
    ),
    (
        "hydra/launcher=joblib",
        "hydra/launcher=joblib: without -m .*; write: python -m flap -m hydra/launcher=joblib",
    ),
    (
        "hydra/launcher=slurm",
        "hydra/launcher=slurm: without -m .*; write: python -m flap -m hydra/launcher=slurm",
    ),
    ("method=FOO", "method=FOO: expected one of flap, flap_plus, llm_pruner, mag_sp, wanda_sp"),
    (
        "eval=[FOO]",
        (
            "eval=FOO: expected one of divergence, efficiency, generation, none, paper, "
            "perplexity, programs, zero_shot"
        ),
    ),
    ("metric=null", "a group takes the name of one of its options, as --help lists them"),
    ("num_samples=16", r"num_samples: unknown key; did you mean calibration.num_samples\?$"),
    ("ratoi=0.5", r"ratoi: unknown key; did you mean ratio\?$"),
    ("qqq=0.5", "qqq: unknown key; the config has .*ratio.*seed"),
    ("evaluation=none", "evaluation: unknown key; did you mean eval\\?"),
    (
        "eval=none,paper",
        r"eval=none,paper: several values; .* -m eval=none,paper; .* 'eval=\[none,paper\]'",
    ),
    ("calibration.samples=8", "calibration.samples: unknown key; .*num_samples"),
    (
        "eval.zero_shot.limit=5",
        "eval.zero_shot: this run does not measure it; .* 'eval=\\[perplexity,zero_shot\\]'",
    ),
    ("metric.foo=8", "metric.foo: unknown key; metric has .*square_attention"),
    # The structure AL-AM has no option remove_heads, because AL-AM itself decides how many heads to
    # remove.
    (
        "structure.remove_heads=4",
        "structure.remove_heads: unknown key",
    ),
    (f"run_name={HUGE}", "run_name=y+ … y+: must be at most 230 bytes long, but has 5,000 bytes"),
    (f"plan={HUGE}", "plan=y+ … y+: must be at most 3,000 bytes long, but has 5,000 bytes"),
    (f"model.path={HUGE}", "model.path=y+ … y+: must be at most 3,000 bytes long"),
    (f"model.name={HUGE}", "model.name=y+ … y+: must be at most 3,000 bytes long"),
    (f"hydra.run.dir={HUGE}", r"hydra.run.dir=y+ … y+: cannot be written \(.*\); name another"),
    (f"metric={HUGE}", "metric=y+ … y+: too long for the name of a key or of a choice"),
    (f"{HUGE}=1", "y+ … y+=1: too long for the name of a key or of a choice"),
    (f"ratio={HUGE}", "ratio: Value 'y+ … y+' of type 'str' could not be converted to Float"),
    (
        f"calibration.dataset={'[' * 500}{']' * 500}",
        "the command line, or a file of the config, is nested too deeply",
    ),
    ("ratio=0.2,0.3", "ratio=0.2,0.3: several values; for a run of each, write -m ratio=0.2,0.3$"),
    ("--ratio=0.2", "--ratio=0.2: write ratio=0.2$"),
    ("-ratio=0.2", "-ratio=0.2: write ratio=0.2$"),
    ("--verbose", "--verbose: unknown option; write key=value"),
    ("doctr", r"doctr: unknown command; did you mean doctor\?$"),
    ("prune", "prune: expected key=value without spaces, such as ratio=0.2"),
    ("experiment=transfer", r"experiment=transfer: write \+experiment=transfer$"),
    ("debug=smoke", r"debug=smoke: write \+debug=smoke$"),
    ("calibration=my.txt", ".*expected one of answers, .*; .* use calibration.dataset=my.txt$"),
    (
        "eval=my.jsonl",
        r".*'eval.perplexity.datasets=\[my.jsonl\]' .*tasks=\[my.jsonl\]' for prompts",
    ),
    ("structure=[AL-AM]", r"structure=\[AL-AM\]: expected one name .*; write structure=AL-AM$"),
    ("model=[llama-7b,gpt-5]", ".*; for a run of each, write -m model=llama-7b,gpt-5$"),
    ("calibration=[c4]", r".*; for other texts, write 'calibration.dataset=\[c4\]'$"),
    ("objective=f1", "objective=f1: expected names that begin with one of pruned/, dense/, "),
    ("run_name=a(b", r"run_name=a\(b: Hydra cannot read it .*; quote a value with special"),
    ("hydra.run.dir=/proc/nope", "hydra.run.dir=/proc/nope: cannot be written"),
    (
        "recover.tokens=2048",
        (
            r"recover.tokens: unknown key; recover has no .* it is swept, write "
            r"'recover.tokens=choice\(…\)'"
        ),
    ),
]


# Lists of arguments that are wrong only together, each list with its error message.
WORDS = [
    (["--ratio", "0.2"], "--ratio: write ratio=0.2$"),
    (["ratio", "0.2"], "ratio 0.2: write ratio=0.2$"),
    (["-m", "calibration.seq_len", "64"], "calibration.seq_len 64: write calibration.seq_len=64$"),
    (
        ["eval=[perplexity,", "divergence]"],
        r"eval=\[perplexity, divergence\]: quote the list, or remove the spaces: "
        r"'eval=\[perplexity,divergence\]'$",
    ),
    (
        ["calibration.dataset={c4:1,", "self:2}"],
        r".*remove the spaces: 'calibration.dataset=\{c4:1,self:2\}'$",
    ),
    (
        ["-m", "ratio=0.1,", "0.2", "seed=1"],
        "ratio=0.1, 0.2: quote the list, or remove the spaces: 'ratio=0.1,0.2'$",
    ),
    (["-m", "ratio=0.1", ",0.2,", "0.3"], "ratio=0.1 ,0.2, 0.3: .* 'ratio=0.1,0.2,0.3'$"),
    (["-m", "structure=[AL-AM],[UL-UM]"], ".*write -m structure=AL-AM,UL-UM$"),
    (
        ["+experiment=smollm2_grid", "eval=[perplexity]"],
        r"eval.zero_shot.source, eval.zero_shot.limit, eval.efficiency.repeats: "
        r"set by \+experiment=smollm2_grid, but .* write "
        r"'eval=\[perplexity,zero_shot,efficiency\]', .* '~eval.zero_shot' '~eval.efficiency'$",
    ),
]
LONG = "x" * 400


def assert_one_line(done: "CompletedProcess[str]", line: str) -> None:
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(f"error: {line}.*\n", done.stderr), done.stderr
    assert "y" * 200 not in done.stderr


def test_a_process_that_begins_with_nothing_imported_says_it_so_too(flap: Cli) -> None:
    assert_one_line(flap(DOES_NOT_COMPOSE[0][0]), DOES_NOT_COMPOSE[0][1])


@pytest.mark.long
@pytest.mark.parametrize("more", quick(1, [[], ["dry_run=true"]]), ids=["run", "dry-run"])
def test_a_long_path_is_told_without_a_word_of_omegaconf(
    more: list[str], quick_flap: Cli, tmp_path: Path
) -> None:
    done = quick_flap(f"model.path={LONG}", "hydra.run.dir=run", *more)
    assert_one_line(done, "model.path=x+ … x+: each name in it must be at most 255 bytes long")
    assert "full_key" not in done.stderr and not [*tmp_path.iterdir()]


def test_a_real_process_tells_a_long_path_in_one_line_too(flap: Cli) -> None:
    done = flap(f"model.path={LONG}", "hydra.run.dir=run")
    assert_one_line(done, "model.path=x+ … x+: each name in it must be at most 255 bytes long")
    assert "full_key" not in done.stderr


@pytest.mark.parametrize(("words", "line"), WORDS)
def test_words_that_are_a_mistake_together_are_one_line(
    words: list[str], line: str, quick_flap: Cli, tmp_path: Path
) -> None:
    assert_one_line(quick_flap(*words), line)
    assert not [*tmp_path.iterdir()]


def test_the_keys_of_an_experiment_can_be_dropped(quick_flap: Cli) -> None:
    words = ["+experiment=smollm2_grid", "eval=[perplexity]", "~eval.zero_shot", "~eval.efficiency"]
    done = quick_flap(*words, "hydra.mode=RUN", "ratio=0", "dry_run=true", "model.path=/none")
    # flap checks all config keys before it looks for the model. So an error about the model's path
    # shows that the keys were accepted.
    assert "model.path=/none" in done.stderr


@pytest.mark.parametrize("words", [["-h"], ["-m", "ratio=0.2,0.3", "--help"]])
def test_help_is_the_same_wherever_it_is_asked_for(words: list[str], quick_flap: Cli) -> None:
    done = quick_flap(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{help_text()}\n", "")


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_help_names_every_command(command: str) -> None:
    assert f"python -m flap {command} " in help_text()


def test_help_lists_the_choices_of_the_user(quick_flap: Cli, tmp_path: Path) -> None:
    (tmp_path / "own" / "metric").mkdir(parents=True)
    (tmp_path / "own" / "metric" / "mine.yaml").touch()
    for words in (["--config-dir=own", "--help"], ["--config-dir", "own", "-h"]):
        assert "magnitude, mine, random" in quick_flap(*words).stdout


def without_a_hub(connections: int) -> None:
    """Let attempts to connect to the hub fail, and allow at most `connections` attempts.

    One more attempt ends the process, and the test fails.
    """
    attempts = count()

    def refuse(*_: object) -> None:
        if next(attempts) >= connections:
            os._exit(3)
        raise ConnectionRefusedError

    patch = pytest.MonkeyPatch()  # never undone, because it affects only a forked process
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    patch.setattr("socket.socket.connect", refuse)


def test_a_model_of_the_hub_fails_at_once_without_a_network(quick_flap: Cli) -> None:
    done = quick_flap("model=llama-3.1-8b", before=partial(without_a_hub, 2))
    assert_one_line(
        done,
        "model.path=meta-llama/Llama-3.1-8B: no model in a local directory or in the hub's local "
        "cache, and the hub cannot be reached .*: hf download meta-llama/Llama-3.1-8B --local-dir",
    )


@pytest.mark.parametrize(("argument", "line"), quick(8, DOES_NOT_COMPOSE))
def test_what_does_not_compose_is_one_line(
    quick_flap: Cli, tmp_path: Path, argument: str, line: str
) -> None:
    done = quick_flap(argument)
    assert_one_line(done, line)
    assert not [*tmp_path.glob("outputs/*")]


def test_a_sweep_of_which_no_cell_has_begun_leaves_nothing(quick_flap: Cli, tmp_path: Path) -> None:
    assert quick_flap("-m", "metric=FOO,WIFV").returncode == 1
    assert not [*tmp_path.glob("multirun_outputs/*")]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["study", HUGE], "folder=y+ … y+: must be at most 3,000 bytes long, but has 5,000 bytes"),
        (["workspace", "me/mine", HUGE], "folder=y+ … y+: must be at most 3,000 bytes long"),
        (["workspace", HUGE, "sweep"], "y+ … y+: expected an entity and a project of W&B"),
        (["export", HUGE, "gguf"], "checkpoint=y+ … y+: must be at most 3,000 bytes long"),
    ],
    ids=["study", "workspace", "place", "export"],
)
def test_a_subcommand_refuses_a_path_that_cannot_be(
    command: list[str], line: str, quick_flap: Cli
) -> None:
    assert_one_line(quick_flap(*command), line)


def test_the_folder_of_a_sweep_that_cannot_be_made_is_named(quick_flap: Cli) -> None:
    done = quick_flap("-m", f"hydra.sweep.dir={HUGE}", "ratio=0.1,0.2")
    assert_one_line(done, r"hydra.sweep.dir=y+ … y+: cannot be written \(.*\); name another folder")


@pytest.mark.parametrize("minutes", ["nan", "1e300", "-1"])
def test_a_timeout_is_checked_before_processes_join(
    minutes: str, quick_flap: Cli, tmp_path: Path
) -> None:
    done = quick_flap(f"timeout_minutes={minutes}")
    assert_one_line(done, "timeout_minutes=.*: expected a number of minutes above 0 and at most 5")
    assert not [*tmp_path.glob("outputs/*")]


@pytest.mark.parametrize("there", ["nothing", "flap.log", ".hydra"])
def test_a_run_folder_that_cannot_be_written_is_named_at_once(
    there: str, quick_flap: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "flap.log").touch()
    if there != ".hydra":
        (folder / ".hydra").rmdir()
    if there == "nothing":
        (folder / "flap.log").unlink()
    folder.chmod(0o500)
    done = quick_flap(f"hydra.run.dir={folder}", before=bound_by_permissions)
    assert_one_line(done, f"hydra.run.dir={folder}: .*cannot be written.* name another")


def test_an_option_without_effect_is_refused_before_the_model_is_loaded(
    quick_flap: Cli, model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    done = quick_flap(*tiny(model_dir, text_file), "calibration.count=answers")
    assert_one_line(done, "calibration.count=answers: expected no calibration.count here, because")
    assert not [*tmp_path.glob("outputs/*")]


def test_a_folder_below_a_file_cannot_be_made(quick_flap: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = quick_flap("hydra.run.dir=file/run")
    assert_one_line(done, r"hydra.run.dir=.*file.*: cannot be written \(Not a directory\)")


def test_how_to_see_what_a_launcher_has(quick_flap: Cli) -> None:
    assert quick_flap("-m", "hydra/launcher=slurm", "--cfg", "hydra").stderr.startswith(
        "error: --cfg: leave out -m; "
    )
    assert "array_parallelism: 64" in quick_flap("hydra/launcher=slurm", "--cfg", "hydra").stdout
    assert quick_flap("--version").stdout == f"flap {version('flap-pruning')}\n"


@pytest.mark.parametrize(
    "beside", ["metric=WIFV", "structure.min_heads=1", "round_to=8", "ratio=0.2"]
)
def test_what_a_plan_has_decided_is_refused_beside_it(quick_flap: Cli, beside: str) -> None:
    done = quick_flap("plan=my/run", beside)
    refusal = (
        f"error: {beside}: expected (no {beside.split('.min')[0].split('=')[0]} here|null "
        "with plan).*my/run.*\n"
    )
    assert done.returncode == 1 and re.fullmatch(refusal, done.stderr), done.stderr


@pytest.mark.parametrize("path", ["x" * 5000, "x" * 5000 + ".gguf", "x/" * 2500, "/" + "x" * 5000])
def test_a_path_of_thousands_of_characters_is_cut(path: str, quick_flap: Cli) -> None:
    done = quick_flap(f"model.path={path}")
    assert_one_line(done, "model.path=[x/]{90,} … ")
    assert len(done.stderr) < 400


# With the first argument, PyArrow cannot read the text file, and the run does not begin. With the
# second argument, the error occurs in the middle of the run.
REAL = ["calibration.dataset={bad}/broken.parquet", "model.path={bad}/nan"]


@pytest.mark.parametrize("argument", REAL)
def test_it_is_one_line_and_the_log_of_a_run_that_began_has_the_traceback(
    argument: str, quick_flap: Cli, model_dir: Path, text_file: Path, bad: Path, tmp_path: Path
) -> None:
    done = quick_flap(*tiny(model_dir, text_file), *argument.format(bad=bad).split())
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if "error" in line.lower()]) == 1, (
        done.stderr
    )
    assert len(re.findall(r"^error: \S+: ", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr + done.stdout
    if argument == REAL[0]:  # PyArrow refuses the file before the run begins
        assert not [*tmp_path.glob("outputs/*")]
        return
    [run_dir] = tmp_path.glob("outputs/*/*")
    assert done.stderr.endswith(f"; log: {run_dir / 'flap.log'}\n")
    log = (run_dir / "flap.log").read_text()
    assert "Traceback" in log and "ValueError: " in log
    assert not list(run_dir.glob("*checkpoint*")) + list(run_dir.glob(".*checkpoint*"))
