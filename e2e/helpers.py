"""Small words that the tests share."""

import functools
import json

import tinker
from conftest import NANO, WAIT_SECONDS
from tinker import types

ADAM = types.AdamParams(learning_rate=5e-3)
GREEDY = types.SamplingParams(max_tokens=32, temperature=0.0)


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(NANO)


def question(text):
    """A user's turn, rendered for generation."""
    messages = [{"role": "user", "content": text}]
    text = tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer().encode(text, add_special_tokens=False)


def datum(prompt, answer):
    """Cross-entropy on the answer alone; targets are shifted here, as the SDK's users do."""
    answer = tokenizer().encode(answer + "<|im_end|>", add_special_tokens=False)
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def plain_datum(tokens):
    """Cross-entropy on every token."""
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def episode(prompt, sequence, advantage):
    """What the losses of reinforcement learning read of one sampled sequence."""
    tokens = prompt + list(sequence.tokens)
    pad = [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": pad + list(sequence.logprobs),
            "advantages": pad + [advantage] * len(sequence.tokens),
        },
    )


def result(future):
    return future.result(timeout=WAIT_SECONDS)


def answer(sampler, prompt, params=GREEDY):
    """One answer's text."""
    output = result(sampler.sample(types.ModelInput.from_ints(prompt), 1, params))
    tokens = [token for token in output.sequences[0].tokens if token != tokenizer().eos_token_id]
    return tokenizer().decode(tokens)


def heldout():
    lines = (NANO / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def logprobs(output):
    """The logprobs of each datum of a forward_backward, as lists of floats."""
    return [entry["logprobs"].tolist() for entry in output.loss_fn_outputs]


def user_error(call):
    """The message of a refusal that is the user's fault: a 4xx, or a failed future of category user."""
    try:
        value = call()
        value = result(value) if hasattr(value, "result") else value
    except tinker.RequestFailedError as error:
        assert "user" in str(error.category).lower(), error
        return str(error)
    except tinker.APIStatusError as error:
        assert 400 <= error.status_code < 500, error
        return str(error)
    raise AssertionError(f"was accepted: {value}")
