//! The tokenizer as its callers see it, on files written here.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use tinsmith_tokenizer::{Chat, IncrementalDecoder, Message, Tokenizer, Value};

/// A byte-level tokenizer: token `b` is the byte `b`, token 256 is `<|end|>`.
fn byte_level() -> serde_json::Value {
    let vocab: BTreeMap<String, u32> =
        (0..=255u8).map(|byte| (shown(byte).to_string(), u32::from(byte))).collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [{
            "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// How byte-level vocabularies write a byte: itself where that is visible, else moved beyond U+0100.
fn shown(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|byte| !visible(*byte)).count();
    char::from_u32(0x100 + u32::try_from(place).unwrap()).unwrap()
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn open(files: &[(&str, &str)]) -> Tokenizer {
    let tokenizer = byte_level().to_string();
    let all = [&[("tokenizer.json", tokenizer.as_str())], files].concat();
    Tokenizer::open(directory(&all).path()).unwrap()
}

/// The message of a refused directory, with the directory's name taken out.
fn refusal(dir: &Path) -> String {
    let message = Tokenizer::open(dir).unwrap_err().to_string();
    message.replace(&dir.display().to_string(), "DIR")
}

#[test]
fn text_goes_to_tokens_and_back() {
    let tokenizer = open(&[]);
    let text = "Grüße, 世界 🦀! <|end|>";
    let tokens = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokens.len(), text.len() - "<|end|>".len() + 1, "no limit of the file applies");
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    assert_eq!(tokenizer.decode_plain(&tokens).unwrap(), "Grüße, 世界 🦀! ");
    assert_eq!(tokenizer.token_id("<|end|>"), Some(256));
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_eq!(tokenizer.decode(&[72, 9999, 105]).unwrap(), "Hi", "ids beyond the vocabulary");
}

/// The pieces that single tokens add.
fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut decoder = IncrementalDecoder::new();
    let piece = |token: &u32| {
        let mut text = String::new();
        decoder.push(tokenizer, *token, &mut text).unwrap();
        text
    };
    tokens.iter().map(piece).collect()
}

#[test]
fn characters_come_when_their_last_byte_does() {
    let tokenizer = open(&[]);
    let tokens = tokenizer.encode("aé🦀b", false).unwrap();
    assert_eq!(pieces(&tokenizer, &tokens), ["a", "", "é", "", "", "", "🦀", "b"]);
}

#[test]
fn incremental_text_is_the_whole_text() {
    let tokenizer = open(&[]);
    let text = "All of it: 世界 🦀🦀, <|end|> and on; naïve façade — ".repeat(20);
    let tokens = tokenizer.encode(&text, false).unwrap();
    assert_eq!(pieces(&tokenizer, &tokens).concat(), text);
}

#[test]
fn broken_bytes_do_not_hold_text_back_for_ever() {
    let tokenizer = open(&[]);
    // Continuation bytes without a beginning, then text.
    let mut tokens = vec![0x80; 30];
    tokens.extend("and then text".bytes().map(u32::from));
    let text = pieces(&tokenizer, &tokens).concat();
    assert!(text.ends_with("and then text"), "{text}");
    assert_eq!(text, tokenizer.decode(&tokens).unwrap());
}

const CHAT: &str = "{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.strip() %}
        {{- raise_exception('an empty question') }}
    {%- endif %}
    {{- bos_token + message.role + ': ' + message.content | trim + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}";

fn config(template: &serde_json::Value) -> String {
    let end = json!({"content": "<|end|>", "special": true});
    json!({"chat_template": template, "bos_token": "<s>", "eos_token": end, "other": 1}).to_string()
}

#[test]
fn chats_render_as_the_template_says() {
    let expected = "<s>system: be kind<|end|>\n<s>user: hello<|end|>\nassistant:";
    let messages = [Message::new("system", "be kind"), Message::new("user", " hello ")];
    let named =
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHAT}]);
    let file = config(&json!("not this one"));
    for files in [
        vec![("tokenizer_config.json", config(&json!(CHAT)))],
        vec![("tokenizer_config.json", config(&named))],
        vec![("tokenizer_config.json", file), ("chat_template.jinja", CHAT.to_owned())],
    ] {
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let tokenizer = open(&files);
        assert_eq!(tokenizer.render_chat(&Chat::new(&messages, true)).unwrap(), expected);
        let tokens = tokenizer.encode_chat(&Chat::new(&messages, true)).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), expected);
        assert_eq!(tokens.iter().filter(|token| **token == 256).count(), 2);
        let without = tokenizer.render_chat(&Chat::new(&messages[1..], false)).unwrap();
        assert_eq!(without, "<s>user: hello<|end|>\n");
        let error =
            tokenizer.render_chat(&Chat::new(&[Message::new("user", " ")], true)).unwrap_err();
        assert_eq!(error.to_string(), "render the chat template: an empty question (line 3)");
    }
}

#[test]
fn json_in_templates_is_as_python_writes_it() {
    let source = "{{ {'a': [1, \"<b> & 'c' \\\\u003c\"]} | tojson }}|{{ messages[0].content | tojson(indent=2) }}";
    let tokenizer = open(&[("chat_template.jinja", source)]);
    let text = tokenizer.render_chat(&Chat::new(&[Message::new("user", "é\n")], true)).unwrap();
    assert_eq!(text, "{\"a\": [1, \"<b> & 'c' \\\\u003c\"]}|\"é\\n\"");
}

#[test]
fn faults_name_the_file_and_the_fix() {
    assert_eq!(
        refusal(directory(&[]).path()),
        "read DIR/tokenizer.json: copy the file from the model's repository into this directory"
    );
    let message = refusal(directory(&[("tokenizer.json", "{}")]).path());
    assert!(message.starts_with("parse DIR/tokenizer.json: "), "{message}");
    assert!(message.ends_with("; copy the file from the model's repository again"), "{message}");
    let tokenizer = byte_level().to_string();
    let files = [("tokenizer.json", tokenizer.as_str()), ("chat_template.jinja", "{% if %}")];
    let message = refusal(directory(&files).path());
    assert!(message.starts_with("parse DIR/chat_template.jinja: "), "{message}");
    let files = [("tokenizer.json", tokenizer.as_str()), ("tokenizer_config.json", "[")];
    let message = refusal(directory(&files).path());
    assert!(message.starts_with("parse DIR/tokenizer_config.json: "), "{message}");
    let error = open(&[]).render_chat(&Chat::new(&[], true)).unwrap_err().to_string();
    assert!(error.contains("neither chat_template.jinja nor"), "{error}");
}

/// What transformers makes of chats: the last index is that of the settings. Null: it refuses.
#[derive(Deserialize)]
struct Expected {
    chats: BTreeMap<String, Vec<Value>>,
    settings: Vec<Chat>,
    texts: BTreeMap<String, BTreeMap<String, Vec<Option<String>>>>,
}

#[test]
fn chats_render_as_in_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
    let expected = fs::read_to_string(golden.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let (mut rendered, mut wrong) = (0, Vec::new());
    for (template, chats) in &expected.texts {
        let source = fs::read_to_string(golden.join(template).with_extension("jinja")).unwrap();
        let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}).to_string();
        let tokenizer =
            open(&[("chat_template.jinja", &source), ("tokenizer_config.json", &config)]);
        for (name, texts) in chats {
            for (setting, text) in expected.settings.iter().zip(texts) {
                let chat = Chat { messages: expected.chats[name].clone(), ..setting.clone() };
                let ours = tokenizer.render_chat(&chat);
                rendered += 1;
                if ours.as_ref().ok() != text.as_ref() {
                    let place =
                        format!("{template}: {name}: {:?}: {:?}", setting.end, setting.variables);
                    wrong.push(format!("{place}\nours {ours:?}\ntheirs {text:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(rendered, 5 * 16 * 7);
}

#[test]
fn templates_are_found_where_transformers_saves_them() {
    let messages = [Message::new("user", "hello")];
    let tool = Value::from_pairs([("name", "now")]);
    let chat = Chat::new(&messages, false);
    let with_tools = Chat { tools: Some(vec![tool]), ..chat.clone() };
    let named = config(&json!([
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
    ]));
    let tokenizer = open(&[("tokenizer_config.json", &named)]);
    assert_eq!(tokenizer.render_chat(&chat).unwrap(), "plain");
    assert_eq!(tokenizer.render_chat(&with_tools).unwrap(), "tools");
    let tokenizer = open(&[("chat_template.json", r#"{"chat_template": "of a processor"}"#)]);
    assert_eq!(tokenizer.render_chat(&with_tools).unwrap(), "of a processor");
    let dir = directory(&[
        ("tokenizer.json", &byte_level().to_string()),
        ("chat_template.jinja", "plain"),
        ("tokenizer_config.json", &named),
    ]);
    let folder = dir.path().join("additional_chat_templates");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("tool_use.jinja"), "from a file").unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.render_chat(&chat).unwrap(), "plain");
    assert_eq!(tokenizer.render_chat(&with_tools).unwrap(), "from a file");
    let only = open(&[(
        "tokenizer_config.json",
        &config(&json!([{"name": "rag", "template": "documents"}])),
    )]);
    let error = only.render_chat(&chat).unwrap_err().to_string();
    assert_eq!(
        error,
        "render the chat template: there are several by name, and none is called `default`"
    );
}

#[test]
fn the_end_token_is_that_of_the_configuration() {
    assert_eq!(open(&[("tokenizer_config.json", &config(&json!("x")))]).end_token(), Some(256));
    assert_eq!(open(&[("tokenizer_config.json", r#"{"eos_token": "</s>"}"#)]).end_token(), None);
    assert_eq!(open(&[]).end_token(), None);
}

/// The tokens of a chat, those that the assistant says between brackets.
fn shown_said(tokenizer: &Tokenizer, messages: &[Message]) -> String {
    let said = tokenizer.encode_said(messages, 1 << 20).unwrap();
    let whole = tokenizer.encode_chat(&Chat::new(messages, false)).unwrap();
    assert_eq!(said.tokens, whole, "marking changes no token");
    let mut text = String::new();
    let mut piece = IncrementalDecoder::new();
    let mut before = false;
    for (token, is_said) in said.tokens.iter().zip(&said.is_said) {
        if *is_said != before {
            text.push(if *is_said { '[' } else { ']' });
            before = *is_said;
        }
        piece.push(tokenizer, *token, &mut text).unwrap();
    }
    text
}

/// A byte-level tokenizer that knows these texts as special tokens, with one of the golden templates.
fn with_special(template: &str, special: &[&str]) -> Tokenizer {
    let mut tokenizer = byte_level();
    let added = special.iter().zip(256..).map(|(content, id)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    tokenizer["added_tokens"] = added.collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
    let source = fs::read_to_string(golden.join(template).with_extension("jinja")).unwrap();
    let dir = directory(&[
        ("tokenizer.json", &tokenizer.to_string()),
        ("chat_template.jinja", &source),
        ("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#),
    ]);
    Tokenizer::open(dir.path()).unwrap()
}

fn conversation() -> Vec<Message> {
    vec![
        Message::new("system", "Be kind."),
        Message::new("user", "Tin?"),
        Message::new("assistant", "  Tin, 世界.\n"),
        Message::new("user", "Tin?"),
        Message::new("assistant", "Tin?"),
    ]
}

#[test]
fn only_the_assistant_is_trained_in_the_manner_of_llama() {
    let tokenizer = with_special("llama", &["<|head|>", "<|end_head|>", "<|turn|>", "<s>"]);
    assert_eq!(
        shown_said(&tokenizer, &conversation()),
        "<s><|head|>system<|end_head|>\n\nToday is 1 Jan 2001.\nBe kind.<|turn|>\
         <|head|>user<|end_head|>\n\nTin?<|turn|>\
         <|head|>assistant<|end_head|>\n\n[Tin, 世界.<|turn|>]\
         <|head|>user<|end_head|>\n\nTin?<|turn|>\
         <|head|>assistant<|end_head|>\n\n[Tin?<|turn|>"
    );
}

#[test]
fn only_the_assistant_is_trained_in_the_manner_of_qwen() {
    let tokenizer = with_special("qwen", &["<|open|>", "<|close|>"]);
    // What the template writes before the last answer, the model has to write itself.
    assert_eq!(
        shown_said(&tokenizer, &conversation()),
        "<|open|>system\nBe kind.<|close|>\n<|open|>user\nTin?<|close|>\n\
         <|open|>assistant\n[  Tin, 世界.\n<|close|>]\n<|open|>user\nTin?<|close|>\n\
         <|open|>assistant\n[<think>\n\n</think>\n\nTin?<|close|>]\n"
    );
    let thinking = [
        Message::new("user", "a"),
        Message::new("assistant", "<think>\nlet me\n</think>\n\nb"),
        Message::new("user", "c"),
        Message::new("assistant", "<think>\nsee\n</think>\n\nd"),
        Message::new("user", "e"),
    ];
    assert_eq!(
        shown_said(&tokenizer, &thinking),
        "<|open|>user\na<|close|>\n<|open|>assistant\n[b<|close|>]\n<|open|>user\nc<|close|>\n\
         <|open|>assistant\n[d<|close|>]\n<|open|>user\ne<|close|>\n",
        "thoughts of earlier turns are not shown, and not trained"
    );
}

/// Each speaks behind a colon and a blank.
const COLON: &str =
    "{%- for message in messages %}{{ message.role }}: {{ message.content }};{% endfor -%}
    {%- if add_generation_prompt %}assistant: {% endif -%}";

/// The tokens of a question and its answer, and those of the question's prompt.
fn answered(tokenizer: &Tokenizer) -> (Vec<u32>, Vec<u32>) {
    let chat = [Message::new("user", "a"), Message::new("assistant", "a")];
    let said = tokenizer.encode_said(&chat, 1 << 20).unwrap();
    let prompt = tokenizer.encode_chat(&Chat::new(&chat[..1], true)).unwrap();
    (said.tokens, prompt)
}

#[test]
fn what_is_trained_begins_with_what_was_sampled_from() {
    let mut merging = byte_level();
    merging["model"]["vocab"]["Ġa"] = 256.into();
    merging["added_tokens"] = json!([]);
    merging["model"]["merges"] = json!([["Ġ", "a"]]);
    let files =
        [("tokenizer.json", merging.to_string()), ("chat_template.jinja", COLON.to_owned())];
    let dir = directory(&files.each_ref().map(|(name, text)| (*name, text.as_str())));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let (tokens, prompt) = answered(&tokenizer);
    assert_eq!(tokenizer.encode("user: a;", false).unwrap()[5], 256, "one token as one text");
    assert!(tokens.starts_with(&prompt));
    assert_eq!(tokens[prompt.len()..], [u32::from(b'a'), u32::from(b';')], "the blank was given");
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "user: a;assistant: a;");
}

/// A tokenizer that puts a blank before every text, as some do, cannot begin anew within one.
#[test]
fn texts_are_not_parted_where_that_would_show() {
    let letters = "▁aersuint:;▁";
    let mut vocab: BTreeMap<String, u32> =
        letters.chars().zip(0..).map(|(letter, id)| (letter.to_string(), id)).collect();
    vocab.insert("▁a".to_owned(), 99);
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"]]},
    });
    let dir =
        directory(&[("tokenizer.json", &tokenizer.to_string()), ("chat_template.jinja", COLON)]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let (tokens, _) = answered(&tokenizer);
    assert_eq!(tokens, tokenizer.encode("user: a;assistant: a;", false).unwrap());
}

#[test]
fn only_the_assistant_is_trained_on_the_model_that_ships() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let tokenizer = Tokenizer::open(&nano).unwrap();
    let messages = [
        Message::new("user", "hello hello"),
        Message::new("assistant", "hello"),
        Message::new("user", "hello"),
        Message::new("assistant", ""),
    ];
    assert_eq!(
        shown_said(&tokenizer, &messages),
        "<|im_start|>user\nhello hello<|im_end|>\n<|im_start|>assistant\n[hello<|im_end|>]\n\
         <|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n"
    );
    let said = tokenizer.encode_said(&messages[..1], 0).unwrap();
    assert!(said.is_said.iter().all(|is_said| !is_said), "nobody answers");
    let error = tokenizer.encode_said(&messages, 100).unwrap_err().to_string();
    assert!(error.contains("2 messages to learn, which is too long"), "{error}");
}
