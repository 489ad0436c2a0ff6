"""Tests, and what they share: the modules of this folder import no test."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the project
