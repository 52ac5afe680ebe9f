use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// The model that ships, and a template that writes thoughts into the last answer alone.
fn tokenizer(name: &str) -> Tokenizer {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    if name == "nano" {
        return Tokenizer::open(&nano).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(nano.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), template(name)).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

fn template(name: &str) -> &'static str {
    match name {
        "thinking" => {
            "{%- for message in messages -%}<|im_start|>{{ message.role }}\n\
             {%- if message.role == 'assistant' and loop.last -%}<think>\n\n</think>\n\n{%- endif -%}\
             {{ message.content }}<|im_end|>\n{% endfor -%}\
             {%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
        }
        "calls" => {
            "{%- for message in messages -%}<|im_start|>{{ message.role }} {{ message.content or '' }}\
             {%- for call in message.tool_calls or [] -%}[{{ call.name }}]{%- endfor -%}<|im_end|>\n{% endfor -%}\
             {%- if add_generation_prompt -%}<|im_start|>assistant {% endif -%}"
        }
        // The model begins to speak in the middle of what is otherwise one token.
        _ => {
            "{%- for message in messages -%}{{ message.role }}: {{ message.content }}<|im_end|>{%- endfor -%}\
             {%- if add_generation_prompt -%}assistant: {% endif -%}"
        }
    }
}

fn conversation() -> Conversation {
    Conversation::new()
        .system("Be kind.")
        .user("Tin?")
        .assistant("Tin.")
        .user("More tin?")
        .assistant("More, and more.")
}

/// The texts that are learnt.
fn learnt(tokenizer: &Tokenizer, conversation: &Conversation, train_on: TrainOn) -> Vec<String> {
    let datum = conversation.datum(tokenizer, train_on).unwrap();
    let targets = datum.input("target_tokens").unwrap().as_i64().unwrap();
    let weights = datum.input("weights").unwrap().as_f32().unwrap();
    let pairs: Vec<(u32, bool)> = (targets.iter().zip(weights))
        .map(|(token, weight)| (u32::try_from(*token).unwrap(), *weight > 0.0))
        .collect();
    let runs = pairs.chunk_by(|one, other| one.1 == other.1).filter(|run| run[0].1);
    runs.map(|run| {
        let tokens: Vec<u32> = run.iter().map(|(token, _)| *token).collect();
        tokenizer.decode(&tokens).unwrap()
    })
    .collect()
}

#[test]
fn each_mode_learns_its_part() {
    let tokenizer = tokenizer("nano");
    let learnt = |mode: &str| learnt(&tokenizer, &conversation(), mode.parse().unwrap());
    assert_eq!(learnt("last_assistant_message"), ["More, and more.<|im_end|>"]);
    assert_eq!(learnt("last_assistant_turn"), ["More, and more.<|im_end|>"]);
    assert_eq!(learnt("all_assistant_messages"), ["Tin.<|im_end|>", "More, and more.<|im_end|>"]);
    assert_eq!(
        learnt("all_user_and_system_messages"),
        ["Be kind.<|im_end|>", "Tin?<|im_end|>", "More tin?<|im_end|>"]
    );
    assert_eq!(learnt("all_messages").len(), 5);
    let all = learnt("all_tokens");
    assert_eq!(all.len(), 1);
    assert!(all[0].starts_with("system\nBe kind.") && all[0].ends_with("<|im_end|>\n"), "{all:?}");
    let message = "most".parse::<TrainOn>().unwrap_err().to_string();
    assert!(
        message.contains("\"most\" is nothing to train on; there are: last_assistant"),
        "{message}"
    );
}

#[test]
fn messages_can_be_chosen_one_by_one() {
    let tokenizer = tokenizer("nano");
    let read = |json: &str| Conversation::from_values(serde_json::from_str(json).unwrap()).unwrap();
    let chosen = read(
        r#"[{"role": "user", "content": "a", "trainable": false},
            {"role": "assistant", "content": "b", "trainable": true},
            {"role": "user", "content": "c", "trainable": true},
            {"role": "assistant", "content": "d"}]"#,
    );
    assert_eq!(learnt(&tokenizer, &chosen, TrainOn::Customized), ["b<|im_end|>", "c<|im_end|>"]);
    let none = conversation().datum(&tokenizer, TrainOn::Customized).unwrap_err().to_string();
    assert_eq!(none, "check the arguments: a conversation has nothing to learn of its customized");
    let nobody = Conversation::from_values(serde_json::from_str(r#"[{"content": "a"}]"#).unwrap());
    assert!(nobody.unwrap_err().to_string().contains("message 0 has no `role`"));
}

#[test]
fn calls_of_tools_are_learnt_with_the_answer() {
    let tokenizer = tokenizer("calls");
    let calls = r#"[{"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"name": "look"}]},
        {"role": "tool", "content": "it"}, {"role": "assistant", "content": "seen"}]"#;
    let calls = Conversation::from_values(serde_json::from_str(calls).unwrap()).unwrap();
    let turn = learnt(&tokenizer, &calls, TrainOn::LastAssistantTurn);
    assert_eq!(turn, ["[look]<|im_end|>", "seen<|im_end|>"]);
    assert_eq!(learnt(&tokenizer, &calls, TrainOn::LastAssistantMessage), ["seen<|im_end|>"]);
}

/// What the sampler is given before the message `index`, and the datum that trains on it.
fn is_prefix(tokenizer: &Tokenizer, conversation: &Conversation, index: usize) -> bool {
    let before = Conversation::from_values(conversation.messages()[..index].to_vec()).unwrap();
    let until = Conversation::from_values(conversation.messages()[..=index].to_vec()).unwrap();
    let prompt = before.prompt(tokenizer).unwrap().to_ints().unwrap();
    let datum = until.datum(tokenizer, TrainOn::LastAssistantMessage).unwrap();
    let read = datum.model_input().to_ints().unwrap();
    let weights = datum.input("weights").unwrap().as_f32().unwrap();
    // The last token of the prompt predicts the first one that is learnt.
    read.starts_with(&prompt)
        && weights[..prompt.len() - 1].iter().all(|weight| *weight == 0.0)
        && weights[prompt.len() - 1] == 1.0
}

#[test]
fn the_trainer_is_given_what_the_sampler_was_given() {
    for name in ["nano", "thinking", "blank"] {
        let tokenizer = tokenizer(name);
        for index in [2, 4] {
            assert!(is_prefix(&tokenizer, &conversation(), index), "{name} {index}");
        }
        let datums = conversation().datums(&tokenizer).unwrap();
        assert_eq!(datums.len(), 2, "{name}");
    }
}

#[test]
fn a_sampled_answer_joins_the_conversation() {
    let tokenizer = tokenizer("nano");
    let question = Conversation::new().user("Tin?");
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(Conversation::stop(&tokenizer).unwrap(), Stop::Tokens(vec![end.cast_signed()]));
    let mut tokens = tokenizer.encode("Tin.", false).unwrap();
    tokens.push(end);
    let answered = question.clone().answered(&tokenizer, &tokens).unwrap();
    let datum = answered.datum(&tokenizer, TrainOn::default()).unwrap();
    let prompt = question.prompt(&tokenizer).unwrap().to_ints().unwrap();
    let whole = [prompt.clone(), tokens.clone()].concat();
    assert!(datum.model_input().to_ints().unwrap().starts_with(&whole));
    let pair = question.preference(&tokenizer, "Tin.", "No.").unwrap();
    assert_eq!(pair.chosen, datum);
    assert_eq!(pair.rejected.model_input().to_ints().unwrap()[..prompt.len()], prompt);
}

#[test]
fn a_model_without_template_says_what_to_add() {
    let nano = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/nano/tokenizer.json");
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(nano).unwrap()).unwrap();
    let message = conversation().prompt(&tokenizer).unwrap_err().to_string();
    assert!(message.contains("add one of them"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is said: the datum begins with the prompt, token for token.
    #[test]
    fn parity_holds_for_any_text(
        question in "[ -~\n]{0,12}",
        answer in "[ -~\n]{1,12}",
        more in "[ -~\n世é]{1,12}",
        template in prop::sample::select(vec!["nano", "thinking", "blank"]),
    ) {
        let tokenizer = tokenizer(template);
        let conversation =
            Conversation::new().user(question.as_str()).assistant(answer).user(question).assistant(more);
        prop_assert!(is_prefix(&tokenizer, &conversation, 1));
        prop_assert!(is_prefix(&tokenizer, &conversation, 3));
    }
}
