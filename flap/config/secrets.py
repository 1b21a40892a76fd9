"""Find the secrets of a run, and replace them in everything that is recorded or shown.

A run may need secrets, such as the password of its tracker (a service such as MLflow), but its
files, its log, the console and the tracker must not show these secrets. Three kinds of values are
secret:

- the user and the password in a URI;
- values of config keys and environment variables whose names end in TOKEN, KEY, PASSWORD, SECRET or
  a similar word;
- all values under `hydra.job.env_set`.

`redacted` removes secrets from data before the data is written. `redact` is a second protection: it
searches a text for every secret that this process has collected, in every form that the secret may
have in JSON, YAML, HTML, URLs and shells.
"""

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config.secret_forms import SHORTEST, pattern_of

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(^|[_.])PASS|API_?KEY|(^|[_.])KEY)$",
    re.IGNORECASE,
)
OVERRIDE = re.compile(r"([+~]{0,2}[\w./@ -]+)=(.*)", re.DOTALL)
# An interpolation, such as ${oc.env:NAME}, may refer to a secret, but does not contain the secret.
INTERPOLATION = re.compile(r"\$\{[^{}]*\}")

# Matches a value that is a URI with a user and a password. The last @ in the URI ends the password,
# because some users do not percent-encode the characters / and @ in a password.
URI = re.compile(
    r"""\A(\W*(?:[\w.@/-]+=\W*)?[a-z][\w+.-]*://)([^:/@]*):(.*)@""", re.DOTALL | re.IGNORECASE
)
# Matches the beginning of a URI inside a longer text, up to the @ after user and password. A URI
# ends at a space or a quote.
URI_IN_TEXT = re.compile(
    r"""([a-z][\w+.-]*://)(?:[^:/@\s"'<>]*:[^\s"'<>]*|[^/@\s]*)@""", re.IGNORECASE
)
ENV_SET_IN_TEXT = re.compile(
    r"""(hydra\.job\.env_set[\w.]*=)(?!\*\*\*)('[^']*'|"[^"]*"|\{[^}]*\}|[^\s'"<>]+)"""
)

_known: set[str] = set()  # the secrets that this process has collected


def redacted(value: Any, name: str = "") -> Any:
    """Return a copy of a value without secrets. The value is a text, or nested dicts and lists.

    User and password are removed from URIs. All other secrets become `***`. An interpolation, such
    as `${oc.env:NAME}`, is not replaced.

    name: the config key or the environment variable that has this value.
    """
    if isinstance(value, Mapping):
        if name == "env_set":
            return {key: _hidden(item) for key, item in value.items()}
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if SECRET_NAME.search(name):
        return _hidden(value)
    return _redacted_text(value)


def redact(text: str) -> str:
    """Return a text, such as a log line, without the secrets that this process has collected.

    Users and passwords in URIs, and values that override `hydra.job.env_set`, are removed even if
    the process has not collected them.
    """
    if _known:
        text = pattern_of(frozenset(_known)).sub(HIDDEN, text)
    text = URI_IN_TEXT.sub(_without_user, text)
    return ENV_SET_IN_TEXT.sub(lambda match: f"{match[1]}{_hidden(match[2])}", text)


def recorded(config: DictConfig) -> DictConfig:
    """Return a copy of a composed config without secrets, to be written to a file.

    Interpolations are not resolved.
    """
    copy = OmegaConf.create(redacted(_plain(config)))
    # Copy the cached values of resolvers, so that `${now:...}` has the same time in the copy.
    OmegaConf.copy_cache(from_config=config, to_config=copy)
    assert isinstance(copy, DictConfig)
    return copy


def has_secrets(config: DictConfig) -> bool:
    """Return whether a composed config contains secrets."""
    plain = _plain(config)
    return bool(redacted(plain) != plain)


def learn_from_process(words: Iterable[str]) -> None:
    """Collect, for `redact`, the secrets in environment variables and command-line arguments.

    words: the command-line arguments.
    """
    for name, value in os.environ.items():
        _learn(_secrets_in(value, name))
    for word in words:
        key, _, value = word.partition("=")
        _learn(_secrets_in(value, key))
        _learn(_secrets_in(word))


def learn_from_config(config: DictConfig, env_set: Any) -> None:
    """Collect, for `redact`, the secrets in a composed config.

    env_set: the section `hydra.job.env_set`, which maps environment variables to the values that
        Hydra sets. These values are collected as secrets, too. Two kinds of values are collected
        only if the name of the variable matches `SECRET_NAME`: paths, and values that also occur
        elsewhere in the config, such as the name of a dtype.
    """
    plain = _plain(config)
    plain.pop("hydra", None)
    _learn(_secrets_in(plain))
    _learn(_secrets_in(_resolved(config.get("tracking"))))

    public = json.dumps(redacted(plain), ensure_ascii=False, default=str)
    for name, value in (_resolved(env_set) or {}).items():
        _learn(_secrets_in(value, name))
        text = str(value)
        if not text.startswith(("/", "~", ".")) and text not in public:
            _learn([text])


def with_quoted_password(uri: str) -> str:
    """Return a URI with its password percent-encoded.

    A password that contains / @ ? or # has not been encoded yet, so it is encoded now. All other
    passwords stay as they are.
    """
    match = URI.match(uri)
    if match is None:
        return uri
    scheme, user, password = match.groups()
    is_port = re.match(r"\d+/", password)  # the @ is in the path, as in http://host:5000/@me
    if is_port or not re.search(r"[/@?#]", password):
        return uri
    return f"{scheme}{user}:{quote(password, safe='')}@{uri[match.end() :]}"


def _redacted_text(text: str) -> str:
    override = OVERRIDE.fullmatch(text)
    if override:
        key, value = override.groups()
        of_env_set = re.search(r"(^|\.)env_set(\.|$)", key)
        if of_env_set or SECRET_NAME.search(key):
            return f"{key}={_hidden(value)}"
    return redact(URI.sub(_without_user, text))


def _hidden(value: Any) -> Any:
    """Return `***`, but return empty values and interpolations unchanged."""
    if value in (None, "", "???"):
        return value
    if isinstance(value, str) and INTERPOLATION.fullmatch(value.strip("'\"")):
        return value
    return HIDDEN


def _without_user(match: re.Match[str]) -> str:
    """Return the beginning of a URI without user and password.

    If the password is an interpolation, nothing is removed.

    match: a match of `URI` or `URI_IN_TEXT`.
    """
    found = match[0]
    user_and_password = found[len(match[1]) : -1]
    password = user_and_password.partition(":")[2]
    return found if INTERPOLATION.fullmatch(password) else match[1]


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Yield the secrets in dicts, lists and texts.

    name: the config key or the environment variable of the value.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, name)
    elif isinstance(value, str):
        if SECRET_NAME.search(name):
            yield value
        uri = URI.match(value)
        if uri is not None:
            _, user, password = uri.groups()
            yield password
            for text in (password, unquote(password)):
                sent = f"{unquote(user)}:{text}"
                yield b64encode(sent.encode()).decode()  # as in HTTP's basic authentication


def _learn(secrets: Iterable[str]) -> None:
    for secret in secrets:
        if len(secret) >= SHORTEST and not INTERPOLATION.fullmatch(secret):
            _known.add(secret)


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False, enum_to_str=True)


def _resolved(node: Any) -> Any:
    """Return a section of a config as dicts and lists, with resolved interpolations.

    If one of the interpolations cannot be resolved, none is resolved.
    """
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:
        return _plain(node)
