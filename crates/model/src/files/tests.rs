use std::{fs, path::Path};

use serde_json::{Value, json};

use super::ModelDir;
use crate::golden::{CASES, Golden};

/// Copies a golden model, changes it and expects this error, in which DIR is the directory.
#[track_caller]
fn check(case: &str, change: impl Fn(&Path), expected: &str) {
    let dir = copy(case);
    change(dir.path());
    let error = ModelDir::open(dir.path()).unwrap_err().to_string();
    assert_eq!(error.replace(dir.path().to_str().unwrap(), "DIR"), expected);
}

/// As [`check`], for a change of one field of `config.json`; null removes it.
#[track_caller]
fn check_config(field: &str, value: &Value, expected: &str) {
    let expected = format!("open the model: DIR/config.json: {expected}");
    check("qwen3/tied", |dir| edit_config(dir, field, value), &expected);
}

#[test]
fn golden_models_open() {
    for case in CASES {
        assert!(Golden::open(case).dir.parameters() > 20_000, "{case}");
    }
    let found = ["qwen3/tied", "qwen3/untied", "qwen3/odd"].map(|case| {
        let dir = Golden::open(case).dir;
        (dir.parameters(), dir.end_tokens().to_vec())
    });
    assert_eq!(found, [(78_400, vec![257]), (157_992, vec![257, 258]), (39_696, vec![257])]);
}

#[test]
fn directories_and_files_must_be_there() {
    let error = ModelDir::open(Path::new("/nowhere")).unwrap_err().to_string();
    assert_eq!(
        error,
        "open the model: /nowhere: there is no such directory; name a model directory in the format of \
         Hugging Face"
    );
    let remove = |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).unwrap();
    check(
        "qwen3/tied",
        remove("config.json"),
        "open the model: DIR/config.json: there is no such file; name a directory in the format of \
         Hugging Face: config.json, tokenizer.json, model.safetensors or its shards",
    );
    check(
        "qwen3/tied",
        remove("model.safetensors"),
        "open the model: DIR: there is neither model.safetensors nor model.safetensors.index.json; \
         weights in other formats (.bin, .gguf) are not read",
    );
    check(
        "qwen3/untied",
        remove("model-00003-of-00004.safetensors"),
        "open the model: DIR/model-00003-of-00004.safetensors: there is no such file, but \
         model.safetensors.index.json names it; download it",
    );
}

#[test]
fn configurations_are_checked() {
    check_config(
        "model_type",
        &json!("mamba"),
        "model_type `mamba` is not supported; these are: gemma2, gemma3_text, gemma3, llama, mistral, \
         qwen2, qwen3",
    );
    check_config("model_type", &Value::Null, "`model_type` is missing");
    check_config("hidden_size", &Value::Null, "`hidden_size` is missing");
    check_config("hidden_size", &json!("64"), "`hidden_size` is \"64\", not a whole number");
    check_config("num_hidden_layers", &json!(0), "a size in it is 0");
    check_config("num_hidden_layers", &json!(5_000_000), "it has over 10000 layers");
    check_config("vocab_size", &json!(1u64 << 40), "a size in it is over 16 million");
    check_config(
        "num_key_value_heads",
        &json!(3),
        "num_attention_heads is not a multiple of num_key_value_heads",
    );
    check_config("head_dim", &json!(15), "head_dim is odd; the rotary embedding turns pairs");
    check_config(
        "eos_token_id",
        &json!("</s>"),
        "`eos_token_id` is \"</s>\": it must be a token id or a list of them",
    );
}

#[test]
fn weights_are_checked() {
    const FILE: &str = "model.safetensors";
    check(
        "qwen3/tied",
        |dir| edit_config(dir, "intermediate_size", &json!(97)),
        "open the model: DIR/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` has shape \
         [96, 64], but config.json asks for [97, 64]",
    );
    check(
        "qwen3/tied",
        |dir| edit_config(dir, "num_hidden_layers", &json!(3)),
        "open the model: DIR/model.safetensors: tensor `model.layers.2.input_layernorm.weight` is missing; \
         the files may be another model's or incomplete",
    );
    check(
        "qwen3/tied",
        |dir| edit_config(dir, "tie_word_embeddings", &json!(false)),
        "open the model: DIR/model.safetensors: tensor `lm_head.weight` is missing; the files may be \
         another model's or incomplete",
    );
    check(
        "qwen3/tied",
        |dir| edit_bytes(&dir.join(FILE), |bytes| bytes.truncate(bytes.len() - 1)),
        "open the model: DIR/model.safetensors: is truncated or has been changed: its 316063 bytes are not \
         as many as its header says; download or write it again",
    );
    check(
        "qwen3/tied",
        |dir| edit_bytes(&dir.join(FILE), Vec::clear),
        "open the model: DIR/model.safetensors: has 0 bytes and is no safetensors file",
    );
    check(
        "qwen3/tied",
        |dir| edit_bytes(&dir.join(FILE), |bytes| bytes.truncate(5)),
        "open the model: DIR/model.safetensors: has 5 bytes and is no safetensors file",
    );
    check(
        "qwen3/tied",
        |dir| {
            edit_bytes(&dir.join(FILE), |bytes| {
                bytes[..8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
            });
        },
        "open the model: DIR/model.safetensors: has a header of 16777216 bytes (at most 8388608 are read); \
         it may not be a safetensors file",
    );
    let integers = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(5).position(|word| word == b"\"F32\"").unwrap();
        bytes[at + 1] = b'I';
    };
    check(
        "qwen3/tied",
        |dir| edit_bytes(&dir.join(FILE), integers),
        "open the model: DIR/model.safetensors: tensor `model.embed_tokens.weight` has dtype I32; F32, F16 \
         and BF16 can be served",
    );
    check(
        "qwen3/untied",
        |dir| {
            let index = json!({"weight_map": {"model.norm.weight": "../model.safetensors"}});
            fs::write(dir.join(super::INDEX), index.to_string()).unwrap();
        },
        "open the model: DIR/model.safetensors.index.json: names `../model.safetensors`, which is not a \
         plain file name",
    );
}

#[test]
fn numbers_must_be_finite() {
    let dir = copy("qwen3/tied");
    ModelDir::open(dir.path()).unwrap().check_finite().unwrap();
    edit_bytes(&dir.path().join("model.safetensors"), |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let error = ModelDir::open(dir.path()).unwrap().check_finite().unwrap_err().to_string();
    assert!(error.contains("model.safetensors: tensor `model.norm.weight` holds NaN"), "{error}");
}

#[test]
fn the_digest_is_that_of_weights_and_switches() {
    let digest = |change: fn(&Path)| {
        let dir = copy("qwen3/odd");
        change(dir.path());
        ModelDir::open(dir.path()).unwrap().digest()
    };
    let plain = digest(|_| {});
    // Journals hold digests: this one never changes.
    assert_eq!(plain, "04c61f4b4570c187bc25999232660454baa2e5700ed74cf0c263da53b261a8a8");
    assert_eq!(digest(|dir| edit_config(dir, "transformers_version", &json!("9"))), plain);
    assert_ne!(digest(|dir| edit_config(dir, "rms_norm_eps", &json!(2e-5))), plain);
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let flipped = {
        let dir = copy("qwen3/odd");
        edit_bytes(&dir.path().join("model.safetensors"), flip);
        ModelDir::open(dir.path()).unwrap().digest()
    };
    assert_ne!(flipped, plain);
}

#[test]
fn end_tokens_of_the_generation_config_come_first() {
    let dir = copy("qwen3/tied");
    let open = || ModelDir::open(dir.path()).unwrap().end_tokens().to_vec();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
    assert_eq!(open(), [1, 2]);
    fs::write(dir.path().join("generation_config.json"), "{}").unwrap();
    assert_eq!(open(), [257]);
    edit_config(dir.path(), "eos_token_id", &Value::Null);
    assert!(open().is_empty());
}

fn copy(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Golden::open(case).path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn edit_config(dir: &Path, field: &str, value: &Value) {
    edit_bytes(&dir.join("config.json"), |bytes| {
        let mut config: Value = serde_json::from_slice(bytes).unwrap();
        config[field] = value.clone();
        *bytes = config.to_string().into_bytes();
    });
    // What generation_config.json says comes first.
    if field == "eos_token_id" && value.is_string() {
        fs::remove_file(dir.join("generation_config.json")).unwrap();
    }
}

fn edit_bytes(path: &Path, edit: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}
