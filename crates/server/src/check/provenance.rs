//! Where the tokens of a datum come from: spans of sampled sequences, compared with what was recorded of those.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use tinsmith_store::RecordedSequence;
use tinsmith_types::{
    ids::{SequenceId, TenantId},
    proto::{
        Datum, ForwardBackwardRequest, ProvenanceSpan, Tensor, chunk,
        pack::{unpack_i32, unpack_i64},
        provenance_span,
    },
};

use crate::{
    check::{Fault, ensure},
    error::Result,
    state::Shared,
};

/// The loss that needs to know.
pub(crate) const LOSS: &str = "stable_reinforce";
/// Among a datum's inputs afterwards: the recorded logprob of each token that was sampled, 0 elsewhere.
const LOGPROBS: &str = "logprobs";
/// Among a datum's inputs afterwards: 1 for each token that was sampled, 0 elsewhere.
const SAMPLED: &str = "sampled";
/// Sequences that one datum may be made of: all are in memory at a time, with their prompts.
const SEQUENCES_MAX: usize = 256;

type Known = BTreeMap<SequenceId, RecordedSequence>;

/// Puts what the loss needs among the inputs of each datum, whose tokens and shapes were checked.
///
/// # Errors
/// The store's; the fault names what is wrong with the request.
pub(crate) async fn look_up(
    app: &Shared,
    tenant: &TenantId,
    request: &mut ForwardBackwardRequest,
) -> Result<Result<(), Fault>> {
    for (index, datum) in request.data.iter_mut().enumerate() {
        let place = format!("data[{index}]");
        let named = Spans::of(place, datum).and_then(|spans| Ok((spans.sequences()?, spans)));
        let (sequences, spans) = match named {
            Ok(named) => named,
            Err(fault) => return Ok(Err(fault)),
        };
        let known = app.store.recorded_sequences(tenant, sequences).await?;
        if let Err(fault) = spans.apply(&known, datum) {
            return Ok(Err(fault));
        }
    }
    Ok(Ok(()))
}

/// The runs that tile a datum's input, and those that tile its targets.
struct Spans {
    place: String,
    input: Vec<Run>,
    targets: Vec<Run>,
}

/// Consecutive tokens that come from one sequence.
struct Run {
    place: String,
    sequence: SequenceId,
    sampled: bool,
    offset: usize,
    length: usize,
}

impl Spans {
    fn of(place: String, datum: &Datum) -> Result<Self, Fault> {
        let given = !(datum.model_input_spans.is_empty() && datum.loss_fn_input_spans.is_empty());
        ensure(given, || {
            format!(
                "{place} says nothing of where its tokens come from; {LOSS} needs \
                 model_input_spans and loss_fn_input_spans (Datum.with_provenance)"
            )
        })?;
        let input = tiles(
            (&format!("{place}.model_input_spans"), &datum.model_input_spans),
            input_tokens(datum).len(),
        )?;
        let targets = tiles(
            (&format!("{place}.loss_fn_input_spans"), &datum.loss_fn_input_spans),
            target_tokens(datum).len(),
        )?;
        Ok(Self { place, input, targets })
    }

    fn sequences(&self) -> Result<BTreeSet<SequenceId>, Fault> {
        let all = self.input.iter().chain(&self.targets);
        let sequences: BTreeSet<_> = all.map(|run| run.sequence.clone()).collect();
        ensure(sequences.len() <= SEQUENCES_MAX, || {
            let (place, count) = (&self.place, sequences.len());
            format!("{place} is made of {count} sequences; at most {SEQUENCES_MAX} are taken")
        })?;
        Ok(sequences)
    }

    /// Compares all tokens, and adds the inputs.
    fn apply(&self, known: &Known, datum: &mut Datum) -> Result<(), Fault> {
        let Self { place, input, targets } = self;
        compare(&format!("{place}.model_input"), input, &input_tokens(datum), known)?;
        let scored = format!("{place}.loss_fn_inputs.target_tokens");
        compare(&scored, targets, &target_tokens(datum), known)?;
        let (mut logprobs, mut sampled) = (Vec::new(), Vec::new());
        for run in targets {
            let drawn = known.get(&run.sequence).filter(|_| run.sampled);
            match drawn.and_then(|drawn| drawn.logprobs.get(run.range())) {
                Some(drawn) => {
                    logprobs.extend_from_slice(drawn);
                    sampled.resize(logprobs.len(), 1.0);
                }
                None => {
                    logprobs.resize(logprobs.len() + run.length, 0.0);
                    sampled.resize(logprobs.len(), 0.0);
                }
            }
        }
        for (name, values) in [(LOGPROBS, logprobs), (SAMPLED, sampled)] {
            let shape = vec![i64::try_from(values.len()).unwrap_or(i64::MAX)];
            datum.loss_fn_inputs.insert(name.to_owned(), Tensor::dense_f32(&values, shape));
        }
        Ok(())
    }
}

impl Run {
    fn of(place: String, span: &ProvenanceSpan) -> Result<Self, Fault> {
        let (sampled, sequence, offset, length) = match &span.span {
            Some(provenance_span::Span::PromptTokens(span)) => {
                (false, &span.sequence_id, span.offset, span.length)
            }
            Some(provenance_span::Span::SampledTokens(span)) => {
                (true, &span.sequence_id, span.offset, span.length)
            }
            None => return Err(Fault(format!("{place} is of an unknown kind"))),
        };
        let count = |name: &str, value: i64| {
            let negative = |_| Fault(format!("{place}.{name} is {value}; it must be at least 0"));
            usize::try_from(value).map_err(negative)
        };
        let (offset, length) = (count("offset", offset)?, count("length", length)?);
        let sequence = SequenceId(sequence.clone());
        Ok(Self { place, sequence, sampled, offset, length })
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset.saturating_add(self.length)
    }

    /// The recorded tokens that this run claims to be.
    fn recorded<'k>(&self, known: &'k Known) -> Result<&'k [u32], Fault> {
        let Self { place, sequence, sampled, offset, length } = self;
        let recorded = known.get(sequence).ok_or_else(|| {
            Fault(format!(
                "{place}: nothing is recorded of the sequence {:?}: sample with \
                 record_stability_info, and train before the sampler's session ends and before newer \
                 samples take the room",
                sequence.as_str()
            ))
        })?;
        let (what, tokens) = if *sampled {
            ("sampled tokens", &recorded.tokens)
        } else {
            ("prompt tokens", &recorded.prompt)
        };
        tokens.get(self.range()).ok_or_else(|| {
            let count = tokens.len();
            Fault(format!(
                "{place} goes from {offset} on over {length} of the {what} of {:?}, which has {count}",
                sequence.as_str()
            ))
        })
    }
}

/// The runs that are not empty, of spans that must cover so many tokens.
fn tiles((place, spans): (&str, &[ProvenanceSpan]), tokens: usize) -> Result<Vec<Run>, Fault> {
    let (mut runs, mut covered) = (Vec::new(), 0_usize);
    for (index, span) in spans.iter().enumerate() {
        let run = Run::of(format!("{place}[{index}]"), span)?;
        covered = covered.saturating_add(run.length);
        if run.length > 0 {
            runs.push(run);
        }
        ensure(covered <= tokens, || cover(place, covered, tokens))?;
    }
    ensure(covered == tokens, || cover(place, covered, tokens))?;
    Ok(runs)
}

fn cover(place: &str, covered: usize, tokens: usize) -> String {
    let or_more = if covered > tokens { " or more" } else { "" };
    format!("{place} cover {covered}{or_more} tokens, and there are {tokens}")
}

/// Refuses runs of other tokens; they tile them.
fn compare(place: &str, runs: &[Run], tokens: &[i64], known: &Known) -> Result<(), Fault> {
    let mut start = 0;
    for run in runs {
        let recorded = run.recorded(known)?;
        let own = &tokens[start..start + run.length];
        let differs = own.iter().zip(recorded).position(|(own, other)| *own != i64::from(*other));
        if let Some(at) = differs {
            return Err(Fault(format!(
                "{place}[{}] is the token {}, and {} says that it is {}",
                start + at,
                own[at],
                run.place,
                recorded[at]
            )));
        }
        start += run.length;
    }
    Ok(())
}

/// Tokens of a datum that was checked.
fn input_tokens(datum: &Datum) -> Vec<i64> {
    let mut tokens = Vec::new();
    for each in &datum.model_input {
        if let Some(chunk::Chunk::EncodedText(text)) = &each.chunk {
            tokens.extend(unpack_i32(&text.tokens).into_iter().flatten().map(i64::from));
        }
    }
    tokens
}

/// Targets of a datum that was checked.
fn target_tokens(datum: &Datum) -> Vec<i64> {
    let tensor = datum.loss_fn_inputs.get("target_tokens");
    tensor.and_then(|tensor| unpack_i64(tensor.stored()).ok()).unwrap_or_default()
}
