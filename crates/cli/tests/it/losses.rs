//! What the SDK takes for good the server does too: every loss, its defaults, and conversations.

use std::path::Path;

use tinsmith::{
    ClippedInputs, Config, Conversation, Datum, ForwardBackwardOutput, GspoInputs, LoraOptions,
    Loss, PolicyInputs, ServiceClient, TrainOn, TrainingClient, load_tokenizer,
};

use crate::server::Server;

fn training(server: &Server) -> TrainingClient {
    let config = Config::builder().base_url(server.url()).api_key("tml-test").build().unwrap();
    let service = ServiceClient::connect_blocking(config).unwrap();
    let options = LoraOptions::new("Qwen/Qwen3-8B").rank(4).seed(1);
    service.create_lora_training_client(options).wait().unwrap()
}

/// Far enough from the sampler for every bound to be passed.
fn policy() -> PolicyInputs {
    PolicyInputs {
        target_tokens: vec![20, 30, 40, 50],
        logprobs: vec![-9.0, -0.01, -3.0, -12.0],
        advantages: vec![1.0, -1.0, 0.5, 2.0],
    }
}

fn datum() -> Datum {
    Datum::new([10, 20, 30, 40]).with_inputs(policy()).unwrap()
}

fn forward(training: &TrainingClient, datum: Datum, loss: Loss) -> ForwardBackwardOutput {
    training.forward(vec![datum], loss).wait().unwrap()
}

#[test]
fn what_the_sdk_takes_for_good_the_server_does_too() {
    let server = Server::start();
    let training = training(&server);
    let defaults_are_the_servers = |unset: Loss, set: Loss, other: Loss| {
        let [unset, set, other] =
            [unset, set, other].map(|loss| forward(&training, datum(), loss).loss().unwrap());
        assert_eq!(unset.to_bits(), set.to_bits());
        assert_ne!(unset.to_bits(), other.to_bits(), "the setting is of no effect");
    };
    defaults_are_the_servers(
        Loss::ppo().into(),
        Loss::ppo().clip(0.8, 1.2).into(),
        Loss::ppo().clip(0.5, 2.0).into(),
    );
    defaults_are_the_servers(
        Loss::cispo().into(),
        Loss::cispo().clip(0.0, 4.0).into(),
        Loss::cispo().clip(0.5, 2.0).into(),
    );
    defaults_are_the_servers(
        Loss::gspo().into(),
        Loss::gspo().clip(0.9997, 1.0004).into(),
        Loss::gspo().clip(0.1, 0.2).into(),
    );
    defaults_are_the_servers(
        Loss::dro().into(),
        Loss::dro().beta(0.05).into(),
        Loss::dro().beta(0.5).into(),
    );

    let bounds = |bound| Some(vec![bound; 4]);
    let clipped = ClippedInputs {
        policy: policy(),
        clip_low_threshold: bounds(0.5),
        clip_high_threshold: bounds(2.0),
    };
    let gspo = GspoInputs { clipped: clipped.clone(), sequence_ratio_mask: bounds(1.0) };
    let bounded = Datum::new([10, 20, 30, 40]).with_inputs(clipped).unwrap();
    let of_tokens = forward(&training, bounded, Loss::from("ppo")).loss();
    assert_eq!(of_tokens, forward(&training, datum(), Loss::ppo().clip(0.5, 2.0).into()).loss());
    let masked = Datum::new([10, 20, 30, 40]).with_inputs(gspo).unwrap();
    assert!(forward(&training, masked, Loss::from("gspo")).loss().is_some());
    assert!(forward(&training, datum(), Loss::importance_sampling()).loss().is_some());

    let teacher = [vec![(30, 0.75), (31, 0.25)], vec![(40, 1.0)]];
    let soft = Datum::distillation(&[10, 11, 12, 13, 14, 15, 16, 17, 20], &[30, 40], &teacher);
    let soft = forward(&training, soft.unwrap(), Loss::cross_entropy());
    assert_eq!(soft.outputs[0]["logprobs"].shape(), [10, 2]);
}

#[test]
fn conversations_are_learnt() {
    let server = Server::start();
    let training = training(&server);
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let tokenizer = load_tokenizer(&nano.display().to_string()).unwrap();
    let question = Conversation::new().user("What is tin?");
    let datum = question.assistant("A metal.").datum(&tokenizer, TrainOn::default()).unwrap();
    let learnt = datum.trained_tokens();
    let adam = tinsmith::AdamParams { learning_rate: 1e-2, ..Default::default() };
    let losses: Vec<f64> = (0..4)
        .map(|_| {
            let result = training.forward_backward(vec![datum.clone()], "cross_entropy");
            let step = training.optim_step(adam);
            step.wait().unwrap();
            let result = result.wait().unwrap();
            assert_eq!(result.metrics["tokens:sum"], learnt as f64);
            result.loss().unwrap()
        })
        .collect();
    assert!(losses[3] < losses[0] / 2.0, "{losses:?}");
}
