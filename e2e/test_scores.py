"""What a sample tells beside its tokens, through the official SDK: one thing asked in two ways is equal."""

import numpy as np
import pytest
import torch
from helpers import question, result, tokenizer, user_error
from tinker import types

EMPTY = -99999.0


@pytest.fixture(scope="module")
def sampler(server):
    return server.service().create_sampling_client(base_model="nano")


@pytest.fixture(scope="module")
def prompt():
    return question("Tell me a story about a fox, a hen and 12 stones.")


def sample(sampler, prompt, number=1, scores=None, **params):
    params.setdefault("max_tokens", 1)
    return sampler.sample(
        types.ModelInput.from_ints(prompt), number, types.SamplingParams(**params), **(scores or {})
    )


def matrix(topk):
    return topk.token_ids, topk.logprobs


def test_top_1_is_greedy_and_lists_descend(sampler, prompt):
    scores = dict(include_prompt_logprobs=True, topk_prompt_logprobs=5, topk_sample_logprobs=5)
    output = result(sample(sampler, prompt, 1, scores, max_tokens=16, temperature=0.0))
    ids, logprobs = matrix(output.topk_prompt_logprobs_np)
    assert ids.shape == logprobs.shape == (len(prompt), 5)
    assert (ids[0] == 0).all() and (logprobs[0] == EMPTY).all()
    assert (np.diff(logprobs[1:], axis=1) <= 0).all()
    own = output.prompt_logprobs_np
    for place in range(1, len(prompt)):
        for listed in np.flatnonzero(ids[place] == prompt[place]):
            assert logprobs[place, listed] == own[place]
    sequence = output.sequences[0]
    ids, logprobs = matrix(sequence.topk_logprobs_np)
    assert ids.shape == (len(sequence.tokens), 5)
    assert ids[:, 0].tolist() == sequence.tokens
    assert logprobs[:, 0].tolist() == sequence.logprobs
    # The first place that the prompt's rows tell of the next token is what greedy draws there.
    cut = result(sample(sampler, prompt[:9], max_tokens=1, temperature=0.0)).sequences[0].tokens
    assert [output.topk_prompt_logprobs_np.token_ids[9, 0]] == cut


def test_prompt_lists_need_no_prompt_logprobs(sampler, prompt):
    alone = result(sample(sampler, prompt, 1, dict(topk_prompt_logprobs=3)))
    assert alone.prompt_logprobs is None
    beside = result(
        sample(sampler, prompt, 1, dict(topk_prompt_logprobs=3, include_prompt_logprobs=True))
    )
    assert (alone.topk_prompt_logprobs_np.logprobs == beside.topk_prompt_logprobs_np.logprobs).all()
    assert alone.topk_prompt_logprobs[0] is None


@pytest.mark.parametrize("params", [{}, dict(temperature=0.6), dict(temperature=1.5, top_k=9, top_p=0.8)])
def test_lists_of_drawn_tokens_hold_the_drawn_tokens_logprob(sampler, prompt, params):
    output = result(
        sample(sampler, prompt, 3, dict(topk_sample_logprobs=200), max_tokens=12, seed=4, **params)
    )
    for sequence in output.sequences:
        ids, logprobs = matrix(sequence.topk_logprobs_np)
        held = 0
        for place, token in enumerate(sequence.tokens):
            for listed in np.flatnonzero(ids[place] == token):
                assert logprobs[place, listed] == sequence.logprobs_np[place]
                held += 1
        assert held > 0
    plain = result(sample(sampler, prompt, 3, max_tokens=12, seed=4, **params))
    assert [each.tokens for each in plain.sequences] == [each.tokens for each in output.sequences]


def test_targets_are_the_prompts_own_logprobs(sampler, prompt):
    rows = len(prompt) - 1
    ids = torch.full((rows, 3), -1, dtype=torch.int64)
    ids[:, 0] = torch.tensor(prompt[1:])
    ids[5, 2] = 7
    scores = dict(include_prompt_logprobs=True, target_prompt_logprobs=types.TensorData.from_torch(ids))
    output = result(sample(sampler, prompt, 1, scores))
    given = output.target_prompt_logprobs.to_torch()
    assert given.shape == ids.shape and given.dtype == torch.float32
    assert given[:, 0].tolist() == output.prompt_logprobs[1:]
    assert (given[ids == -1] == 0.0).all() and given[5, 2] < 0.0

    sparse = torch.full((rows, 40), -1, dtype=torch.int64)
    sparse[5, 11], sparse[5, 39], sparse[rows - 1, 0] = 7, prompt[6], prompt[-1]
    target = types.TensorData.from_torch_sparse(sparse, pad_value=-1)
    assert target.sparse_crow_indices is not None
    some = result(sample(sampler, prompt, 1, dict(target_prompt_logprobs=target))).target_prompt_logprobs
    assert some.sparse_crow_indices == target.sparse_crow_indices
    assert some.sparse_col_indices == target.sparse_col_indices
    some = some.to_torch()
    assert some[5, 11] == given[5, 2]
    assert some[5, 39] == given[5, 0]
    assert some[rows - 1, 0] == given[rows - 1, 0]


def test_the_last_n_are_the_tail_of_the_whole(sampler, prompt):
    tokens = types.ModelInput.from_ints(prompt)
    whole = result(sampler.compute_logprobs(tokens))
    assert whole[0] is None and None not in whole[1:]
    for n in (1, 6, len(prompt) - 1):
        tail = result(sampler.compute_logprobs(tokens, prompt_logprobs_last_n=n))
        assert len(tail) == len(prompt)
        assert tail[-n:] == whole[-n:]
        assert set(tail[:-n]) == {None}
    scores = dict(include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=4)
    output = result(sample(sampler, prompt, 1, scores))
    assert set(output.topk_prompt_logprobs[:-4]) == {None}
    assert None not in output.topk_prompt_logprobs[-4:]


def test_alternatives_are_draws_of_each_position(sampler, prompt):
    ask = lambda k, **params: result(
        sample(sampler, prompt, 1, dict(prompt_alt_tokens_k=k, topk_prompt_logprobs=300), **params)
    )
    output = ask(6, seed=5)
    tokens = output.prompt_alt_tokens.tokens.to_torch()
    logprobs = output.prompt_alt_tokens.logprobs.to_torch()
    assert tokens.shape == logprobs.shape == (len(prompt) - 1, 6)
    assert tokens.dtype == torch.int64
    ids, listed = matrix(output.topk_prompt_logprobs_np)
    held = 0
    for row in range(len(prompt) - 1):
        for token, logprob in zip(tokens[row].tolist(), logprobs[row].tolist()):
            for place in np.flatnonzero(ids[row + 1] == token):
                assert listed[row + 1, place] == logprob
                held += 1
    assert held > len(prompt)
    assert (ask(6, seed=5).prompt_alt_tokens.tokens.to_torch() == tokens).all()
    assert (ask(6, seed=6).prompt_alt_tokens.tokens.to_torch() != tokens).any()
    greedy = ask(2, temperature=0.0)
    assert (greedy.prompt_alt_tokens.tokens.to_numpy() == ids[1:, :1]).all()
    assert (greedy.prompt_alt_tokens.logprobs.to_numpy() == listed[1:, :1]).all()


def test_wrong_scores_are_the_users_errors(sampler, prompt):
    def refused(**scores):
        return user_error(lambda: sample(sampler, prompt, 1, scores))

    assert "topk_prompt_logprobs is 100000" in refused(topk_prompt_logprobs=100_000)
    assert "topk_sample_logprobs is 100000" in refused(topk_sample_logprobs=100_000)
    assert "prompt_alt_tokens_k is 100000" in refused(prompt_alt_tokens_k=100_000)
    assert "topk_prompt_logprobs" in refused(topk_prompt_logprobs=-1)
    last_n = dict(include_prompt_logprobs=True, prompt_logprobs_last_n=len(prompt))
    assert f"prompt_logprobs_last_n is {len(prompt)}" in refused(**last_n)
    none = torch.full((len(prompt) - 1, 2), -1, dtype=torch.int64)
    for ids, expected in [
        (none, "names no token id"),
        (none[1:] + 2, "has the shape"),
        (none + 1_000_000, "out of the vocabulary"),
    ]:
        target = types.TensorData.from_torch(ids)
        assert expected in refused(target_prompt_logprobs=target)


def test_several_end_tokens_and_stops_in_every_form(sampler, start, tmp_path):
    import json
    import shutil

    from conftest import NANO

    prompt = question("What is 2 plus 2?")
    free = result(sample(sampler, prompt, max_tokens=20, temperature=0.0, stop=[])).sequences[0]
    assert free.stop_reason == "length"
    model = tmp_path / "several"
    shutil.copytree(NANO, model)
    path = model / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    second = free.tokens[1]
    config["eos_token_id"] = [tokenizer().eos_token_id, second]
    path.write_text(json.dumps(config))
    several = start(f"several={model}").service().create_sampling_client(base_model="several")
    end = free.tokens.index(second) + 1
    for stop in (None, "never", ["never"], [3]):
        expected = min(end, free.tokens.index(3) + 1) if stop == [3] and 3 in free.tokens else end
        ended = result(sample(several, prompt, max_tokens=20, temperature=0.0, stop=stop)).sequences[0]
        assert (ended.tokens, ended.stop_reason) == (free.tokens[:expected], "stop"), stop
    endless = result(sample(several, prompt, max_tokens=20, temperature=0.0, stop=[])).sequences[0]
    assert endless.tokens == free.tokens


def test_stability_info_may_be_asked_for(server, prompt):
    service = server.service()
    sampler = service.create_sampling_client(base_model="nano")
    sampler._record_stability_info = True
    assert len(result(sample(sampler, prompt, 2)).sequences) == 2
