"""flap hides secrets in recorded configs and printed texts, and leaves other values unchanged."""

import json
import logging
import shlex
from collections.abc import Iterator
from html import escape
from io import StringIO
from urllib.parse import quote

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from flap.config import has_secrets, recorded, redact, redacted, with_quoted_password
from flap.config.output import RedactedRecord, RedactedStream
from flap.config.secrets import learn_from_config, learn_from_process

PASSWORD = "p@ss/w0rd:%2F's \"<x>"


@pytest.fixture
def learnt() -> Iterator[DictConfig]:
    """Return a config with secrets.

    flap has read this config, so it hides the config's secrets in all texts that this process logs
    or prints.
    """
    config = OmegaConf.create(
        {
            "model": {"name": "tiny-llama", "dtype": "bfloat16"},
            "tracking": {"uri": f"http://me:{PASSWORD}@host:5000", "project": "flap"},
            "hydra": {"job": {"env_set": {"A": "swordfish", "B": "1", "C": "/data/x"}}},
        }
    )
    learn_from_config(config, config.hydra.job.env_set)
    yield config


def test_urls_lose_user_and_password() -> None:
    told = {
        "uri": "http://alice:s3cret@host:5000/x",
        "of": ["https://bob@host", "a@b.c", 1],
        "plain": "http://host/@x",
        "reserved": "postgresql+psycopg2://alice:a/b@c?d@host:5000/x",
    }
    assert redacted(told) == {
        "uri": "http://host:5000/x",
        "of": ["https://host", "a@b.c", 1],
        "plain": "http://host/@x",
        "reserved": "postgresql+psycopg2://host:5000/x",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tracking.uri=http://me:p@ss/w0rd@host", "tracking.uri=http://host"),
        ("tracking.uri='http://me:it\\'s@host'", "tracking.uri='http://host'"),
        ("+hydra.job.env_set.A=1", "+hydra.job.env_set.A=***"),
        ("hydra.job.env_set={A: b c}", "hydra.job.env_set=***"),
        ("+hydra.job.env_set.A=${oc.env:A}", "+hydra.job.env_set.A=${oc.env:A}"),
        ("+tracking.api_key=abc", "+tracking.api_key=***"),
        ("tracking.uri=http://me:${oc.env:A}@host", "tracking.uri=http://me:${oc.env:A}@host"),
        ("export HF_TOKEN=abc", "export HF_TOKEN=***"),
        ("calibration.max_new_tokens=64", "calibration.max_new_tokens=64"),
        ("model.path=org/model", "model.path=org/model"),
    ],
)
def test_overrides(override: str, expected: str) -> None:
    assert redacted([override]) == [expected]


def test_a_recorded_config_keeps_what_is_not_secret(learnt: DictConfig) -> None:
    copy = recorded(learnt)
    assert has_secrets(learnt) and not has_secrets(copy)
    assert copy.tracking.uri == "http://host:5000"
    assert copy.hydra.job.env_set == {"A": "***", "B": "***", "C": "***"}
    assert copy.model == learnt.model
    assert learnt.hydra.job.env_set.A == "swordfish"


def test_a_config_without_secrets_is_recorded_as_it_is() -> None:
    content = {"a": "${b}", "b": "???", "c": [1, None, 2.5, True], "d": {"e": "a=b", "f": "x: y"}}
    config = OmegaConf.create(content)
    assert OmegaConf.to_yaml(recorded(config)) == OmegaConf.to_yaml(config)


def test_texts_have_no_form_of_a_secret(learnt: DictConfig) -> None:
    forms = [
        PASSWORD,
        quote(PASSWORD),
        quote(PASSWORD, safe=""),
        json.dumps(PASSWORD),
        yaml.dump({"key": PASSWORD}, width=1000),
        repr(PASSWORD),
        escape(PASSWORD),
        escape(json.dumps(PASSWORD)),
        shlex.quote(PASSWORD),
        # This is the form in which Hydra prints a list of overrides.
        str(["a='p@ss/w0rd:%2F\\'s \"<x>'"]),
        f"http://me:{PASSWORD}@host",
        f"Basic {'bWU6cEBzcy93MHJkOiUyRidzICI8eD4='}",
    ]
    for form in forms:
        assert "w0rd" not in redact(f"before {form} after"), form
        assert "***" in redact(f"before {form} after") or "http://host" in redact(form)
    assert redact("a swordfish") == "a ***"


def test_texts_keep_values_that_are_short_paths_or_public(learnt: DictConfig) -> None:
    learn_from_config(learnt, {"D": "bfloat16", "E": "tiny-llama", "F": "0", "G": "true"})
    text = "1 of 10 in /data/x: bfloat16 of tiny-llama, true"
    assert redact(text) == text


def test_variables_of_the_environment_with_the_name_of_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:open/sesame-2@host")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "not-secret")
    learn_from_process(["+tracking.token=open-sesame-3", "model.path=x"])
    text = "open-sesame-1 open/sesame-2 open-sesame-3 not-secret"
    assert redact(text) == "*** *** *** not-secret"


def test_logs_and_streams_have_no_secret(learnt: DictConfig) -> None:
    stream = StringIO()
    handler = logging.StreamHandler(RedactedStream(stream))
    try:
        raise ValueError("no swordfish")
    except ValueError as error:
        given = (type(error), error, error.__traceback__)
    record = RedactedRecord("x", logging.INFO, "f", 1, "%s %d", ("swordfish", 1), given)
    assert record.getMessage() == "*** 1"
    assert "swordfish" not in logging.Formatter().format(record)
    handler.emit(record)
    print("swordfish", 1, file=handler.stream)
    assert "ValueError: no ***" in stream.getvalue() and "swordfish" not in stream.getvalue()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://me:p@ss/w0rd:%2F@host:1", "http://me:p%40ss%2Fw0rd%3A%252F@host:1"),
        ("http://me:p%40ss@host:1", "http://me:p%40ss@host:1"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/@me", "http://host:5000/@me"),
        ("sqlite:///a/b", "sqlite:///a/b"),
        ("databricks", "databricks"),
    ],
)
def test_a_password_with_reserved_characters_is_percent_encoded(uri: str, expected: str) -> None:
    assert with_quoted_password(uri) == expected
