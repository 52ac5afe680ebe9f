//! What a sampling job must look like before it is queued.

use tinsmith_backend::ATTENTION_TILE;

use crate::{Config, Error, PromptTargets, Result, SampleJob, Stop, train::check_ids};

/// What a job may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) config: &'a Config,
    pub(crate) vocab_size: usize,
    /// Tokens of a prompt with its completion.
    pub(crate) context: usize,
    pub(crate) has_tokenizer: bool,
}

/// Refuses jobs that cannot be computed; else gives the number of tokens to draw at most.
pub(crate) fn check_job(job: &SampleJob, limits: &Limits<'_>) -> Result<usize> {
    let config = limits.config;
    if job.prompt.is_empty() {
        return Err(Error::user("prompt has no tokens; give at least one"));
    }
    check_ids("prompt", &job.prompt, limits.vocab_size).map_err(Error::user)?;
    if !(1..=config.num_samples_max).contains(&job.num_samples) {
        let most = config.num_samples_max;
        let message = format!("num_samples = {} is not between 1 and {most}", job.num_samples);
        return Err(Error::user(message));
    }
    check_distribution(job)?;
    check_stop(&job.stop, limits)?;
    check_scores(job, limits)?;
    let max_tokens = check_length(job, limits)?;
    check_size(job, max_tokens, config.logprobs_max)?;
    Ok(max_tokens)
}

fn check_distribution(job: &SampleJob) -> Result<()> {
    let SampleJob { temperature, top_k, top_p, .. } = *job;
    if !(temperature.is_finite() && temperature >= 0.0) {
        let message = format!("temperature = {temperature} must be a number of at least 0");
        return Err(Error::user(message));
    }
    if top_k == Some(0) {
        return Err(Error::user("top_k = 0 leaves no token; give at least 1, or -1 for all"));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::user(format!("top_p = {top_p} must be above 0 and at most 1")));
    }
    Ok(())
}

fn check_stop(stop: &Stop, limits: &Limits<'_>) -> Result<()> {
    let count = match stop {
        Stop::Default => 0,
        Stop::Tokens(tokens) => tokens.len(),
        Stop::Strings(strings) => {
            if let Some(at) = strings.iter().position(String::is_empty) {
                return Err(Error::user(format!("stop[{at}] is an empty string")));
            }
            if !strings.is_empty() && !limits.has_tokenizer {
                let message = "stop strings need the model's tokenizer, which this server does not \
                               have; stop on token ids";
                return Err(Error::user(message));
            }
            strings.len()
        }
    };
    if count > limits.config.stops_max {
        let most = limits.config.stops_max;
        return Err(Error::user(format!("stop has {count} entries; at most {most} are allowed")));
    }
    Ok(())
}

/// Whether anything of the prompt is asked for.
fn scores_prompt(job: &SampleJob) -> bool {
    job.prompt_logprobs
        || job.topk_prompt_logprobs > 0
        || job.prompt_alt_tokens > 0
        || job.target_prompt_logprobs.is_some()
}

fn check_scores(job: &SampleJob, limits: &Limits<'_>) -> Result<()> {
    let (prompt, vocab_size) = (job.prompt.len(), limits.vocab_size);
    if let Some(last_n) = job.prompt_logprobs_last_n {
        if !job.prompt_logprobs {
            return Err(Error::user("prompt_logprobs_last_n is given without prompt_logprobs"));
        }
        if !(1..prompt).contains(&last_n) {
            let message = format!(
                "prompt_logprobs_last_n = {last_n} is not between 1 and {}, one less than the \
                 prompt's tokens",
                prompt - 1
            );
            return Err(Error::user(message));
        }
    }
    let lists = [
        ("topk_prompt_logprobs", job.topk_prompt_logprobs),
        ("topk_sample_logprobs", job.topk_sample_logprobs),
    ];
    if let Some((name, k)) = lists.into_iter().find(|(_, k)| *k > vocab_size) {
        let message = format!("{name} = {k} is more than the vocabulary's {vocab_size} tokens");
        return Err(Error::user(message));
    }
    job.target_prompt_logprobs
        .as_ref()
        .map_or(Ok(()), |targets| check_targets(targets, prompt, vocab_size))
}

fn check_targets(targets: &PromptTargets, prompt: usize, vocab_size: usize) -> Result<()> {
    let PromptTargets { rows, ids, columns: _, column_of } = targets;
    let fits = rows.len() == prompt
        && rows.first() == Some(&0)
        && rows.is_sorted()
        && rows.last() == Some(&ids.len())
        && column_of.as_ref().is_none_or(|columns| columns.len() == ids.len());
    if !fits {
        let message = format!(
            "target_prompt_logprobs has not {} rows of cells, the prompt's tokens less one",
            prompt - 1
        );
        return Err(Error::user(message));
    }
    if ids.iter().all(Option::is_none) {
        return Err(Error::user("target_prompt_logprobs names no token id"));
    }
    let known = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocab_size);
    if let Some(id) = ids.iter().flatten().find(|id| !known(id)) {
        let message = format!(
            "target_prompt_logprobs names the token {id}; the vocabulary has {vocab_size} tokens"
        );
        return Err(Error::user(message));
    }
    Ok(())
}

/// Refuses outputs that are too large.
fn check_size(job: &SampleJob, max_tokens: usize, logprobs_max: usize) -> Result<()> {
    let prompt = job.prompt.len();
    let drawn = job.num_samples.saturating_mul(max_tokens);
    let total = [
        prompt.saturating_mul(job.topk_prompt_logprobs),
        prompt.saturating_mul(job.prompt_alt_tokens),
        job.target_prompt_logprobs.as_ref().map_or(0, |targets| targets.ids.len()),
        drawn.saturating_mul(job.topk_sample_logprobs),
    ]
    .into_iter()
    .fold(0, usize::saturating_add);
    if total > logprobs_max {
        let message = format!(
            "the listed, given and alternative tokens would be {total}; at most {logprobs_max} are \
             given in one output"
        );
        return Err(Error::user(message));
    }
    Ok(())
}

fn check_length(job: &SampleJob, limits: &Limits<'_>) -> Result<usize> {
    let (prompt, context) = (job.prompt.len(), limits.context);
    if job.max_tokens == Some(0) && !scores_prompt(job) {
        let message =
            "max_tokens = 0 asks for nothing; give at least 1, or ask for prompt_logprobs";
        return Err(Error::user(message));
    }
    let wanted = job.max_tokens.unwrap_or(1);
    if prompt.saturating_add(wanted) > context {
        let message = format!(
            "Prompt length plus max_tokens exceeds the model's context window: {prompt} prompt \
             tokens + {wanted} max_tokens > {context}."
        );
        return Err(Error::user(message));
    }
    // The last token drawn is never fed back, so its keys and values need no room.
    let room = limits.config.kv_blocks * ATTENTION_TILE + 1;
    if prompt + wanted.max(1) > room {
        let message = format!(
            "{prompt} prompt tokens + {wanted} max_tokens do not fit this server's key-value \
             cache, which holds {room}"
        );
        return Err(Error::user(message));
    }
    Ok(job.max_tokens.unwrap_or_else(|| context.min(room) - prompt))
}
