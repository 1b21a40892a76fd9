"""The vocabulary: which tokens stay, and a tokenizer and matrices without the others."""

from flap.method.vocabulary.tokens import Tokens
from flap.method.vocabulary.trim import KeptTokens, Ranking, Trim, Trimmed

__all__ = ["KeptTokens", "Ranking", "Tokens", "Trim", "Trimmed"]
