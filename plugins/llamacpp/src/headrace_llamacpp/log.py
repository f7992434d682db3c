"""What llama.cpp's log tells: how far a start has come, and why one has failed.

The words are llama.cpp's own (`tools/server`, `src/llama-model.cpp`, `common/arg.cpp` and others of 2026, and their
earlier forms), and those of `headrace.engines`.
"""

from __future__ import annotations

import re


def _compiled(table: dict[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), words) for pattern, words in table.items())


MILESTONES = _compiled(
    {
        r"load_model: loading model": "loading the model",
        r"offloaded (\d+/\d+) layers to GPU": "{0} layers are on the GPU",
        r"(\S+) model buffer size = +([\d.]+) MiB": "the model takes {1} MiB of {0}",
        r"KV buffer size = +([\d.]+) MiB": "the KV cache takes {0} MiB",
        r"warming up the model": "warming up",
        r"n_slots = (\d+), n_ctx_slot = (\d+)": "{0} requests at the same time, of {1} tokens each",
        r"(?:server is )?listening on http": "opening its port",
    }
)

CAUSES = _compiled(
    {
        r"=== headrace: (\S+) is taken": "another program listens at {0}: stop it, or set another `port`",
        r"=== headrace: \S+ cannot be started": (
            "llama-server is not there: install it, name it by `command`, or pip install 'headrace-llamacpp[engine]'"
        ),
        r"(?:No module named '?xllamacpp|llama\.cpp cannot be loaded: )(.*)": "xllamacpp cannot be used {0}",
        r"(?:cudaMalloc failed|out of memory|ErrorOutOfDeviceMemory|unable to allocate (?:CUDA|ROCm|Metal|Vulkan))": (
            "out of GPU memory: lower n_gpu_layers, ctx_size or parallel, or set cache_type_k and cache_type_v to q8_0"
        ),
        r"failed to allocate (?:buffer|compute buffers|.*CPU)|std::bad_alloc": (
            "out of memory: lower ctx_size or parallel, or take a smaller quantization of the model"
        ),
        r"unknown model architecture: '([^']*)'": "this llama.cpp does not know {0}: a newer one may",
        r"(?:tensor '([^']*)' data is not within|corrupted or incomplete)": "the model's file is incomplete",
        r"failed to open GGUF file '([^']*)' \(([^)]*)\)": "{0} cannot be read: {1}",
        r"invalid magic": "`model` is no GGUF file",
        r"couldn'?t bind (?:HTTP )?server socket": "another program has taken its port: stop it, or set another `port`",
        r"(?:the following arguments are required|unrecognized arguments|argument -\S+): (.*)": (
            "the package xllamacpp is not told that: {0}; install llama-server for it"
        ),
        r"error: (?:invalid argument|unknown argument): (\S+)": "this llama-server knows no {0}: a newer one may",
        r"error while handling argument \"([^\"]*)\": (.*)": "llama-server refuses {0}: {1}",
        r"(Flash Attention|V cache quantization requires flash_attn|quantized V cache)(.*)": (
            'a V cache of that type wants flash attention: set flash_attn = "on"'
        ),
        r"error loading model: (.{1,200})": "{0}",
        r"(failed to load model[^\n]{0,200})": "{0}",
    }
)
"""What is most telling first: one failure leads to others."""
