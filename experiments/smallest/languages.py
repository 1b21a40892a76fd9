"""Write the questions and the lists of words in Spanish and Russian for experiments/smallest.

    pip install babel wordfreq
    python experiments/smallest/languages.py FOLDER

The script writes three files to FOLDER.

spanish.jsonl and russian.jsonl: 120 documents in each file. A document asks for the name of
a country in Spanish or in Russian. A country is left out if its name in this language is also its
English name, because a model could copy this name from the question. The names come from the
Unicode CLDR, which Babel contains.

words.txt: the 20,000 most frequent words of each of the two languages. flap can count tokens
in this file (`vocabulary.dataset`).
"""

import json
import random
import sys
from pathlib import Path

from babel import Locale
from wordfreq import top_n_list

LANGUAGES = {"Spanish": "es", "Russian": "ru"}
NUM_DOCUMENTS = 120
NUM_WORDS = 20_000
WORDS_OF_LINE = 20


def main(folder: Path) -> None:
    words = []
    for language, code in LANGUAGES.items():
        documents = questions(language, code)
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        (folder / f"{language.lower()}.jsonl").write_text(text)
        words += top_n_list(code, NUM_WORDS)

    lines = [words[i : i + WORDS_OF_LINE] for i in range(0, len(words), WORDS_OF_LINE)]
    (folder / "words.txt").write_text("".join(" ".join(line) + "\n" for line in lines))


def questions(language: str, code: str) -> list[dict[str, str]]:
    """Return questions for the names of countries in a language, in a fixed random order."""
    english = Locale.parse("en").territories
    other = Locale.parse(code).territories
    documents = []
    for territory, name in sorted(english.items()):
        is_country = len(territory) == 2  # longer codes stand for continents and regions
        if is_country and territory in other and other[territory] != name:
            prompt = f"Question: What is the name of {name} in {language}?\nAnswer:"
            documents.append({"prompt": prompt, "answer": other[territory]})
    random.Random(20261202).shuffle(documents)
    return documents[:NUM_DOCUMENTS]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
