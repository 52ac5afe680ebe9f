use proptest::prelude::*;

use super::{
    table::{NAMES, SPECS},
    *,
};
use crate::{Datum, Result, TensorData};

fn refused(result: Result<()>) -> String {
    result.unwrap_err().to_string().trim_start_matches("check the arguments: ").to_owned()
}

fn policy() -> Datum {
    Datum::policy(&[1, 2], &[3, 4], &[-0.5, -0.5], 1.0).unwrap()
}

/// A datum that the loss takes.
fn good(loss: &LossFn) -> Datum {
    match loss {
        LossFn::CrossEntropy | LossFn::Custom | LossFn::Other(_) => {
            Datum::completion(&[1, 2], &[3, 4]).unwrap()
        }
        LossFn::StableReinforce => Datum::recorded_policy("s", &[1, 2], &[3, 4], 1.0).unwrap(),
        LossFn::ImportanceSampling | LossFn::Ppo | LossFn::Cispo | LossFn::Dro | LossFn::Gspo => {
            policy()
        }
    }
}

fn loss(function: &LossFn) -> Loss {
    if *function == LossFn::Custom {
        return Loss::custom_by_id("l-1", vec![]);
    }
    function.clone().into()
}

#[test]
fn good_batches_pass() {
    for spec in &SPECS {
        let datum = good(&spec.name);
        loss(&spec.name).check(&[datum.clone(), datum]).unwrap();
    }
    Loss::from("of the future").check(&[Datum::new([1])]).unwrap();
    let soft = Datum::distillation(&[1; 9], &[5, 7], &[vec![(5, 1.0)], vec![(7, 0.5), (8, 0.5)]]);
    Loss::cross_entropy().check(&[soft.unwrap()]).unwrap();
    Loss::cross_entropy().check(&[policy()]).unwrap();
}

#[test]
fn names_are_those_of_the_wire() {
    for spec in &SPECS {
        assert_eq!(LossFn::from(spec.name.as_str()), spec.name);
    }
    assert_eq!(LossFn::from("x".to_owned()), LossFn::Other("x".to_owned()));
    assert_eq!(Loss::from("x").name(), "x");
    for spec in &SPECS {
        let read = spec.required.iter().chain(spec.optional);
        assert!(read.into_iter().all(|name| NAMES.contains(name)), "{}", spec.name);
    }
}

#[test]
fn unset_settings_are_the_servers() {
    for settings in [
        Loss::ppo().into(),
        Loss::cispo().into(),
        Loss::dro().into(),
        Loss::gspo().into(),
        Loss::from(Loss::stable_reinforce()),
    ] {
        assert!(settings.config().is_empty(), "{settings:?}");
    }
    let number = |number| LossConfigValue::Number(number);
    let ppo = Loss::from(Loss::ppo().clip(0.9, 1.1));
    assert_eq!(ppo.config()["clip_low_threshold"], number(0.9));
    assert_eq!(ppo.config()["clip_high_threshold"], number(1.1));
    assert_eq!(Loss::from(Loss::dro().beta(0.5)).config()["beta"], number(0.5));
    let stable = Loss::from(Loss::stable_reinforce().kl_coeff(0.1).clip_high(3.0));
    assert_eq!(stable.config()["kl_coeff"], number(0.1));
    assert_eq!(stable.config()["clip_high_threshold"], number(3.0));
}

/// The table of `docs/losses.md` is what the server's own tests hold it to.
#[test]
fn inputs_and_defaults_are_the_documented_ones() {
    let docs = include_str!("../../../../docs/losses.md");
    for spec in SPECS.iter().filter(|spec| spec.name != LossFn::Custom) {
        let begins = format!("| `{}` |", spec.name);
        let line = docs.lines().find(|line| line.starts_with(&begins)).unwrap();
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let defaults: Vec<String> = (spec.settings.iter())
            .map(|(name, default)| {
                if *name == "kl_coeff" {
                    format!("`{name}` (kl) {default}")
                } else {
                    format!("`{name}` {default}")
                }
            })
            .collect();
        assert_eq!(cells[3].trim(), defaults.join(", "), "{}", spec.name);
        let says_the_same = cells[2].starts_with("the same");
        for name in spec.required.iter().filter(|_| !says_the_same) {
            assert!(cells[2].contains(&format!("`{name}`")), "{}: {name}", spec.name);
        }
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let check = |loss: Loss, datum: Datum, expected: &str| {
        assert_eq!(refused(loss.check(&[good(loss.function()), datum])), expected);
    };
    let ppo = || Loss::from("ppo");
    check(
        ppo(),
        policy().without_input("advantages"),
        "data[1].loss_fn_inputs.advantages is missing; the loss ppo needs it. The datum has: logprobs, \
         target_tokens",
    );
    check(
        ppo(),
        policy().with_input("advantages", vec![1.0_f32]),
        "data[1].loss_fn_inputs.advantages has the shape [1]; expected is [3], that of target_tokens",
    );
    check(
        ppo(),
        policy().with_input("advantages", vec![1_i64; 3]),
        "data[1].loss_fn_inputs.advantages is int64; expected is float32",
    );
    check(
        ppo(),
        policy().with_input("logprobs", vec![0.0, f32::NAN, 0.0]),
        "data[1].loss_fn_inputs.logprobs[1] is NaN; expected is a finite number",
    );
    check(
        ppo(),
        policy().with_input("target_tokens", vec![1_i64, 2]),
        "data[1].loss_fn_inputs.target_tokens has the shape [2]; expected is [3], as model_input has 3 tokens",
    );
    check(
        ppo(),
        policy().with_input("advantage", vec![1.0_f32; 3]),
        "data[1].loss_fn_inputs.advantage is not read by the loss ppo (is it advantages?); it reads: \
         target_tokens, logprobs, advantages, clip_low_threshold, clip_high_threshold",
    );
    check(
        Loss::cross_entropy(),
        Datum::new([1, 2]).with_input("target_tokens", vec![1.0_f32, 2.0]),
        "data[1].loss_fn_inputs.target_tokens is float32; expected is int64, token ids",
    );
    check(
        Loss::cross_entropy(),
        Datum::new([1, 2]).with_input("target_tokens", vec![-1_i64, 2]),
        "data[1].loss_fn_inputs.target_tokens[0] is -1; expected is a token id",
    );
    check(
        Loss::cross_entropy(),
        Datum::new([1, 2]),
        "data[1].loss_fn_inputs.target_tokens is missing; the loss cross_entropy needs it. The datum has: none",
    );
    check(Loss::cross_entropy(), Datum::new([]), "data[1].model_input has no tokens");
    check(
        Loss::from("stable_reinforce"),
        policy(),
        "data[1] has no provenance; the loss stable_reinforce needs it: Datum::with_provenance says where \
         tokens come from",
    );
    assert_eq!(refused(ppo().check(&[])), "data is empty: a batch needs at least one datum");
}

#[test]
fn bounds_and_masks_make_sense() {
    let check = |loss: &str, datum: Datum, expected: &str| {
        let message = refused(Loss::from(loss).check(&[datum]));
        assert!(message.contains(expected), "{message}");
    };
    let with = |name: &str, values: [f32; 3]| policy().with_input(name, &values[..]);
    let crossed = with("clip_low_threshold", [0.5, 1.5, 0.5])
        .with_input("clip_high_threshold", vec![1.0_f32; 3]);
    check("cispo", crossed, "clip_low_threshold[1] is 1.5, above clip_high_threshold[1]");
    check("gspo", with("sequence_ratio_mask", [0.0, -1.0, 0.0]), "[1] is -1; expected are numbers");
    check("gspo", with("sequence_ratio_mask", [0.0; 3]), "is 0 everywhere");
}

#[test]
fn settings_of_another_loss_stay_here() {
    let check = |loss: Loss, expected: &str| {
        assert_eq!(refused(loss.check(&[good(loss.function())])), expected);
    };
    check(
        Loss::from("ppo").with_setting("beta", 1.0),
        "beta is no setting of the loss ppo; it has: clip_low_threshold, clip_high_threshold",
    );
    check(
        Loss::cross_entropy().with_setting("beta", 1.0),
        "beta is no setting of the loss cross_entropy; it has: none",
    );
    check(Loss::dro().beta(f64::NAN).into(), "beta of the loss dro is NaN");
    check(
        Loss::from("dro").with_text("beta", "much"),
        "beta of the loss dro is \"much\"; a number is expected",
    );
    check(
        Loss::ppo().clip(1.2, 0.8).into(),
        "clip_low_threshold is 1.2, above clip_high_threshold, which is 0.8",
    );
    check(
        Loss::new(LossFn::Custom),
        "the loss custom has one setting, loss_id: create the loss first",
    );
}

#[test]
fn custom_losses_say_what_they_read() {
    let inputs = vec![CustomInput { name: "reward".to_owned(), rank: 0 }];
    let loss = Loss::custom_by_id("l-1", inputs);
    let datum = good(&LossFn::Custom);
    assert!(refused(loss.check(std::slice::from_ref(&datum))).contains("reward is missing"));
    let flat = datum.clone().with_input("reward", vec![1.0_f32]);
    assert_eq!(
        refused(loss.check(&[flat])),
        "data[0].loss_fn_inputs.reward has the shape [1]; expected are 0 dimensions"
    );
    let scalar = TensorData::new(tinsmith_types::tensor::Values::Float32(vec![1.0]), []).unwrap();
    loss.check(&[datum.with_input("reward", scalar)]).unwrap();
}

#[test]
fn typed_inputs_make_what_the_loss_reads() {
    let policy = PolicyInputs {
        target_tokens: vec![2, 3],
        logprobs: vec![-1.0; 2],
        advantages: vec![1.0; 2],
    };
    let clipped = ClippedInputs {
        policy: policy.clone(),
        clip_low_threshold: Some(vec![0.5; 2]),
        clip_high_threshold: None,
    };
    let gspo = GspoInputs { clipped: clipped.clone(), sequence_ratio_mask: Some(vec![1.0; 2]) };
    let datum = Datum::new([1, 2]);
    for (loss, inputs) in [
        ("importance_sampling", LossInputs::from(policy.clone())),
        ("ppo", clipped.into()),
        ("gspo", gspo.into()),
        ("cross_entropy", CrossEntropyInputs { target_tokens: vec![2, 3], weights: None }.into()),
        (
            "cross_entropy",
            SoftTargetInputs {
                target_tokens: TensorData::from_rows_i64(&[vec![1, 2], vec![3, 4]]).unwrap(),
                weights: None,
            }
            .into(),
        ),
    ] {
        let datum = datum.clone().with_inputs(inputs).unwrap();
        Loss::from(loss).check(&[datum]).unwrap();
    }
    let long = PolicyInputs { advantages: vec![1.0; 3], ..policy };
    let message = datum.with_inputs(long).unwrap_err().to_string();
    assert_eq!(message, "check the arguments: advantages has the shape [3] for 2 tokens");
}

proptest! {
    /// Whatever is done to one array of a good datum, the check names that array.
    #[test]
    fn any_wrong_array_is_named(
        spec in 0..SPECS.len() - 1,
        which in 0..8_usize,
        damage in 0..3_usize,
        length in 0..7_usize,
    ) {
        let spec = &SPECS[spec];
        let reads: Vec<&str> = [&["target_tokens"], spec.required].concat();
        let name = reads[which % reads.len()];
        let datum = good(&spec.name);
        let is_targets = name == "target_tokens";
        let damaged = match damage {
            0 => datum.without_input(name),
            // The wrong type.
            1 if is_targets => datum.with_input(name, vec![1.0_f32; 3]),
            1 => datum.with_input(name, vec![1_i64; 3]),
            // The wrong length.
            _ if is_targets => datum.with_input(name, vec![1_i64; if length == 3 { 9 } else { length }]),
            _ => datum.with_input(name, vec![1.0_f32; if length == 3 { 9 } else { length }]),
        };
        let message = refused(loss(&spec.name).check(&[good(&spec.name), damaged]));
        prop_assert!(message.starts_with(&format!("data[1].loss_fn_inputs.{name}")), "{}", message);
    }
}
