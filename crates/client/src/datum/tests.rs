use proptest::prelude::*;
use prost::Message as _;
use serde::Deserialize;
use tinsmith_types::proto::provenance_span::Span;

use super::*;
use crate::{ClippedInputs, ModelInputChunk, PolicyInputs};

fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string().trim_start_matches("check the arguments: ").to_owned()
}

fn f32s<'a>(datum: &'a Datum, name: &str) -> &'a [f32] {
    datum.input(name).unwrap().as_f32().unwrap()
}

fn targets(datum: &Datum) -> &[i64] {
    datum.input(TARGETS).unwrap().as_i64().unwrap()
}

#[test]
fn completion_is_shifted_and_weighed() {
    let datum = Datum::completion(&[1, 2], &[3, 4]).unwrap();
    assert_eq!(datum, Datum::next_token(&[1, 2, 3], &[2, 3, 4], &[0.0, 1.0, 1.0]).unwrap());
    assert_eq!(datum.trained_tokens(), 2);
    assert_eq!(datum.estimated_bytes(), 3 * 4 + 3 * 8 + 3 * 4);
    let of = Datum::completion_of(&ModelInput::from([1, 2]), &[3, 4]).unwrap();
    assert_eq!(of.model_input().to_ints().unwrap(), [1, 2, 3]);
    assert_eq!((targets(&of), f32s(&of, "weights")), (&[0, 3, 4][..], &[0.0, 1.0, 1.0][..]));
    assert_eq!(Datum::text(&[1, 2, 3]).unwrap().trained_tokens(), 2);
}

#[test]
fn wrong_lengths_stay_here() {
    let message = Datum::next_token(&[1, 2], &[2], &[1.0, 1.0]).unwrap_err().to_string();
    assert_eq!(message, "check the arguments: target_tokens has 1 values for 2 tokens");
    assert!(Datum::completion(&[], &[1]).is_err());
    assert!(Datum::text(&[1]).is_err());
    assert_eq!(
        refused(Datum::policy(&[1], &[2], &[0.0], &[])),
        "there are 0 advantages for 1 tokens"
    );
    assert_eq!(refused(Datum::policy(&[1], &[2], &[], 1.0)), "there are 0 logprobs for 1 tokens");
    assert!(refused(Datum::distillation(&[1], &[2], &[])).contains("0 for 1"));
    assert!(refused(Datum::soft_targets(&[1], &[vec![]])).contains("a candidate"));
}

#[test]
fn what_was_sampled_has_advantages_and_what_was_read_has_none() {
    let datum = Datum::policy(&[1, 2], &[3, 4], &[-0.5, -0.25], 2.0).unwrap();
    assert_eq!(datum.model_input().to_ints().unwrap(), [1, 2, 3]);
    assert_eq!(targets(&datum), [2, 3, 4]);
    assert_eq!(f32s(&datum, "logprobs"), [0.0, -0.5, -0.25]);
    assert_eq!(f32s(&datum, "advantages"), [0.0, 2.0, 2.0]);
    let turns = Trajectory::new().observe(&[1]).act(&[2], &[-1.0], 0.0).unwrap();
    let turns = turns.observe(&[9, 9]).act(&[3], &[-2.0], &[5.0]).unwrap();
    let datum = turns.datum_with_mask().unwrap();
    assert_eq!(targets(&datum), [2, 9, 9, 3]);
    assert_eq!(f32s(&datum, "sequence_ratio_mask"), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(f32s(&datum, "logprobs"), [-1.0, 0.0, 0.0, -2.0]);
    assert!(refused(Trajectory::new().observe(&[1, 2]).datum()).contains("the policy drew"));
    let student = Datum::on_policy_distillation(&[1], &[2], &[-1.0], &[-3.0], 0.5).unwrap();
    assert_eq!(f32s(&student, "advantages"), [-1.0]);
}

#[test]
fn soft_targets_are_filled_up_and_sent_sparse() {
    let teacher = [vec![(5, 0.75), (6, 0.25)], vec![(7, 1.0)]];
    let datum = Datum::distillation(&[1; 9], &[5, 7], &teacher).unwrap();
    let weights = datum.input("weights").unwrap();
    assert!(weights.is_sparse() && datum.input(TARGETS).unwrap().is_sparse());
    assert_eq!(weights.shape(), [10, 2]);
    assert_eq!(weights.to_rows_f32(0).unwrap()[8..], [[0.75, 0.25], [1.0, 0.0]]);
    assert_eq!(datum.trained_tokens(), 3);
}

#[test]
fn provenance_tiles_both_sides() {
    let datum = Datum::recorded_policy("s-1", &[1, 2, 3], &[4, 5], 1.0).unwrap();
    assert_eq!(datum.input("logprobs"), None);
    assert!(refused(datum.clone().json()).contains("provenance cannot be sent"));
    let proto = datum.clone().into_proto().unwrap();
    let span = |span: &proto::ProvenanceSpan| match span.span.clone().unwrap() {
        Span::PromptTokens(span) => ("prompt", span.offset, span.length),
        Span::SampledTokens(span) => ("sampled", span.offset, span.length),
    };
    let spans = |spans: &[proto::ProvenanceSpan]| spans.iter().map(span).collect::<Vec<_>>();
    assert_eq!(spans(&proto.model_input_spans), [("prompt", 0, 3), ("sampled", 0, 1)]);
    assert_eq!(spans(&proto.loss_fn_input_spans), [("prompt", 1, 2), ("sampled", 0, 2)]);
    let (inputs, targets) = datum.provenance().unwrap();
    let (inputs, targets) = (inputs.to_vec(), targets.to_vec());
    let short = datum.clone().with_provenance(inputs[..1].to_vec(), targets.clone());
    assert_eq!(
        refused(short),
        "the provenance of model_input covers 3 of 4 tokens; its spans must tile them"
    );
    let nameless = vec![ProvenanceSpan::prompt("", 0, 4)];
    assert!(refused(datum.with_provenance(nameless, targets)).contains("no sequence_id"));
}

#[test]
fn everything_is_cut_alike() {
    let datum = Datum::recorded_policy("s", &[1, 2, 3], &[4, 5, 6], 1.0).unwrap();
    let end = datum.truncated(3, Keep::End).unwrap();
    assert_eq!(end.model_input().to_ints().unwrap(), [3, 4, 5]);
    assert_eq!(targets(&end), [4, 5, 6]);
    assert_eq!(f32s(&end, "advantages"), [1.0; 3]);
    let (inputs, of_targets) = end.provenance().unwrap();
    assert_eq!(inputs, [ProvenanceSpan::prompt("s", 2, 1), ProvenanceSpan::sampled("s", 0, 2)]);
    assert_eq!(of_targets, [ProvenanceSpan::sampled("s", 0, 3)]);
    let beginning = datum.truncated(2, Keep::Beginning).unwrap();
    assert_eq!(targets(&beginning), [2, 3]);
    assert_eq!(beginning.trained_tokens(), 0, "its answer is cut off");
    assert_eq!(datum.truncated(99, Keep::End).unwrap(), datum);
    let picture = ModelInputChunk::image(&b"\xff\xd8\xff"[..], Some(9)).unwrap();
    let datum = Datum::completion_of(&picture.into(), &[1]).unwrap();
    assert!(refused(datum.truncated(4, Keep::Beginning)).contains("nothing of a datum fits 4"));
}

#[test]
fn preferred_answers_have_even_places() {
    let pair = PreferencePair::new(&[1], &[2], &[3, 4]).unwrap();
    let datums = PreferencePair::interleaved(&[pair.clone(), pair.clone()]);
    assert_eq!(
        datums,
        [&pair.chosen, &pair.rejected, &pair.chosen, &pair.rejected].map(Datum::clone)
    );
    assert_eq!(PreferencePair::paired(vec![1, 2, 3, 4]).unwrap(), [(1, 2), (3, 4)]);
    assert!(PreferencePair::paired(vec![1]).is_err());
    let cut = pair.truncated(1, Keep::Beginning).unwrap();
    assert_eq!(
        (cut.chosen, cut.rejected),
        (pair.chosen, pair.rejected.truncated(1, Keep::Beginning).unwrap())
    );
}

/// What the official SDK makes of a datum.
#[derive(Deserialize)]
struct Golden {
    estimated_bytes: usize,
    protobuf: String,
}

#[test]
fn datums_are_those_of_the_official_sdk() {
    let golden = include_str!("../../tests/golden/datums/datums.json");
    let golden: BTreeMap<String, Golden> = serde_json::from_str(golden).unwrap();
    let policy = PolicyInputs {
        target_tokens: vec![2, 3, 4],
        logprobs: vec![0.0, -0.5, -0.25],
        advantages: vec![0.0, 2.0, -1.0],
    };
    let bounds = Some(vec![0.5, 0.75, 0.5]);
    let bounded = ClippedInputs { policy, clip_low_threshold: bounds, clip_high_threshold: None };
    let turns = Trajectory::new().observe(&[1]).act(&[2], &[-1.0], 0.5).unwrap().observe(&[9; 3]);
    let turns = turns.act(&[3], &[-2.0], 5.0).unwrap();
    let soft = [vec![(5, 0.75), (6, 0.25)], vec![(7, 0.5), (8, 0.5)]];
    let mut sparse = vec![Vec::new(); 8];
    sparse.extend([vec![(5, 0.75), (6, 0.25)], vec![(7, 1.0)]]);
    let picture = ModelInputChunk::image(&b"\x89PNG\r\n\x1a\nrest"[..], Some(3)).unwrap();
    let pictured = ModelInput::from([7]).append(picture);
    let cases = [
        ("supervised", Datum::completion(&[1, 2], &[3, 4])),
        ("policy", Datum::policy(&[1, 2], &[3, 4], &[-0.5, -0.25], 2.0)),
        ("bounded", Datum::new([1, 2, 3]).with_inputs(bounded)),
        ("masked", turns.datum_with_mask()),
        ("soft", Datum::soft_targets(&[1, 2], &soft)),
        ("sparse", Datum::soft_targets(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &sparse)),
        ("recorded", Datum::recorded_policy("s-1", &[1, 2, 3], &[4, 5], 1.0)),
        ("pictured", Datum::completion_of(&pictured, &[8, 9])),
    ];
    assert_eq!(cases.len(), golden.len());
    for (name, datum) in cases {
        let (datum, golden) = (datum.unwrap(), &golden[name]);
        let bytes: Vec<u8> = (golden.protobuf.as_bytes().chunks(2))
            .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(datum.estimated_bytes(), golden.estimated_bytes, "{name}");
        assert_eq!(datum.into_proto().unwrap(), proto::Datum::decode(&*bytes).unwrap(), "{name}");
    }
}

proptest! {
    /// Every target is the token after its own, and exactly the completion is learnt.
    #[test]
    fn targets_follow_their_tokens(
        prompt in prop::collection::vec(0..50_u32, 1..9),
        answer in prop::collection::vec(0..50_u32, 1..9),
        max in 1..20_usize,
    ) {
        let logprobs = vec![-1.0; answer.len()];
        let whole: Vec<u32> = [prompt.clone(), answer.clone()].concat();
        for datum in [
            Datum::completion(&prompt, &answer).unwrap(),
            Datum::policy(&prompt, &answer, &logprobs, 1.0).unwrap(),
            Datum::recorded_policy("s", &prompt, &answer, 1.0).unwrap(),
        ] {
            prop_assert_eq!(datum.model_input().to_ints().unwrap(), &whole[..whole.len() - 1]);
            let shifted: Vec<i64> = whole[1..].iter().map(|token| i64::from(*token)).collect();
            prop_assert_eq!(targets(&datum), shifted);
            prop_assert_eq!(datum.trained_tokens(), answer.len());
            for keep in [Keep::Beginning, Keep::End] {
                let cut = datum.truncated(max, keep).unwrap();
                let length = cut.model_input().length().unwrap();
                prop_assert_eq!(length, max.min(whole.len() - 1));
                prop_assert!(cut.loss_fn_inputs().values().all(|tensor| tensor.shape()[0] == length));
                let covered = |spans: &[ProvenanceSpan]| {
                    spans.iter().map(|span| span.length).sum::<usize>() == length
                };
                prop_assert!(cut.provenance().is_none_or(|(a, b)| covered(a) && covered(b)));
                prop_assert!(cut.into_proto().is_ok());
            }
        }
    }
}
