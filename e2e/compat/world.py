"""What the cases share: one server, clients of it, small data, and the table of cases.

A case is a function of (world, call). `covers` names the methods it drives; `call` is the method in one of its
faces, `x` or `x_async`, with its future waited for. `feature` is a row that is no method.
"""

import asyncio
import functools
import importlib
import inspect
import itertools
import pathlib

import tinker
from tinker import types

BASE_MODEL = "nano"
RANK = 4
# Longer than anything here takes; a case that hangs is cut off by the driver.
WAIT_SECONDS = 60
CLIENTS = ["ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient"]

CASES = {}
FEATURES = {}


class Refused(Exception):
    """A refusal by the server or the SDK that the case knows and that says why."""


def covers(*names):
    """The case drives these methods, `Client.method`, and their `_async` faces."""

    def register(case):
        for name in names:
            assert name not in CASES, name
            CASES[name] = case
        return case

    return register


def feature(name, there=lambda: True):
    """A row of its own; `there` says whether this version of the SDK has it."""

    def register(case):
        assert name not in FEATURES, name
        FEATURES[name] = (case, there)
        return case

    return register


def client(name):
    """A client's class, wherever this version keeps it, or None."""
    if hasattr(tinker, name):
        return getattr(tinker, name)
    module = name.replace("Client", "").lower() + "_client"
    try:
        return getattr(importlib.import_module(f"tinker.lib.public_interfaces.{module}"), name, None)
    except ModuleNotFoundError:
        return None


def accepts(owner, method, parameter):
    """Whether a client's method takes a parameter in this version."""
    function = getattr(client(owner), method, None)
    return function is not None and parameter in inspect.signature(function).parameters


def field(type_name, name):
    """Whether a type has a field in this version."""
    kind = getattr(types, type_name, None)
    return kind is not None and name in getattr(kind, "model_fields", {})


def refusal(action):
    """The action must be refused as the user's fault, and the row says with which message."""
    try:
        value = action()
    except tinker.APIStatusError as error:
        assert 400 <= error.status_code < 500 and error.status_code not in (408, 409, 429), error
        body = error.body if isinstance(error.body, dict) else {}
        raise Refused(body.get("detail") or body.get("message") or error.message) from error
    except tinker.TinkerError as error:
        category = getattr(error, "category", None)
        assert category is not None and "user" in str(category).lower(), error
        raise Refused(str(error)) from error
    raise AssertionError(f"was accepted: {value!r:.200}")


class World:
    """Clients of one server, made when they are first asked for."""

    def __init__(self, url, tokens_url, folder):
        self.url = url
        self.tokens_url = tokens_url
        self.folder = pathlib.Path(folder)
        self._runner = asyncio.Runner()
        self._numbers = itertools.count(1)

    def name(self, prefix="c"):
        """A name that no case has used."""
        return f"{prefix}{next(self._numbers)}"

    def settle(self, value):
        """Waits for a value in whichever way it comes; what can be waited for both ways is, and must agree."""
        if inspect.iscoroutine(value):
            value = self._runner.run(asyncio.wait_for(value, WAIT_SECONDS))
        if not callable(getattr(value, "result", None)):
            return value
        result = value.result(timeout=WAIT_SECONDS)
        if inspect.isawaitable(value):
            awaited = self._runner.run(_wait(value))
            assert awaited is result or awaited == result, "result() and await give different values"
        return result

    def start_over(self):
        """Forgets what a case that failed may have left in a state that no other should meet."""
        self._runner = asyncio.Runner()
        for name in ("service", "rest", "training", "sampler_path", "state_path", "sampler"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def service(self):
        return tinker.ServiceClient(user_metadata={"made": "by compat"})

    @functools.cached_property
    def rest(self):
        return self.service.create_rest_client()

    @functools.cached_property
    def training(self):
        """A run that has taken three steps."""
        run = self.new_run()
        for _ in range(3):
            self.step(run)
        return run

    def new_run(self, seed=1, **options):
        return self.settle(
            self.service.create_lora_training_client(BASE_MODEL, rank=RANK, seed=seed, **options)
        )

    def step(self, run, loss="cross_entropy", data=None, config=None, rate=5e-3):
        """One forward_backward and one optim_step; the first's output."""
        output = run.forward_backward(data or datums(), loss, config)
        updated = run.optim_step(types.AdamParams(learning_rate=rate))
        output, updated = self.settle(output), self.settle(updated)
        assert type(updated).__name__ == "OptimStepResponse", updated
        return output

    def logprobs(self, run):
        """What the run's weights make of the data."""
        return logprobs(self.settle(run.forward(datums(), "cross_entropy")))

    @functools.cached_property
    def sampler_path(self):
        return self.settle(self.training.save_weights_for_sampler("shared-sampler")).path

    @functools.cached_property
    def state_path(self):
        return self.settle(self.training.save_state("shared-state")).path

    @functools.cached_property
    def sampler(self):
        """Samples from the shared run's weights."""
        return self.settle(self.service.create_sampling_client(model_path=self.sampler_path))

    @property
    def run_id(self):
        return run_of(self.state_path)

    @property
    def session_id(self):
        """Of the shared service client."""
        self.training
        return self.service.holder._session_id

    def sample(self, sampler, count=1, **options):
        options = {"max_tokens": 8, "temperature": 0.0, **options}
        return self.settle(sampler.sample(prompt(), count, types.SamplingParams(**options)))

    def checkpoints(self, run_id):
        listed = self.settle(self.rest.list_checkpoints(run_id)).checkpoints
        return {checkpoint.checkpoint_id: checkpoint for checkpoint in listed}


async def _wait(value):
    return await asyncio.wait_for(asyncio.ensure_future(_plain(value)), WAIT_SECONDS)


async def _plain(value):
    return await value


PROMPT = [5, 9, 17, 33, 65]
TOKENS = [[5, 9, 17, 33, 65, 44, 12, 80], [7, 21, 60, 91, 14, 3]]


def prompt():
    return types.ModelInput.from_ints(PROMPT)


def datums():
    """Two examples of different lengths; a loss of every token."""
    return [datum(tokens) for tokens in TOKENS]


def datum(tokens, **inputs):
    inputs = inputs or {"weights": [1.0] * (len(tokens) - 1)}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **inputs},
    )


def logprobs(output):
    """The logprobs of each datum, as lists of floats."""
    return [list(map(float, entry["logprobs"].data)) for entry in output.loss_fn_outputs]


def run_of(path):
    assert path.startswith("tinker://"), path
    return path.removeprefix("tinker://").split("/")[0]


def near(left, right, tolerance=1e-4):
    return len(left) == len(right) and all(abs(a - b) <= tolerance for a, b in zip(left, right))
