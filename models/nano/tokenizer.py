"""Makes the tokenizer of the nano model: byte-level BPE of 1,024 tokens, trained on generated text.

A digit and a capital letter are always one token, with no space in them: that is what makes
arithmetic and spelling learnable for a model of this size. Run `python tokenizer.py`.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import generate

HERE = Path(__file__).parent
VOCABULARY_SIZE = 1024
CONVERSATION_COUNT = 30_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# Words of small letters (with the space and the capital before them), single capitals, single
# digits, line breaks, runs of signs; whatever fits none of these stays as it is.
PIECES = r" ?\p{Lu}?\p{Ll}+|\p{Lu}|\p{N}|[\r\n]| ?[^\s\p{L}\p{N}]+| +"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

# Text that the tasks do not make, so that ordinary English is not cut into single letters.
ENGLISH = """
The model reads a prompt and writes the next token. A server keeps the weights and trains an adapter for
every run. You can write a loop in Python that sends a batch, waits for the loss and makes a step. When
the training is done, save the state and sample from it. There are many people who would like to learn
how this works, because they have their own data and their own questions about it. Some of them want to
use it at home, others at work or at school. It should be easy to start, quick to answer and hard to
break. If something goes wrong, it says what went wrong and why, and what to do about it. He said that
she was there before them, and that they could not see which way the others had gone. This is what I
know: we think, we look, we try again, and after some time it will come out well. First make it right,
then make it fast. Every line of the program has been written with care, but no one could read them all
in one day. Please tell me more about the world, the people in it, and the things they make and use.
""".replace("\n", " ")


def corpus():
    """Generated conversations, and the English sentences often enough to count."""
    rng = random.Random(generate.SEED + 1)
    for _ in range(CONVERSATION_COUNT):
        for message in generate.conversation(rng, 2):
            yield message["content"]
    for role in ("system", "user", "assistant"):
        yield from [role] * 1000
    yield from [ENGLISH] * 60


def make():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE, tokenizer.get_vocab_size()
    for text in ["12 + 7 = 19", "STONE", " Grüße, 世界! 🦀\n\n\ttabs  and   spaces \r\n", "iPhoneX e\u0301 \u0000"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text, text
    return tokenizer


def write(directory):
    make().save(str(directory / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
        **special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


if __name__ == "__main__":
    write(HERE)
