//! Datums from prompts, answers and samples, with the shift done.

use crate::{Datum, Error, ModelInput, ProvenanceSpan, Result, TensorData, Trajectory};

use super::TARGETS;

/// How much better than expected what a policy did was.
#[derive(Clone, Debug, PartialEq)]
pub enum Advantages {
    /// One for all tokens.
    Same(f32),
    /// One for each token.
    Each(Vec<f32>),
}

impl Datum {
    /// For `cross_entropy`. All `[n]`; `targets` are already shifted: `targets[t]` follows `tokens[t]`.
    ///
    /// # Errors
    ///
    /// Lengths that differ, or no tokens.
    pub fn next_token(tokens: &[u32], targets: &[u32], weights: &[f32]) -> Result<Self> {
        if tokens.is_empty() {
            return Err(Error::validation("a datum needs at least one token"));
        }
        for (name, length) in [("weights", weights.len()), (TARGETS, targets.len())] {
            if length != tokens.len() {
                let tokens = tokens.len();
                return Err(Error::validation(format!(
                    "{name} has {length} values for {tokens} tokens"
                )));
            }
        }
        Ok(Self::new(tokens).with_input(TARGETS, targets).with_input("weights", weights))
    }

    /// A whole text, `[n + 1]`, all of which is learnt but its first token.
    ///
    /// # Errors
    ///
    /// Fewer than two tokens.
    pub fn text(tokens: &[u32]) -> Result<Self> {
        Self::weighted(tokens, &vec![1.0; tokens.len()])
    }

    /// A whole text and how much each of its tokens is learnt, both `[n + 1]`. The first token's weight is of
    /// no effect: nothing predicts it.
    ///
    /// # Errors
    ///
    /// Lengths that differ, fewer than two tokens.
    pub fn weighted(tokens: &[u32], weights: &[f32]) -> Result<Self> {
        let (Some((_, targets)), Some((_, weights)), [_, _, ..]) =
            (tokens.split_first(), weights.split_first(), tokens)
        else {
            return Err(Error::validation(
                "a text needs at least two tokens: one is predicted from the other",
            ));
        };
        Self::next_token(&tokens[..tokens.len() - 1], targets, weights)
    }

    /// A completion that follows a prompt, in one: shifts, and weighs the completion's tokens with 1.
    ///
    /// # Errors
    ///
    /// An empty prompt or completion.
    pub fn completion(prompt: &[u32], completion: &[u32]) -> Result<Self> {
        let (tokens, weights) = joined(prompt, completion)?;
        Self::weighted(&tokens, &weights)
    }

    /// A completion of text tokens that follows a prompt of any kind, such as one with pictures.
    ///
    /// # Errors
    ///
    /// An empty prompt or completion; a picture without `expected_tokens`.
    pub fn completion_of(prompt: &ModelInput, completion: &[u32]) -> Result<Self> {
        let length = prompt.length()?;
        let Some((_, read)) = completion.split_last().filter(|_| length > 0) else {
            return Err(Error::validation(EMPTY));
        };
        let text = crate::ModelInputChunk::EncodedText { tokens: read.to_vec() };
        let input = if read.is_empty() { prompt.clone() } else { prompt.clone().append(text) };
        // What the prompt's own tokens predict is not learnt: any token does for it.
        let mut targets = vec![0; length - 1];
        targets.extend(completion);
        let mut weights = vec![0.0; length - 1];
        weights.resize(targets.len(), 1.0);
        Ok(Self::new(input).with_input(TARGETS, targets).with_input("weights", weights))
    }

    /// For the losses on sampled tokens (`importance_sampling`, `ppo`, `cispo`, `dro`, `gspo`): what a
    /// sampler drew after a prompt, its logprobs, and how good that was.
    ///
    /// # Errors
    ///
    /// An empty prompt or sample; logprobs or advantages that are not one for each sampled token.
    pub fn policy(
        prompt: &[u32],
        sampled: &[u32],
        logprobs: &[f32],
        advantages: impl Into<Advantages>,
    ) -> Result<Self> {
        if prompt.is_empty() || sampled.is_empty() {
            return Err(Error::validation("a prompt and a sample need at least one token each"));
        }
        Trajectory::new().observe(prompt).act(sampled, logprobs, advantages)?.datum()
    }

    /// For `stable_reinforce`: what the sequence `sequence_id` drew after its prompt. The server knows its logprobs,
    /// if the sampler was made with `record_stability_info`.
    ///
    /// # Errors
    ///
    /// An empty prompt or sample; advantages that are not one for each sampled token.
    pub fn recorded_policy(
        sequence_id: &str,
        prompt: &[u32],
        sampled: &[u32],
        advantages: impl Into<Advantages>,
    ) -> Result<Self> {
        let logprobs = vec![0.0; sampled.len()];
        let datum = Self::policy(prompt, sampled, &logprobs, advantages)?.without_input("logprobs");
        datum.with_provenance(
            vec![
                ProvenanceSpan::prompt(sequence_id, 0, prompt.len()),
                ProvenanceSpan::sampled(sequence_id, 0, sampled.len() - 1),
            ],
            vec![
                ProvenanceSpan::prompt(sequence_id, 1, prompt.len() - 1),
                ProvenanceSpan::sampled(sequence_id, 0, sampled.len()),
            ],
        )
    }

    /// For `cross_entropy` against a teacher's distribution: a completion after a prompt, and for each of its
    /// tokens what the teacher would have said there, as candidates with their probabilities. Rows may have
    /// different lengths; what is mostly empty is sent sparse.
    ///
    /// # Errors
    ///
    /// An empty prompt or completion; not one row for each token of the completion, or no candidate at all.
    pub fn distillation(
        prompt: &[u32],
        completion: &[u32],
        teacher: &[Vec<(u32, f32)>],
    ) -> Result<Self> {
        if teacher.len() != completion.len() {
            let (rows, tokens) = (teacher.len(), completion.len());
            let message = "the teacher has one row of candidates for each completion token:";
            return Err(Error::validation(format!("{message} {rows} for {tokens}")));
        }
        let (tokens, _) = joined(prompt, completion)?;
        let mut rows = vec![Vec::new(); prompt.len() - 1];
        rows.extend(teacher.iter().cloned());
        Self::soft_targets(&tokens[..tokens.len() - 1], &rows)
    }

    /// For `cross_entropy` with several candidates a token, each with a weight: `rows[t]` are those for what follows
    /// `tokens[t]`. Shorter rows are filled up with weight 0.
    ///
    /// # Errors
    ///
    /// Not one row for each token, or no candidate at all.
    pub fn soft_targets(tokens: &[u32], rows: &[Vec<(u32, f32)>]) -> Result<Self> {
        if rows.len() != tokens.len() {
            let (rows, tokens) = (rows.len(), tokens.len());
            return Err(Error::validation(format!(
                "there are {rows} rows of candidates for {tokens} tokens"
            )));
        }
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        if columns == 0 {
            return Err(Error::validation("soft targets need a candidate for one token at least"));
        }
        let filled = |row: &Vec<(u32, f32)>| {
            let mut row = row.clone();
            row.resize(columns, (0, 0.0));
            row
        };
        let cells: Vec<Vec<(u32, f32)>> = rows.iter().map(filled).collect();
        let of = |row: &Vec<(u32, f32)>| row.iter().map(|(token, _)| i64::from(*token)).collect();
        let targets: Vec<Vec<i64>> = cells.iter().map(of).collect();
        let of = |row: &Vec<(u32, f32)>| row.iter().map(|(_, weight)| *weight).collect();
        let weights: Vec<Vec<f32>> = cells.iter().map(of).collect();
        Ok(Self::new(tokens)
            .with_input(TARGETS, TensorData::from_rows_i64(&targets)?.to_sparse(0))
            .with_input("weights", TensorData::from_rows_f32(&weights)?.to_sparse(0)))
    }

    /// For `importance_sampling`, on-policy distillation: what the student drew is good where the teacher finds it likelier.
    /// Each token's advantage is `coefficient * (teacher_logprob - logprob)`, the negative reverse KL of one
    /// token (Agarwal et al. 2024, arXiv 2306.13649).
    ///
    /// # Errors
    ///
    /// As [`Datum::policy`]; not one teacher logprob for each token.
    pub fn on_policy_distillation(
        prompt: &[u32],
        sampled: &[u32],
        logprobs: &[f32],
        teacher_logprobs: &[f32],
        coefficient: f32,
    ) -> Result<Self> {
        if teacher_logprobs.len() != logprobs.len() {
            let (teacher, student) = (teacher_logprobs.len(), logprobs.len());
            let message = format!("there are {teacher} teacher logprobs for {student} logprobs");
            return Err(Error::validation(message));
        }
        let pairs = teacher_logprobs.iter().zip(logprobs);
        let advantages: Vec<f32> =
            pairs.map(|(teacher, student)| coefficient * (teacher - student)).collect();
        Self::policy(prompt, sampled, logprobs, advantages)
    }
}

const EMPTY: &str = "a prompt and a completion need at least one token each";

/// Tokens of both, and weights that are 1 for the completion.
fn joined(prompt: &[u32], completion: &[u32]) -> Result<(Vec<u32>, Vec<f32>)> {
    if prompt.is_empty() || completion.is_empty() {
        return Err(Error::validation(EMPTY));
    }
    let tokens: Vec<u32> = prompt.iter().chain(completion).copied().collect();
    let mut weights = vec![0.0; prompt.len()];
    weights.resize(tokens.len(), 1.0);
    Ok((tokens, weights))
}

impl Advantages {
    /// One for each of `tokens`.
    pub(super) fn each(self, tokens: usize) -> Result<Vec<f32>> {
        match self {
            Self::Same(advantage) => Ok(vec![advantage; tokens]),
            Self::Each(each) if each.len() == tokens => Ok(each),
            Self::Each(each) => {
                let advantages = each.len();
                let message = format!("there are {advantages} advantages for {tokens} tokens");
                Err(Error::validation(message))
            }
        }
    }
}

impl From<f32> for Advantages {
    fn from(advantage: f32) -> Self {
        Self::Same(advantage)
    }
}

impl From<Vec<f32>> for Advantages {
    fn from(advantages: Vec<f32>) -> Self {
        Self::Each(advantages)
    }
}

impl From<&[f32]> for Advantages {
    fn from(advantages: &[f32]) -> Self {
        Self::Each(advantages.to_vec())
    }
}

impl<const N: usize> From<&[f32; N]> for Advantages {
    fn from(advantages: &[f32; N]) -> Self {
        Self::Each(advantages.to_vec())
    }
}
