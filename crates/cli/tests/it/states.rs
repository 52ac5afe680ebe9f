//! Checkpoints through the SDK: what comes back with the optimizer, and what without.

use tinsmith::{
    AdamParams, Config, Datum, FromStateOptions, LoraOptions, ServiceClient, TrainingClient,
};

use crate::server::Server;

/// One step, and the logprobs of the datum after it.
fn step(training: &TrainingClient) -> Vec<f32> {
    let datum = || vec![Datum::completion(&[10, 20, 30], &[40, 50]).unwrap()];
    let passed = training.forward_backward(datum(), "cross_entropy");
    let adam = AdamParams { learning_rate: 1e-2, ..AdamParams::default() };
    training.optim_step(adam).wait().unwrap();
    passed.wait().unwrap();
    training.forward(datum(), "cross_entropy").wait().unwrap().logprobs(0).unwrap()
}

#[test]
fn the_optimizer_comes_back_where_it_is_asked_for() {
    let server = Server::start();
    let config = Config::builder().base_url(server.url()).api_key("tml-test").build().unwrap();
    let service = ServiceClient::connect_blocking(config).unwrap();
    let options = LoraOptions::new("Qwen/Qwen3-8B").rank(4).seed(1);
    let training = service.create_lora_training_client(options.clone()).wait().unwrap();
    step(&training);
    step(&training);
    let path = training.save_state("two-steps").wait().unwrap().path;
    let went_on = step(&training);

    let whole = service.create_training_client_from_state_with_optimizer(path.as_str());
    let whole = whole.wait().unwrap();
    assert_eq!(whole.lora_rank(), Some(4), "the checkpoint knows its shape");
    assert_eq!(step(&whole), went_on, "momentum and variance are those of the run");
    let weights =
        service.create_training_client_from_state_with(path.as_str(), FromStateOptions::new());
    assert_ne!(step(&weights.wait().unwrap()), went_on, "the optimizer began afresh");

    // Into a run that is there.
    let other = service.create_lora_training_client(options).wait().unwrap();
    step(&other);
    other.load_state_with_optimizer(path.as_str()).wait().unwrap();
    assert_eq!(step(&other), went_on);
    other.load_state(path.as_str()).wait().unwrap();
    assert_ne!(step(&other), went_on);

    // Weights to sample from are no state to train on from.
    let sampler = training.save_weights_for_sampler("to-sample").wait().unwrap().path.unwrap();
    let error = training.load_state_with_optimizer(sampler.as_str()).wait().unwrap_err();
    assert!(error.is_user(), "{error}");
}
