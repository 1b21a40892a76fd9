"""Trim the vocabulary: choose the tokens that stay, and remove all other tokens from the model."""

from flap.method.vocabulary.tokens import Tokens
from flap.method.vocabulary.trim import KeptTokens, Ranking, Trim, Trimmed

__all__ = ["KeptTokens", "Ranking", "Tokens", "Trim", "Trimmed"]
