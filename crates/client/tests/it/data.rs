//! Datums and tokenizers, as the clients use them.

use std::sync::Arc;

use tinsmith::{
    AdamParams, Datum, Error, LoraOptions, Loss, ServiceClient, TrainingClient, testing::MockServer,
};

/// The mock server's models have their tokenizer where their name says.
const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano");

fn start() -> (MockServer, ServiceClient, TrainingClient) {
    let server = MockServer::start().unwrap();
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client(LoraOptions::new(NANO)).wait().unwrap();
    (server, service, training)
}

#[test]
fn datums_that_a_loss_does_not_read_do_not_leave_the_client() {
    let (server, _service, training) = start();
    let good = || Datum::completion(&[1, 2], &[3]).unwrap();
    let bad = [
        (good().with_input("weight", vec![1.0_f32; 2]), Loss::cross_entropy()),
        (good().with_input("weights", vec![1.0_f32; 3]), Loss::cross_entropy()),
        (good().with_input("weights", vec![1_i64; 2]), Loss::cross_entropy()),
        (good(), Loss::from("ppo")),
        (good(), Loss::cross_entropy().with_setting("beta", 1.0)),
    ];
    for (datum, loss) in bad {
        let error = training.forward_backward(vec![good(), datum], loss).wait().unwrap_err();
        assert!(matches!(error, Error::Validation { .. }), "{error}");
    }
    assert!(training.forward(vec![], "cross_entropy").wait().is_err());
    // The run goes on: nothing was numbered, or what was is given up.
    let good = training.forward_backward(vec![good()], "cross_entropy");
    let step = training.optim_step(AdamParams::default());
    assert_eq!(good.wait().unwrap().logprobs(0).unwrap().len(), 2);
    step.wait().unwrap();
    assert_eq!(server.seen("forward_backward").len(), 1);
}

#[test]
fn clients_know_their_tokenizer() {
    let (_server, service, training) = start();
    let tokenizer = training.get_tokenizer().wait().unwrap();
    let tokens = training.encode("Tin, 世界.").wait().unwrap();
    assert_eq!(tokens, tokenizer.encode("Tin, 世界.", true).unwrap());
    assert_eq!(training.decode(tokens).wait().unwrap(), "Tin, 世界.");
    let sampler = service.create_sampling_client(NANO).wait().unwrap();
    let same = sampler.get_tokenizer().wait().unwrap();
    assert!(Arc::ptr_eq(&tokenizer, &same), "read once in a session");
    let other = service.create_lora_training_client(LoraOptions::new("nowhere")).wait().unwrap();
    let error = other.get_tokenizer().wait().unwrap_err().to_string();
    assert!(error.contains("no directory nowhere"), "{error}");
}
