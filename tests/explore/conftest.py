"""What tests of the explorer share."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from explore_cases import Ungated, World, byte_tokenizer
from saeforest.saes import TreeSAE


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session", params=["tree", "ungated", "many_documents"])
def world(request: pytest.FixtureRequest) -> World:
    kind = Ungated if request.param == "ungated" else TreeSAE
    return World(kind, documents=150 if request.param == "many_documents" else 7)
