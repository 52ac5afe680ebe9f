//! Reads tokens off logits, which are those of `score`, to the bit.

use std::{mem, ops::Range};

use tinsmith_backend::{Ask, Drawn, LoraUse, Query, Unembedding};

use crate::{
    CpuBackend,
    buffer::{Cells, Lora, Rows},
    lanes::Path,
    pool::Pool,
    score::Unembed,
    select::with_row,
};

pub(crate) fn sample(
    cpu: &mut CpuBackend,
    answers: &mut Vec<Drawn>,
    x: &Rows,
    (unembedding, uses): (Unembedding<'_, CpuBackend>, &[LoraUse<'_, Lora>]),
    asks: &[Ask],
) {
    assert!(asks.is_sorted_by_key(|ask| ask.row), "rows ascend");
    let unembed = Unembed::new(cpu, x, unembedding, uses);
    answers.clear();
    answers.resize(asks.iter().map(|ask| ask.query.answers()).sum(), BLANK);
    let (mut asks, mut answers) = (asks, answers.as_mut_slice());
    for rows in unembed.chunks() {
        unembed.logits(cpu, &rows);
        let (path, pool) = (cpu.path, &cpu.pool);
        let (own, later) = asks.split_at(asks.partition_point(|ask| ask.row < rows.end));
        let places = own.iter().map(|ask| ask.query.answers()).sum();
        let (out, rest) = answers.split_at_mut(places);
        let step = (own, out, &mut cpu.groups);
        answer(&cpu.logits, rows.start, step, (path, pool));
        (asks, answers) = (later, rest);
    }
}

const BLANK: Drawn = Drawn { token: 0, logprob: f32::NAN };

/// What is asked of one row, and the places of the answers.
#[derive(Debug)]
pub(crate) struct Group {
    asks: Range<usize>,
    answers: Range<usize>,
}

/// Answers a chunk's asks; its logits begin with those of the row `first`.
fn answer(
    logits: &Rows,
    first: usize,
    (asks, answers, groups): (&[Ask], &mut [Drawn], &mut Vec<Group>),
    (path, pool): (Path, &Pool),
) {
    groups.clear();
    let (mut start, mut place) = (0, 0);
    for group in asks.chunk_by(|one, next| one.row == next.row) {
        let places = group.iter().map(|ask| ask.query.answers()).sum::<usize>();
        groups.push(Group { asks: start..start + group.len(), answers: place..place + places });
        (start, place) = (start + group.len(), place + places);
    }
    let (groups, out) = (&*groups, Cells::new(answers));
    pool.run_sized(groups.len(), groups.len() * logits.features * 8, &|index| {
        let Group { asks: own, answers } = &groups[index];
        let asks = &asks[own.clone()];
        // SAFETY: the places lie in the answers, and are this group's alone.
        let out = unsafe { out.part(answers) };
        answer_row(path, logits.row(asks[0].row - first), asks, out);
    });
}

/// Answers what is asked of one row; sums are taken once for neighbours of one temperature.
fn answer_row(path: Path, logits: &[f32], asks: &[Ask], mut out: &mut [Drawn]) {
    for asks in asks.chunk_by(|one, next| temperature(&one.query) == temperature(&next.query)) {
        with_row(path, logits, temperature(&asks[0].query), |row| {
            for ask in asks {
                let (own, rest) = mem::take(&mut out).split_at_mut(ask.query.answers());
                out = rest;
                match &ask.query {
                    Query::Token(token) => own[0] = row.token(*token as usize),
                    Query::Top { .. } => row.top(own),
                    Query::Draw(draw) => own[0] = row.draw(draw),
                }
            }
        });
    }
}

/// What the logits are divided by.
fn temperature(query: &Query) -> f32 {
    match query {
        Query::Token(_) => 1.0,
        Query::Top { temperature, .. } if *temperature == 0.0 => 1.0,
        Query::Draw(draw) if draw.temperature == 0.0 => 1.0,
        Query::Top { temperature, .. } => *temperature,
        Query::Draw(draw) => draw.temperature,
    }
}
