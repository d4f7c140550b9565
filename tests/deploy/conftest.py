import pytest
import torch

from fp4scope.deploy.plan import plan_export
from fp4scope.models import open_source

from .chosen import setting_for, written_for


@pytest.fixture(scope="session")
def folder_of(tiny_model, tiny_tokenizer, tmp_path_factory):
    """`folder_of(family, dtype)`: a saved tiny model. Read only."""
    folders = {}

    def build(family, dtype=torch.bfloat16, **overrides):
        key = family, dtype, tuple(overrides)
        if key not in folders:
            folder = folders[key] = tmp_path_factory.mktemp("source") / family
            tiny_model(family, **overrides).to(dtype).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        return folders[key]

    return build


@pytest.fixture(scope="session")
def exported(folder_of):
    """`exported(family, choose)`: source, and export of it."""

    def build(family, choose=setting_for, dtype=torch.bfloat16, overrides=None, **changes):
        overrides = {"intermediate_size": 128} if overrides is None else overrides
        source = open_source(str(folder_of(family, dtype, **overrides)))
        return source, plan_export(written_for(source, choose, **changes), source)

    return build
