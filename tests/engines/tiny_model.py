"""Makes a model that is as small as vLLM takes, and says a text that is known: `python tiny_model.py FOLDER`.

It is a Llama of two layers whose weights are not learnt but set: each word of its text has the next one as its
successor, with a margin that no rounding takes away. So its answer to anything is the same text, on every machine and
wherever it is told to go on, and ends by itself; with `ignore_eos` it begins again. To the engine it is a model like
any other: it has attention, a KV cache, a tokenizer that was trained on English, and a chat template.

Run by the Python of the engine's environment: it needs torch, transformers and tokenizers.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, HEADS, LENGTH, VOCABULARY = 128, 4, 8192, 4096  # vLLM's attention on the CPU wants 32 numbers a head at least
BEGIN, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% if tools %}" + BEGIN + "tools\n{{ tools | tojson }}" + END + "\n{% endif %}"
    "{% for message in messages %}" + BEGIN + "{{ message['role'] }}\n{{ message['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + BEGIN + "assistant\n{% endif %}"
)
FIRST = (
    *("water", "wind", "steam", "river", "mill", "stone", "wheel", "sluice", "channel", "bucket", "gate", "spring"),
    *("rain", "pond", "weir", "rope", "beam", "shaft", "gear", "belt", "lever", "crane", "tower", "roof", "bridge"),
    *("bank", "field", "barn", "road", "boat"),
)
SECOND = (
    *("turns", "carries", "lifts", "drives", "fills", "moves", "grinds", "feeds", "meets", "holds", "slows"),
    *("bends", "parts", "leads", "calls", "rests", "sings", "shines", "falls", "climbs", "waits", "starts", "ends"),
    *("breaks", "mends", "shakes", "sleeps", "wakes", "hums", "creaks", "glides", "drips"),
)
WORDS = [f" {first}{second}" for first in FIRST for second in SECOND]
"""The text it says, word by word; each of them a token."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One that splits English into pieces of some letters, and knows each word of the text as a whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["".join(WORDS)] * 1000 + list(topics.values()), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token="<|endoftext|>", model_max_length=LENGTH
    )
    made.chat_template = TEMPLATE
    return made


def make_model(words: list[int], start: int, end: int, size: int) -> LlamaForCausalLM:
    """One that says the first word after `start` and after `end`, and `end` after the last."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    each = torch.nn.functional.normalize(torch.randn(size, HIDDEN), dim=1)
    answer = torch.zeros(size, HIDDEN)
    for before, after in zip([start, *words, end], [*words, end, words[0]], strict=True):
        answer[after] += each[before] * 10
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(each)
        model.lm_head.weight.copy_(answer)
        for layer in model.model.layers:  # what it has attended to is computed, and then counts for nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model.to(torch.bfloat16)


def main(folder: str) -> None:
    tokenizer = make_tokenizer()
    words = tokenizer.encode("".join(WORDS))
    assert len(words) == len(set(words)) == len(WORDS), "each word must be a token of its own"
    (start,), (end,) = tokenizer.encode("\n"), tokenizer.encode(END)
    model = make_model(words, start, end, len(tokenizer))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
