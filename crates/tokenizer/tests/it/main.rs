//! The tokenizer as its callers see it, on files written here.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::json;
use tempfile::TempDir;
use tinsmith_tokenizer::{IncrementalDecoder, Message, Tokenizer};

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
        assert_eq!(tokenizer.render_chat(&messages, true).unwrap(), expected);
        let tokens = tokenizer.encode_chat(&messages, true).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), expected);
        assert_eq!(tokens.iter().filter(|token| **token == 256).count(), 2);
        let without = tokenizer.render_chat(&messages[1..], false).unwrap();
        assert_eq!(without, "<s>user: hello<|end|>\n");
        let error = tokenizer.render_chat(&[Message::new("user", " ")], true).unwrap_err();
        assert_eq!(error.to_string(), "render the chat template: an empty question (line 3)");
    }
}

#[test]
fn json_in_templates_is_as_python_writes_it() {
    let source = "{{ {'a': [1, \"<b> & 'c' \\\\u003c\"]} | tojson }}|{{ messages[0].content | tojson(indent=2) }}";
    let tokenizer = open(&[("chat_template.jinja", source)]);
    let text = tokenizer.render_chat(&[Message::new("user", "é\n")], true).unwrap();
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
    let error = open(&[]).render_chat(&[], true).unwrap_err().to_string();
    assert!(error.contains("neither chat_template.jinja nor"), "{error}");
}
