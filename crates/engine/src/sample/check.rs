//! What a sampling job must look like before it is queued.

use tinsmith_backend::ATTENTION_TILE;

use crate::{Config, Error, Result, SampleJob, Stop, train::check_ids};

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
    check_length(job, limits)
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

fn check_length(job: &SampleJob, limits: &Limits<'_>) -> Result<usize> {
    let (prompt, context) = (job.prompt.len(), limits.context);
    if job.max_tokens == Some(0) && !job.prompt_logprobs {
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
