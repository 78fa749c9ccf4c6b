"""The connector that vLLM loads: `"kv_connector": "EarthshineConnector"`, with `"kv_connector_module_path":
"earthshine.prfaas.vllm.connector"`.

It serves one worker per engine, and models whose every layer keeps latents. Loads are asynchronous, so that a request
waits with its blocks while others run; a load that fails or is late is computed by vLLM. Refused when vLLM starts, with
UsageError or BlobError: other models and caches, several workers, draft models, and the failure policy "fail".
Written against vLLM 0.32's KVConnectorBase_V1.
"""

import logging
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

from earthshine.errors import UsageError
from earthshine.prfaas.vllm.latents import LatentCache
from earthshine.prfaas.vllm.options import ConnectorOptions
from earthshine.prfaas.vllm.orders import Orders
from earthshine.prfaas.vllm.scheduling import Scheduling
from earthshine.prfaas.vllm.worker import Worker

_log = logging.getLogger("vllm.earthshine")


class Step(Orders, KVConnectorMetadata):
    """The orders of one step, as vLLM carries them."""


class EarthshineConnector(KVConnectorBase_V1, SupportsHMA):
    """Either half, as `role` says."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._options = options = ConnectorOptions.parse(transfer.kv_connector_extra_config)
        options.require_role(producer=transfer.is_kv_producer, consumer=transfer.is_kv_consumer)
        _require_served(vllm_config, kv_cache_config, fetches=bool(options.peers))
        self._scheduling: Scheduling | None = None
        self._worker: Worker | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduling = Scheduling(
                fetches=bool(options.peers),
                sends=bool(options.listen),
                min_tokens=options.min_tokens,
                retry_seconds=options.retry_seconds,
            )

    # --- in the worker

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        (group,) = self._kv_cache_config.kv_cache_groups
        cache = LatentCache(kv_caches, group.kv_cache_spec.block_size)
        self._worker = Worker(cache, self._options, self._vllm_config.model_config.get_vocab_size())
        _log.info("%s", self._worker.described)

    def handle_preemptions(self, kv_connector_metadata: Step) -> None:
        self._of_worker.prompts.preempt(kv_connector_metadata.preempted)

    def bind_connector_metadata(self, connector_metadata: Step) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._of_worker.prompts.begin_step(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._of_worker.load(self._get_connector_metadata().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request runs only after its load."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        self._of_worker.layer_done(layer_name)

    def wait_for_save(self) -> None:
        """Rows are read from vLLM's own blocks later, which `release` names when they may be used again."""
        self._of_worker.prompts.end_step()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        sent = self._of_worker.prompts.release(finished_req_ids)
        received, failed = self._of_worker.loaded()
        return KVConnectorTransferResults(finished_sending=sent, finished_recving=received, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._of_worker.invalid_blocks()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @property
    def _of_worker(self) -> Worker:
        assert self._worker is not None, "vLLM has registered no cache"
        return self._worker

    # --- in the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        found = self._of_scheduler.matched(request, num_computed_tokens)
        return found, found > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._of_scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        orders = self._of_scheduler.orders(scheduler_output)
        return Step(orders.loads, orders.prompts, orders.chunks, orders.preempted)

    def update_connector_output(self, connector_output: Any) -> None:
        if connector_output.failed_recving or connector_output.invalid_block_ids:
            self._of_scheduler.failed()

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        return self._of_scheduler.finished(request.request_id), None

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, block_ids)

    @property
    def _of_scheduler(self) -> Scheduling:
        assert self._scheduling is not None, "this is the worker's half"
        return self._scheduling

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A whole graph would not call `save_kv_layer`."""
        return bool(extra_config.get("listen"))


def _require_served(vllm_config: Any, kv_cache_config: Any, *, fetches: bool) -> None:
    """Raises UsageError for what the connector does not serve."""
    parallel = vllm_config.parallel_config
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    for name in sizes:
        if getattr(parallel, name, 1) > 1:
            raise UsageError(f"{name} is {getattr(parallel, name)}; the connector serves one worker per engine.")
    if vllm_config.speculative_config is not None:
        raise UsageError("The connector does not fetch a draft model's cache; leave out --speculative-config.")
    if len(kv_cache_config.kv_cache_groups) != 1:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in kv_cache_config.kv_cache_groups)
        raise UsageError(f"The model keeps {kinds}; the connector serves models that keep latents in every layer.")
    if fetches and vllm_config.kv_transfer_config.kv_load_failure_policy != "recompute":
        raise UsageError('Set "kv_load_failure_policy": "recompute", so that no request fails with its transfer.')
