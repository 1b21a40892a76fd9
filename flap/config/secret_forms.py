"""The forms that a secret has when it is quoted or escaped.

JSON, YAML, HTML, URLs, Hydra and shells each have their own rules for quoting and escaping.
"""

import html
import json
import re
from functools import cache
from urllib.parse import quote, quote_plus, unquote

import yaml
from markupsafe import escape

# Texts are searched only for secrets of at least this many characters. A shorter secret, such as
# "1", would be found in many texts that have nothing to do with the secret.
SHORTEST = 6
IN_SCRIPTS = str.maketrans(
    # how JSON inside an HTML page writes these characters
    {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "'": r"\u0027"}
)


@cache
def pattern_of(secrets: frozenset[str]) -> re.Pattern[str]:
    """Return a regular expression that finds secrets in all of their quoted and escaped forms.

    Longer forms come first in the expression, because a form may contain a shorter form of the same
    secret or of another secret.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    ordered = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)))


def _forms(secret: str) -> set[str]:
    written: set[str] = set()
    for plain in {secret, unquote(secret)}:
        if len(plain) >= SHORTEST:
            written |= _written(plain)

    # the forms that a secret has inside a list that Python prints
    forms = written | {repr(form)[1:-1] for form in written}
    forms |= {form.replace("\\", r"\\").replace("'", r"\'") for form in written}
    in_html = {html.escape(form) for form in forms}
    in_html |= {html.escape(form, quote=False) for form in forms}
    in_html |= {str(escape(form)) for form in forms}
    in_scripts = {form.translate(IN_SCRIPTS) for form in forms}
    return forms | in_html | in_scripts


def _written(plain: str) -> set[str]:
    """Return the forms that a secret has in URLs, JSON, YAML, Hydra and shells."""
    return {
        plain,
        quote(plain),
        quote(plain, safe=""),
        quote_plus(plain),
        json.dumps(plain)[1:-1],
        json.dumps(plain, ensure_ascii=False)[1:-1],
        yaml.dump(plain, default_style='"', width=10**6).strip()[1:-1],
        plain.replace("'", "''"),  # inside YAML's single quotes
        plain.replace("'", r"\'"),  # inside Hydra's single quotes
        plain.replace('"', '\\"'),  # inside Hydra's double quotes
        re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", plain),  # in Hydra's grammar, without quotes
        plain.replace("'", "'\"'\"'"),  # inside a shell's single quotes
    }
