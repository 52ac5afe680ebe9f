"""Chats as transformers renders them with the templates in this folder.

The templates are our own; each is written in the manner of one family, with the constructs that its templates use.
"""

import datetime
import json
import pathlib

import tokenizers
import transformers
from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).parent
NOW = datetime.datetime(2025, 3, 7, 14, 5, 9)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock

PLACE = {"type": "string", "description": 'City, <as> "one" & it\'s üblich 世界'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"place": PLACE}, "required": ["place"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]
SYSTEM = {"role": "system", "content": "  Be kind.\n"}
USER = {"role": "user", "content": " Say a word, or two! "}
ASSISTANT = {"role": "assistant", "content": "Tin.\n\n"}
LAST = {"role": "user", "content": "And in Zürich? <b>&'\"\\ 世界 🦀"}
THINKING = {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nSo."}
REASONING = {"role": "assistant", "reasoning": "because\n", "content": "So."}


def call(arguments, name="weather", key="call12345"):
    return {"type": "function", "id": key, "function": {"name": name, "arguments": arguments}}


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [call({"place": "Zürich", "n": 1.5, "deep": [1, {"b": None, "a": True}], "e": 1e-07})],
}
CALLS = {"role": "assistant", "content": "I look.", "tool_calls": [call({}), call("{}", "now", "call67890")]}
RESULT = {"role": "tool", "tool_call_id": "call12345", "content": '{"t": 20}'}
RESULT_TWO = {"role": "tool", "tool_call_id": "call67890", "content": "noon"}
MAPPING = {"role": "tool", "tool_call_id": "call12345", "content": {"content": 20.0, "all": [True, None, "it's"]}}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is it "}]}
EXTRA = {
    "z": 1,
    "a": "it's",
    "float": 0.1,
    "large": 1e16,
    "small": 1e-05,
    "flag": True,
    "nothing": None,
    "list": [1, "x", False],
    "quotes": "\"'\n\t\x01",
    "ünï": {"b": 2, "a": []},
}
CHATS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, LAST],
    "long": [USER, ASSISTANT] * 3 + [LAST],
    "answered": [USER, ASSISTANT],
    "thinking": [USER, THINKING, LAST],
    "thinking last": [USER, THINKING],
    "reasoning": [SYSTEM, USER, REASONING, LAST, REASONING],
    "call": [SYSTEM, LAST, CALL],
    "result": [USER, CALL, RESULT, ASSISTANT, USER],
    "mapping": [USER, CALL, MAPPING],
    "calls": [USER, CALLS, RESULT, RESULT_TWO],
    "parts": [PARTS, ASSISTANT, USER],
    "two users": [USER, LAST],
    "only system": [SYSTEM],
    "odd roles": [
        {"role": "skip", "content": "x"},
        {"role": "narrator's", "content": "Once upon a time. ", "extra": EXTRA},
        {"role": "user", "extra": {}},
        {"role": "stop", "content": "x"},
    ],
}
SETTINGS = [
    {"end": "whole"},
    {"end": "prompt"},
    {"end": "prompt", "tools": TOOLS},
    {"end": "continue"},
    {"end": "prompt", "variables": {"enable_thinking": False, "tools_first": False, "today": "now"}},
    {"end": "prompt", "tools": TOOLS, "variables": {"tools_first": False}},
    {"end": "whole", "documents": [{"title": "<A>", "text": "one\ntwo"}]},
]


def main():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>"
    )

    def text(source, messages, setting):
        try:
            return tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                tools=setting.get("tools"),
                documents=setting.get("documents"),
                add_generation_prompt=setting["end"] == "prompt",
                continue_final_message=setting["end"] == "continue",
                tokenize=False,
                **setting.get("variables", {}),
            )
        except Exception:
            return None

    texts = {
        template.stem: {
            name: [text(template.read_text(), messages, setting) for setting in SETTINGS]
            for name, messages in CHATS.items()
        }
        for template in sorted(FOLDER.glob("*.jinja"))
    }
    settings = [{"messages": [], "now": NOW.isoformat(), **setting} for setting in SETTINGS]
    expected = {"chats": CHATS, "settings": settings, "texts": texts}
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


main()
