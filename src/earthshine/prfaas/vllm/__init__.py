"""The vLLM connector: vLLM's latents to another vLLM or to Earthshine, and theirs to vLLM, over `prfaas.wire`.

`connector` is what vLLM loads (`kv_connector_module_path`); it is the only module that imports vLLM. The rest is pure:
`options` is the connector's configuration, `orders` what vLLM's scheduler sends to its worker in each step, made by
`scheduling`; `latents` reads and writes vLLM's paged cache, `prompts` follows the prompts that vLLM computes, `sending`
serves them to peers, and `receiving` fetches those of peers. Inside vLLM's process only torch, numpy, blake3 and the
standard library are imported.
"""
