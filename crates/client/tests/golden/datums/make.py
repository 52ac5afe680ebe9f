"""Datums as the official SDK sends them: their protobuf form, and how large it takes them for.

Run by `cargo xtask golden`; writes datums.json beside itself. The cases are those of `src/datum/tests.rs`, by name.
"""

import json
import pathlib

import numpy as np
import torch
from tinker import types
from tinker.lib.public_interfaces.training_client import _estimate_datum_bytes_count_proto
from tinker.proto.request_conv import forward_backward_request_to_proto

PNG = b"\x89PNG\r\n\x1a\nrest"


def text(tokens):
    return types.ModelInput.from_ints(tokens)


def supervised(prompt, completion):
    tokens = prompt + completion
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(completion)
    return types.Datum(
        model_input=text(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights}
    )


def policy(prompt, sampled, logprobs, advantages, **more):
    tokens, pad = prompt + sampled, [0.0] * (len(prompt) - 1)
    inputs = {"target_tokens": tokens[1:], "logprobs": pad + logprobs, "advantages": pad + advantages, **more}
    return types.Datum(model_input=text(tokens[:-1]), loss_fn_inputs=inputs)


def soft(rows, columns):
    targets = torch.zeros((len(rows), columns), dtype=torch.int64)
    weights = torch.zeros((len(rows), columns))
    for row, candidates in enumerate(rows):
        for column, (token, weight) in enumerate(candidates):
            targets[row, column], weights[row, column] = token, weight
    inputs = {"target_tokens": targets, "weights": weights}
    return types.Datum(model_input=text(list(range(1, len(rows) + 1))), loss_fn_inputs=inputs)


def recorded():
    datum = policy([1, 2, 3], [4, 5], [0.0, 0.0], [1.0, 1.0])
    inputs = {name: tensor for name, tensor in datum.loss_fn_inputs.items() if name != "logprobs"}
    prompt, sampled = types.PromptProvenanceSpan, types.SampledProvenanceSpan
    return types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs).with_provenance(
        model_input=[prompt(sequence_id="s-1", length=3), sampled(sequence_id="s-1", length=1)],
        loss_fn_inputs=[prompt(sequence_id="s-1", offset=1, length=2), sampled(sequence_id="s-1", length=2)],
    )


def pictured():
    image = types.ImageChunk(data=PNG, format="png", expected_tokens=3)
    chunks = [types.EncodedTextChunk(tokens=[7]), image, types.EncodedTextChunk(tokens=[8])]
    return types.Datum(
        model_input=types.ModelInput(chunks=chunks),
        loss_fn_inputs={"target_tokens": [0, 0, 0, 8, 9], "weights": np.array([0, 0, 0, 1, 1], np.float32)},
    )


CASES = {
    "supervised": supervised([1, 2], [3, 4]),
    "policy": policy([1, 2], [3, 4], [-0.5, -0.25], [2.0, 2.0]),
    "bounded": policy([1, 2], [3, 4], [-0.5, -0.25], [2.0, -1.0], clip_low_threshold=[0.5, 0.75, 0.5]),
    "masked": policy([1], [2, 9, 9, 9, 3], [-1.0, 0.0, 0.0, 0.0, -2.0], [0.5, 0.0, 0.0, 0.0, 5.0],
                     sequence_ratio_mask=[1.0, 0.0, 0.0, 0.0, 1.0]),
    "soft": soft([[(5, 0.75), (6, 0.25)], [(7, 0.5), (8, 0.5)]], 2),
    "sparse": soft([[]] * 8 + [[(5, 0.75), (6, 0.25)], [(7, 1.0)]], 2),
    "recorded": recorded(),
    "pictured": pictured(),
}

if __name__ == "__main__":
    made = {}
    for name, datum in CASES.items():
        input = types.ForwardBackwardInput(data=[datum], loss_fn="cross_entropy")
        request = types.ForwardBackwardRequest(forward_backward_input=input, model_id="m", seq_id=1)
        message = forward_backward_request_to_proto(request).data[0]
        made[name] = {
            "protobuf": message.SerializeToString(deterministic=True).hex(),
            "estimated_bytes": _estimate_datum_bytes_count_proto(datum),
        }
    path = pathlib.Path(__file__).with_name("datums.json")
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
