"""What vLLM's log tells: how far a start has come, and why one has failed.

The words are vLLM's own (`vllm/v1/worker/gpu_model_runner.py`, `vllm/v1/core/kv_cache_utils.py`, `vllm/config/` and
others of 0.32, and their earlier forms), those of its libraries, and those of `headrace.engines`.
"""

from __future__ import annotations

import re


def _compiled(table: dict[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), words) for pattern, words in table.items())


MILESTONES = _compiled(
    {
        r"Initializing a V1 LLM engine \(v([^)]+)\)": "vLLM {0}",
        r"Starting to load model": "loading the model",
        r"(?:Downloading|Fetching) .*?(\d+)%": "downloading the model, {0} %",
        r"Time spent downloading weights for .*: (\d+)": "the model was downloaded in {0} s",
        r"Loading .*checkpoint shards: +(\d+)% Completed \| (\d+)/(\d+)": "loading weights, {0} % ({1} of {2} files)",
        r"Loading weights took (\d+)": "weights loaded in {0} s",
        r"Model loading took ([\d.]+) GiB": "the model takes {0} GiB of each GPU",
        r"Dynamo bytecode transform time": "compiling",
        r"torch\.compile (?:takes|took) (\d+)": "compiled in {0} s",
        r"Available KV cache memory: ([\d.]+) GiB": "{0} GiB are left for the KV cache",
        r"KV cache size: ([\d,]+) tokens": "the KV cache holds {0} tokens",
        r"Capturing CUDA graphs.*?(\d+)%": "capturing CUDA graphs, {0} %",
        r"Graph capturing finished in (\d+)": "CUDA graphs captured in {0} s",
        r"Starting vLLM (?:API )?server": "opening its port",
    }
)

CAUSES = _compiled(
    {
        r"=== headrace: cannot listen at (\S+): (.*)": "it cannot listen at {0}: {1}: set another `port` or `host`",
        r"=== headrace: \S+ cannot be started|No module named '?vllm": (
            "vLLM is not there: pip install 'headrace-vllm[engine]', or name it by `command` or `python`"
        ),
        r"Free memory on device \S+ \(([\d./ ]+GiB)\).* GPU memory utilization": (
            "the GPU has too little free memory ({0}): something else uses it (see nvidia-smi), or lower "
            "gpu_memory_utilization"
        ),
        r"(?:larger|greater) than the available KV cache(?s:.{0,300}?)estimated maximum model length is (\d+)": (
            "the KV cache is too small for max_model_len: {0} would fit; or raise gpu_memory_utilization"
        ),
        r"larger than the (?:maximum number of tokens|available KV cache)": (
            "the KV cache is too small for max_model_len: lower it, or raise gpu_memory_utilization"
        ),
        r"No available memory for the cache blocks": (
            "the weights leave no memory for the KV cache: raise gpu_memory_utilization, or use more GPUs "
            "(tensor_parallel_size)"
        ),
        r"(CUDA|HIP) out of memory|OutOfMemoryError": (
            "out of GPU memory: lower gpu_memory_utilization, max_model_len or max_num_seqs, or use more GPUs "
            "(tensor_parallel_size)"
        ),
        r"Available memory on node .* is less than": (
            "too little memory for the KV cache: lower gpu_memory_utilization (on a CPU: VLLM_CPU_KVCACHE_SPACE)"
        ),
        r"World size \((\d+)\) is larger than the number of available GPUs \((\d+)\)": (
            "it wants {0} GPUs and sees {1}: lower tensor_parallel_size, or look at `devices`"
        ),
        r"invalid device ordinal|No CUDA GPUs are available|no CUDA-capable device|Failed to infer device type": (
            "it finds no such GPU: look at `devices` and nvidia-smi"
        ),
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)": (
            "tensor_parallel_size = {1} does not divide the model's {0} attention heads"
        ),
        r"User-specified max_model_len \((\d+)\).*derived max_model_len \([^=]*=(\d+)": (
            "the model was made for {1} tokens, max_model_len = {0} is too much"
        ),
        r"gated repo|GatedRepoError|GatedRepo\b|40[13] Client Error": (
            "the hub refuses the model: accept its terms on its page, and set env.HF_TOKEN to your token"
        ),
        r"(?:not a valid model identifier|RepositoryNotFoundError|Repository Not Found|Repo id must be)": (
            "there is no such model: `model` must be a folder of this machine, or a name on the hub (a private one "
            "needs env.HF_TOKEN)"
        ),
        r"Invalid repository ID or local directory": "`model` is a folder without a model's config.json",
        r"couldn't connect to|outgoing traffic has been disabled|LocalEntryNotFoundError|Name or service not known": (
            "the model is not on this machine, and the hub cannot be reached: fetch it first, or name a folder"
        ),
        r"Bfloat16 is only supported": 'this GPU knows no bfloat16: set dtype = "half"',
        r"No valid attention backend found for (\S+)|[Hh]ead.?size \S+ is not supported": (
            "no attention kernel fits: another dtype or kv_cache_dtype may; the log says which were tried"
        ),
        r"Model architectures \[([^\]]*)\] are not supported": "this vLLM does not know {0}: a newer one may",
        r"([Uu]nknown quantization method[^.\n]*|The quantization method \S+ is not supported)": "{0}",
        r"LoRA rank (\d+) is greater than max_lora_rank": (
            'an adapter is too large: set args = ["--max-lora-rank", "{0}"]'
        ),
        r"unrecognized arguments: (.*--shutdown-timeout.*)": (
            "this vLLM knows no --shutdown-timeout: use a newer one, or set drain = 0"
        ),
        r"vllm(?: serve)?: error: (.*)": "vLLM refuses its arguments: {0}",
        r"Address already in use": "another program has taken its port: stop it, or set another `port`",
        r"No space left on device": "a disk is full (or /dev/shm is too small)",
        r"NVIDIA driver on your system is too old|libcuda\.so": "the NVIDIA driver is missing or too old",
        r"(Worker proc \S+ died unexpectedly(?: \([^)]*\))?)": "{0}: out of memory, or killed",
        r"Value error, (.{1,200}?)(?: \[type=|$|\n)": "{0}",
        r"\b((?:[A-Za-z_]{1,40}\.){0,8}(?!Runtime)[A-Z]\w{0,60}Error: (?!Worker failed).{1,200})": "{0}",
        r"\b(RuntimeError: (?!Engine core init|Worker failed).{1,200})": "{0}",
    }
)
"""What is most telling first: one failure leads to others."""
