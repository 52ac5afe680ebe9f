//! What each family's entry makes of a `config.json`.

use serde_json::{Value, json};
use tinsmith_backend::Activation;

use crate::{
    config::{ConfigJson, DecoderConfig},
    golden::Golden,
};

/// The switches for a golden model's `config.json` with these fields set, and these removed.
fn read(case: &str, set: &Value, removed: &[&str]) -> crate::Result<DecoderConfig> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(Golden::open(case).path.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    for (field, value) in set.as_object().unwrap() {
        config[field] = value.clone();
    }
    removed.iter().for_each(|field| drop(config.as_object_mut().unwrap().remove(*field)));
    let path = dir.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    super::config(&ConfigJson::open(path)?)
}

/// Expects that the changed `config.json` is refused with this problem.
#[track_caller]
fn refused(case: &str, set: &Value, expected: &str) {
    let error = read(case, set, &[]).unwrap_err().to_string();
    let problem = error.split_once("config.json: ").unwrap().1;
    assert_eq!(problem, expected);
}

/// Expects that the changed `config.json` says the same model as before.
#[track_caller]
fn same(case: &str, set: &Value, removed: &[&str]) {
    let found = read(case, set, removed).unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", Golden::open(case).dir.config()));
}

#[test]
fn switches_that_would_compute_something_else_are_refused() {
    let case = "qwen3/tied";
    refused(
        case,
        &json!({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6, "factor": 4.0}}),
        "`rope_parameters.rope_type` is \"longrope\": only `default`, `linear`, `llama3` and `yarn` are \
         supported",
    );
    refused(
        case,
        &json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        "`rope_scaling.type` is \"dynamic\": only `default`, `linear`, `llama3` and `yarn` are supported",
    );
    refused(
        case,
        &json!({"rope_scaling": {"factor": 2.0}}),
        "`rope_scaling.factor` is 2.0: there is no `rope_type` beside it",
    );
    refused(case, &json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing");
    refused(
        case,
        &json!({"rope_scaling": {"type": "linear", "factor": -1}}),
        "`rope_scaling` is {\"factor\":-1,\"type\":\"linear\"}: it gives frequencies that are no positive \
         numbers",
    );
    refused(
        case,
        &json!({"rope_parameters": {"rope_theta": 0.5}}),
        "`rope_parameters.rope_theta` is 0.5: it must be a number over 1",
    );
    refused(
        case,
        &json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
        "`rope_parameters.full_attention` is {\"rope_theta\":10000.0}: layers of this family share one \
         rotation",
    );
    refused(
        case,
        &json!({"partial_rotary_factor": 0.5}),
        "`partial_rotary_factor` is 0.5: partly rotated heads are not supported",
    );
    refused(
        case,
        &json!({"hidden_act": "gelu"}),
        "`hidden_act` is \"gelu\": only `silu` and `gelu_pytorch_tanh` are supported",
    );
    refused(
        case,
        &json!({"quantization_config": {"bits": 4}}),
        "`quantization_config` is set; only unquantised weights (bf16, f16, f32) can be served",
    );
}

#[test]
fn layers_that_are_not_understood_are_refused() {
    refused(
        "qwen3/tied",
        &json!({"layer_types": ["sliding_attention", "full_attention"]}),
        "`layer_types` is [\"sliding_attention\",\"full_attention\"]: its `sliding_attention` has no \
         sliding_window",
    );
    refused(
        "qwen2/windowed",
        &json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]}),
        "`layer_types` is [\"chunked_attention\",\"full_attention\",\"full_attention\"]: only a list of \
         `full_attention` and `sliding_attention` is supported",
    );
    refused(
        "qwen2/windowed",
        &json!({"layer_types": ["sliding_attention"]}),
        "`layer_types` is [\"sliding_attention\"]: it has not as many entries as there are layers",
    );
    refused(
        "mistral/windowed",
        &json!({"layer_types": ["full_attention"]}),
        "`layer_types` is [\"full_attention\"]: layers of this family are all alike",
    );
    refused("mistral/windowed", &json!({"sliding_window": 0}), "sliding_window is 0");
    refused(
        "gemma2/capped",
        &json!({"use_bidirectional_attention": true}),
        "`use_bidirectional_attention` is true: only attention to earlier tokens is supported",
    );
    refused(
        "gemma2/capped",
        &json!({"final_logit_softcapping": 0.0}),
        "a soft cap in it is not a positive number",
    );
    refused(
        "gemma2/capped",
        &json!({"query_pre_attn_scalar": -4}),
        "query_pre_attn_scalar is not a positive number",
    );
    refused(
        "gemma3/text",
        &json!({"attn_logit_softcapping": 50.0}),
        "`attn_logit_softcapping` is 50.0: transformers has it in Gemma 2 only",
    );
    refused(
        "gemma3/text",
        &json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        "`rope_parameters` is {\"rope_theta\":10000.0,\"rope_type\":\"default\"}: it must have \
         `full_attention` and `sliding_attention`, and nothing else",
    );
    refused("gemma3/image", &json!({"text_config": {}}), "`text_config.hidden_size` is missing");
    refused("gemma3/image", &json!({"text_config": 7}), "`text_config` is 7, not an object");
    refused(
        "llama/scaled",
        &json!({"hidden_size": 50}),
        "`hidden_size` is 50: it is no multiple of num_attention_heads, and there is no head_dim",
    );
}

/// What transformers 4 wrote and what 5 writes say the same.
#[test]
fn old_and_new_configurations_agree() {
    let scaling = json!({
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 0.5,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
    });
    let set = json!({"rope_parameters": scaling, "head_dim": 16});
    same("llama/scaled", &set, &["rope_theta", "rope_scaling"]);
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": 1024,
    });
    let types = ["full_attention", "sliding_attention", "sliding_attention"];
    let set = json!({"rope_parameters": yarn, "layer_types": types});
    same("qwen2/windowed", &set, &["rope_theta", "rope_scaling", "max_window_layers"]);
    let set = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}});
    same("mistral/windowed", &set, &["rope_theta"]);
    let types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    same("gemma2/capped", &json!({"layer_types": types, "tie_word_embeddings": true}), &[]);
    let set = json!({
        "rope_theta": 10_000.0, "rope_local_base_freq": 500.0, "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    });
    same("gemma3/text", &set, &["rope_parameters", "layer_types"]);
}

/// Fields that a `config.json` leaves out are as transformers' configuration classes have them.
#[test]
fn missing_fields_are_what_transformers_takes_them_for() {
    let without = |case: &str, removed: &[&str]| read(case, &json!({}), removed).unwrap();
    let llama =
        without("llama/scaled", &["num_key_value_heads", "tie_word_embeddings", "rms_norm_eps"]);
    assert_eq!((llama.kv_heads, llama.tie_embeddings, llama.rms_eps), (3, false, 1e-6));
    let plain = without("llama/scaled", &["rope_scaling", "rope_theta", "hidden_act"]);
    assert_eq!(plain.rope.inverse_frequencies[1], 0.316_227_76);
    assert_eq!(plain.activation, Activation::Silu);
    let mistral = without("mistral/windowed", &["sliding_window", "max_position_embeddings"]);
    assert_eq!(mistral.local.unwrap().window, 4096);
    assert_eq!(mistral.max_positions, 131_072);
    let mistral = read("mistral/windowed", &json!({"sliding_window": null}), &[]).unwrap();
    assert!(mistral.local.is_none());
    let qwen = without("qwen2/windowed", &["use_sliding_window"]);
    assert!(qwen.local.is_none());
    let qwen = without("qwen2/windowed", &["max_window_layers", "sliding_window"]);
    assert!(qwen.local.is_none());
    let gemma = without(
        "gemma2/capped",
        &[
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "hidden_activation",
            "sliding_window",
        ],
    );
    assert_eq!((gemma.attention_softcap, gemma.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma.activation, Activation::GeluTanh);
    assert_eq!(gemma.local.unwrap().window, 4096);
    let off = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
    let gemma = read("gemma2/capped", &off, &[]).unwrap();
    assert_eq!((gemma.attention_softcap, gemma.logit_softcap), (None, None));
    let gemma = without("gemma2/capped", &["query_pre_attn_scalar", "head_dim"]);
    assert_eq!((gemma.attention_scale, gemma.head_dim), (1.0 / 16.0, 256));
    let removed = [
        "rope_parameters",
        "layer_types",
        "sliding_window_pattern",
        "num_attention_heads",
        "vocab_size",
    ];
    let gemma = without("gemma3/text", &removed);
    assert_eq!((gemma.heads, gemma.vocab_size), (8, 262_208));
    let local = gemma.local.unwrap();
    assert_eq!((local.layers, local.rope.inverse_frequencies[4]), (vec![true; 4], 0.01));
    assert_eq!(gemma.rope.inverse_frequencies[4], 0.001);
}

/// A switch that is off leaves no trace in what journals keep; one that is on does.
#[test]
fn fingerprints_name_what_is_on() {
    let text = |case: &str| Golden::open(case).dir.config().fingerprint();
    assert_eq!(
        text("qwen3/tied"),
        "qwen3 heads 4 kv_heads 2 rms_eps 1e-2 embed_scale 1e0 attention_scale 2.5e-1 rope 1e0 1e0 \
         3.1622776e-1 1e-1 3.162278e-2 1e-2 3.1622779e-3 1e-3 3.162278e-4"
    );
    let gemma = text("gemma2/capped");
    let added = " norm_offset 1e0 gelu_tanh attention_softcap 2e0 logit_softcap 5e0 window 8 local_rope 1e0";
    assert!(gemma.contains(added), "{gemma}");
    assert!(gemma.ends_with(" local_layers [true, false, true, false]"), "{gemma}");
}
