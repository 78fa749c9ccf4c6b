"""vLLM in its own environment, driven by lines of JSON; run by vLLM's Python, not imported by tests.

argv[1]: {"model": folder, "transfer": kv_transfer_config or null, "options": of vllm.LLM}. Each line of standard input
is {"prompt": token ids, "max_tokens": n, "held": bool, "salt": text or null}, or a list of such, which run at once; the
answer is a line {"tokens": [...], "finish": text} for each. The first line of the answers is {"ready": true}.
"""

import json
import os
import sys


def main() -> None:
    given = json.loads(sys.argv[1])
    answers = os.dup(1)  # what vLLM prints goes to standard error
    os.dup2(2, 1)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = {"kv_transfer_config": KVTransferConfig(**given["transfer"])} if given["transfer"] else {}
    llm = LLM(
        model=given["model"], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048, max_num_seqs=4, seed=0,
        enforce_eager=True, compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
        **transfer, **given["options"],
    )  # fmt: skip
    with os.fdopen(answers, "w") as out:
        print(json.dumps({"ready": True}), file=out, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            asked = asked if isinstance(asked, list) else [asked]
            params = [
                SamplingParams(
                    temperature=0,
                    max_tokens=each["max_tokens"],
                    ignore_eos=True,
                    detokenize=False,
                    extra_args={"kv_transfer_params": {"do_remote_decode": True}} if each.get("held") else None,
                )
                for each in asked
            ]
            prompts = [
                {"prompt_token_ids": each["prompt"]} | ({"cache_salt": each["salt"]} if each.get("salt") else {})
                for each in asked
            ]
            for found in llm.generate(prompts, params, use_tqdm=False):
                reply = found.outputs[0]
                print(
                    json.dumps({"tokens": list(reply.token_ids), "finish": reply.finish_reason}), file=out, flush=True
                )


if __name__ == "__main__":
    main()
