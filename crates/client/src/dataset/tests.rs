use std::path::PathBuf;

use proptest::prelude::*;
use tinsmith_tokenizer::Tokenizer;

use super::*;
use crate::{Datum, Keep, PreferencePair};

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/nano")).unwrap()
}

fn read(lines: &str) -> Result<Dataset<Row>> {
    Dataset::read(lines.as_bytes(), "rows.jsonl")
}

fn learnt(tokenizer: &Tokenizer, datum: &Datum) -> String {
    let targets = datum.input("target_tokens").unwrap().as_i64().unwrap();
    let weights = datum.input("weights").unwrap().as_f32().unwrap();
    let learnt = targets.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
    let tokens: Vec<u32> = learnt.map(|(token, _)| u32::try_from(*token).unwrap()).collect();
    tokenizer.decode(&tokens).unwrap()
}

const ROWS: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 7}

{"prompt": "c d", "completion": " e"}
{"prompt": [{"role": "user", "content": "f"}], "completion": "g"}
{"prompt": [{"role": "user", "content": "h"}], "completion": [{"role": "assistant", "content": "i"}]}
{"text": "j k"}
"#;

#[test]
fn rows_of_every_kind_become_datums() {
    let (tokenizer, rows) = (tokenizer(), read(ROWS).unwrap());
    let datums = rows.try_map(|row| row.datum(&tokenizer, &DatumOptions::default())).unwrap();
    let learnt: Vec<String> = datums.rows().iter().map(|datum| learnt(&tokenizer, datum)).collect();
    // The first token of a text is predicted by nothing.
    let first = tokenizer.encode("j k", true).unwrap()[0];
    let rest = "j k".strip_prefix(tokenizer.decode(&[first]).unwrap().as_str()).unwrap().to_owned();
    assert_eq!(
        learnt,
        ["b<|im_end|>", " e<|im_end|>", "g<|im_end|>", "i<|im_end|>", &format!("{rest}<|im_end|>")]
    );
}

#[test]
fn preferences_become_pairs() {
    let rows = read(
        r#"{"prompt": "a", "chosen": " b", "rejected": " c"}
{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}]}
{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
 "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}"#
            .replace(",\n ", ", ")
            .as_str(),
    )
    .unwrap();
    let (tokenizer, options) = (tokenizer(), DatumOptions::default());
    let pairs = rows.try_map(|row| row.pair(&tokenizer, &options)).unwrap();
    let texts = |pair: &PreferencePair| {
        [&pair.chosen, &pair.rejected].map(|datum| learnt(&tokenizer, datum))
    };
    assert_eq!(texts(&pairs.rows()[0]), [" b<|im_end|>", " c<|im_end|>"]);
    assert_eq!(texts(&pairs.rows()[1]), ["b<|im_end|>", "c<|im_end|>"]);
    assert_eq!(pairs.rows()[1], pairs.rows()[2], "said in two ways");
    let message = rows.try_map(|row| row.datum(&tokenizer, &options)).unwrap_err().to_string();
    assert!(
        message.contains("row 1 of 3: a row with `chosen` and `rejected` is a pair"),
        "{message}"
    );
    assert!(read(ROWS).unwrap().rows()[0].pair(&tokenizer, &options).is_err());
}

#[test]
fn faulty_lines_are_named() {
    let check = |lines: &str, expected: &str| {
        let message = read(lines).unwrap_err().to_string();
        assert_eq!(message, format!("check the arguments: rows.jsonl {expected}"));
    };
    let good = r#"{"text": "a"}"#;
    check(&format!("{good}\n\n{{\"text\": }}"), "line 3: column 10: expected value");
    check(
        r#"{"question": "a"}"#,
        "line 1: has none of `messages`, `prompt` with `completion`, `prompt` with `chosen` and `rejected`, and \
         `text`",
    );
    check(
        r#"{"prompt": "a"}"#,
        "line 1: has a `prompt`, and neither a `completion` nor `chosen` and `rejected`",
    );
    check(
        r#"{"messages": [{"content": "a"}]}"#,
        "line 1: message 0 has no `role`; expected is an object with `role` and `content`",
    );
    check(r#"{"messages": []}"#, "line 1: a conversation has no messages");
    check(
        r#"{"prompt": 5, "completion": "a"}"#,
        "line 1: column 12: expected a text or a list of messages",
    );
    check("", "has no rows");
    let message = Dataset::open("/nowhere/rows.jsonl").unwrap_err().to_string();
    assert!(message.contains("open /nowhere/rows.jsonl: No such file"), "{message}");
}

#[test]
fn long_examples_are_refused_skipped_or_cut() {
    let tokenizer = tokenizer();
    let rows = read(r#"{"prompt": "a a a a", "completion": " b b b b"}"#).unwrap();
    let datums = |tokens_max, too_long| {
        let options =
            DatumOptions { tokens_max: Some(tokens_max), too_long, ..DatumOptions::default() };
        rows.try_map(|row| row.datum(&tokenizer, &options)).map(|datums| datums.rows().to_vec())
    };
    let length = datums(1000, TooLong::Refuse).unwrap()[0].model_input().length().unwrap();
    let message = datums(length - 1, TooLong::Refuse).unwrap_err().to_string();
    assert!(message.contains(&format!("an example has {length} tokens; at most {}", length - 1)));
    assert!(datums(length - 1, TooLong::Skip).unwrap().is_empty());
    let cut = datums(length - 1, TooLong::Truncate(Keep::Beginning)).unwrap();
    assert_eq!(cut[0].model_input().length().unwrap(), length - 1);
    assert!(datums(1, TooLong::Truncate(Keep::Beginning)).unwrap().is_empty(), "nothing to learn");
}

#[test]
fn batches_go_on_where_they_were_left() {
    let rows = Dataset::from((0..10).collect::<Vec<_>>());
    let batching = Batching::new(4).unwrap().seed(1).epochs(3);
    let all: Vec<Vec<i32>> =
        rows.batches(batching).map(|batch| batch.into_iter().copied().collect()).collect();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2, 4, 4, 2]);
    assert_ne!(all[..3].concat(), all[3..6].concat(), "each epoch has another order");
    let rest: Vec<Vec<i32>> = rows
        .batches(batching.starting_at(4))
        .map(|batch| batch.into_iter().copied().collect())
        .collect();
    assert_eq!(rest, all[4..]);
    let full = rows.batches(batching.drop_last());
    assert_eq!((full.steps_per_epoch(), full.steps(), full.len()), (2, 6, 6));
    let in_order = rows.batches(Batching::new(3).unwrap()).next().unwrap();
    assert_eq!(in_order, [&0, &1, &2]);
    assert!(Batching::new(0).is_err());
    let none = Dataset::from(Vec::<u8>::new());
    assert_eq!(none.batches(batching).count(), 0);
}

#[test]
fn the_order_of_a_seed_never_changes() {
    let rows = Dataset::from((0..8).collect::<Vec<_>>());
    assert_eq!(rows.clone().shuffled(1).rows(), SEED_ONE);
    assert_ne!(rows.clone().shuffled(2).rows(), SEED_ONE);
    assert!(rows.split(1.5, 0).is_err());
}

/// As another program computes it.
const SEED_ONE: [i32; 8] = [0, 3, 7, 1, 2, 6, 5, 4];

proptest! {
    #[test]
    fn every_row_comes_once_an_epoch(
        count in 0..40_usize, size in 1..9_usize, seed: u64, held in 0.0..=1.0_f64,
    ) {
        let rows = Dataset::from((0..count).collect::<Vec<_>>());
        let batching = Batching::new(size).unwrap().seed(seed).epochs(2);
        let mut seen: Vec<usize> = rows.batches(batching).flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..count).flat_map(|row| [row, row]).collect::<Vec<_>>());
        let (kept, held) = rows.split(held, seed).unwrap();
        prop_assert!(kept.rows().is_sorted() && held.rows().is_sorted());
        let mut all = [kept.rows(), held.rows()].concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
    }
}
