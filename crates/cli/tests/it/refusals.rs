use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A copy of the model that ships, to be broken.
struct Broken {
    dir: tempfile::TempDir,
}

impl Broken {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(shipped().join(name), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn edit(self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let path = self.dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
        self
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.dir.path().join(name)).unwrap();
        self
    }

    /// What `serve` says about it; `doctor` says it too.
    fn refusal(&self) -> String {
        let model = format!("m={}", self.dir.path().display());
        let served = line(&serve(&[&model]));
        let problem = served.rsplit("open the model: ").next().unwrap();
        let problem = problem.rsplit(&*self.dir.path().to_string_lossy()).next().unwrap();
        let doctor = tinsmith(&["doctor", &model]);
        assert_eq!(doctor.status.code(), Some(1));
        let report = String::from_utf8(doctor.stdout).unwrap();
        assert!(report.contains(problem), "{problem:?} is not in\n{report}");
        served.replace(&*self.dir.path().to_string_lossy(), "DIR")
    }
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano")
}

fn tinsmith(arguments: &[&str]) -> Output {
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TINSMITH_")) {
        command.env_remove(name);
    }
    let command = command.args(arguments).current_dir(data.path());
    command.env("TINSMITH_DATA_DIR", data.path().join("data")).env("TINSMITH_PORT", "0");
    command.output().unwrap()
}

fn serve(arguments: &[&str]) -> Output {
    tinsmith(&[&["serve"], arguments].concat())
}

/// The one line on stderr.
fn line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

#[track_caller]
fn check(refusal: &str, parts: &[&str]) {
    for part in parts {
        assert!(refusal.contains(part), "{part:?} is not in {refusal:?}");
    }
}

#[test]
fn models_that_are_not_whole() {
    check(&line(&serve(&["/nowhere"])), &["/nowhere", "Hugging Face"]);
    check(&Broken::new().without("config.json").refusal(), &["DIR/config.json: there is no such"]);
    check(&Broken::new().without("model.safetensors").refusal(), &["DIR: there is neither"]);
    check(
        &Broken::new().without("tokenizer.json").refusal(),
        &["DIR/tokenizer.json", "copy the file"],
    );
}

#[test]
fn models_with_broken_files() {
    let edited = |name: &str, edit: fn(&mut Vec<u8>)| Broken::new().edit(name, edit).refusal();
    check(&edited("config.json", |bytes| bytes.truncate(9)), &["DIR/config.json: is not JSON"]);
    check(&edited("tokenizer.json", Vec::clear), &["DIR/tokenizer.json", "again"]);
    let file = "model.safetensors";
    check(&edited(file, |bytes| bytes.truncate(1000)), &["DIR/model.safetensors: is truncated"]);
    check(&edited(file, |bytes| bytes[7] = 1), &["DIR/model.safetensors: has a header of"]);
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len();
        bytes[end - 8..].fill(0xff);
    };
    check(&edited(file, nan), &["DIR/model.safetensors: tensor", "NaN"]);
}

#[test]
fn models_that_are_not_known() {
    let replaced = |from: &str, to: &str| {
        let edit = |bytes: &mut Vec<u8>| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            *bytes = text.replace(from, to).into_bytes();
        };
        Broken::new().edit("config.json", edit).refusal()
    };
    let known = ["DIR/config.json: model_type `mamba`", "gemma2", "llama", "mistral", "qwen3"];
    check(&replaced("\"qwen3\"", "\"mamba\""), &known);
    check(&replaced("\"silu\"", "\"gelu\""), &["DIR/config.json: `hidden_act` is \"gelu\""]);
}

#[test]
fn names() {
    let nano = shipped().display().to_string();
    check(&line(&serve(&[&format!("a={nano}"), &format!("a={nano}")])), &["two models as \"a\""]);
    for model in ["", &format!("={nano}"), "x="] {
        check(&line(&serve(&[model])), &["give DIR or NAME=DIR"]);
    }
}

#[test]
fn settings() {
    for (arguments, parts) in [
        (["--port", "99999"], ["port = \"99999\"", "65535"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "--insecure-no-auth"]),
        (["--threads", "100000"], ["threads = 100000", "1024"]),
        (["--kernels", "f32:amx"], ["f32:amx", "f32:avx2"]),
        (["--dtype", "int4"], ["int4", "f32"]),
        (["--data-dir", "/proc/tinsmith"], ["/proc/tinsmith", "cannot be made"]),
        (["--config", "/nowhere.toml"], ["/nowhere.toml", "No such file"]),
    ] {
        check(&line(&serve(&arguments)), &parts);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    check(&line(&serve(&["--port", &port])), &["is another server running?", &port]);
}

#[test]
fn data_directories() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().display().to_string();
    fs::write(data.path().join("tinsmith.sqlite"), "no database".repeat(100)).unwrap();
    check(
        &line(&serve(&["--data-dir", &path])),
        &["tinsmith.sqlite is damaged", "another directory"],
    );
    let lock = fs::File::create(data.path().join("lock")).unwrap();
    lock.lock().unwrap();
    check(&line(&serve(&["--data-dir", &path])), &[&*path, "is in use by another server"]);
}

/// A model of seventy billion numbers, in files that hold nothing.
fn seventy_billion() -> Broken {
    let (hidden, ffn, vocabulary, layers) = (8192_u64, 28672, 131_072, 80);
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![vocabulary, hidden]),
        ("lm_head".to_owned(), vec![vocabulary, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![8192, hidden]),
            ("self_attn.k_proj", vec![1024, hidden]),
            ("self_attn.v_proj", vec![1024, hidden]),
            ("self_attn.o_proj", vec![hidden, 8192]),
            ("self_attn.q_norm", vec![128]),
            ("self_attn.k_norm", vec![128]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = serde_json::json!({
            "dtype": "BF16", "shape": shape, "data_offsets": [begin, end],
        });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let model = Broken::new();
    let path = model.dir.path().join("model.safetensors");
    let length = header.len() as u64;
    fs::write(&path, [&length.to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 + length + end).unwrap();
    model.edit("config.json", |bytes| {
        let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        for (key, value) in [
            ("hidden_size", hidden),
            ("intermediate_size", ffn),
            ("vocab_size", vocabulary),
            ("num_hidden_layers", layers),
            ("num_attention_heads", 64),
            ("num_key_value_heads", 8),
            ("head_dim", 128),
        ] {
            config[key] = value.into();
        }
        let keys = config.as_object_mut().unwrap();
        keys.remove("layer_types");
        keys.insert("tie_word_embeddings".to_owned(), false.into());
        *bytes = config.to_string().into_bytes();
    })
}

#[test]
fn a_model_that_does_not_fit_is_not_loaded() {
    let model = seventy_billion();
    let name = format!("big={}", model.dir.path().display());
    let refusal = line(&serve(&[&name, "--memory", "12GiB"]));
    let parts =
        ["fit big into 12.0 GiB (the setting memory): it needs ", "(layers ", "embeddings "];
    check(&refusal, &parts);
    check(&refusal, &["serve a smaller model"]);
    let refusal = line(&serve(&[&name, "--memory", "12GiB", "--dtype", "f32"]));
    check(&refusal, &["use --dtype bf16"]);
}

#[test]
fn memory_that_is_too_little_says_for_what() {
    let refusal = line(&serve(&["--memory", "64MiB"]));
    check(&refusal, &["fit nano into 64.0 MiB", "(requests 192.0 MiB, ", "set memory higher"]);
    let refusal = line(&serve(&["--memory", "lots"]));
    check(&refusal, &["read memory = \"lots\"", "12GiB"]);
}
