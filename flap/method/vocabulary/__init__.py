"""Trimming the vocabulary: which tokens stay, and how the others leave tokenizer and model."""

from flap.method.vocabulary.tokens import Tokens
from flap.method.vocabulary.trim import KeptTokens, Ranking, Trim, Trimmed

__all__ = ["KeptTokens", "Ranking", "Tokens", "Trim", "Trimmed"]
