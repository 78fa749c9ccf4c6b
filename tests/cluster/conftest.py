"""The seeded model that vLLM and Earthshine both read: latents, YaRN and routed experts."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import synthesize

from earthshine.engine import load_model
from earthshine.engine.load import LoadedModel
from earthshine.plan import PlanArgs

from .pieces import Latents, fetched
from .vllm_engine import vllm_python


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vllm_python()  # skips before anything is made
    made = tmp_path_factory.mktemp("cluster") / "model"
    synthesize.main([str(made), "--like", str(Path(__file__).with_name("latent.json"))])
    return made


@pytest.fixture(scope="session")
def model(folder: Path) -> Iterator[LoadedModel]:
    loaded = load_model(folder, PlanArgs(context_tokens=512, batch=2, threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def fetch(model: LoadedModel) -> Callable[..., Latents]:
    """`fetch(port, tokens)`: what the peer there sends."""
    return partial(fetched, model.fingerprint)
