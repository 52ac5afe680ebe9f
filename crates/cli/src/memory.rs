//! How the memory that this process may use is shared out, and the plan that is printed.

use anyhow::{Result, bail};
use tinsmith_backend::{ATTENTION_TILE, Backend as _};
use tinsmith_engine::{
    LoraSpec, ModelDir, Plan, cache_bytes, longest_datum, run_bytes, sampler_bytes,
    training_step_bytes,
};

use crate::{
    config::{self, REQUESTS_BYTES, Settings, Shares},
    device::Device,
    host,
};

/// Where the operating system tells nothing.
const UNKNOWN_MEMORY: u64 = 8 << 30;
/// Code, threads, connections, and what allocators hold back.
const PROCESS_BYTES: usize = 64 << 20;
/// Rank of the adapters that the plan speaks of.
const USUAL_RANK: usize = 32;
/// A server that trains and samples sequences of this many tokens is worth starting.
const TOKENS_MIN: usize = 512;
/// More for keys and values has to be asked for: all of it is taken at the start.
const CACHE_BYTES_USUAL: usize = 2 << 30;

/// The memory that this process may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    bytes: usize,
    /// Whether the settings say so.
    set: bool,
}

impl Room {
    /// As the settings say, else 7/8 of what the operating system allows.
    pub(crate) fn of(settings: &Settings) -> Self {
        let total = host::memory().map_or(UNKNOWN_MEMORY, |memory| memory.total);
        let most = usize::try_from(total / 8 * 7).unwrap_or(usize::MAX);
        Self { bytes: settings.memory.unwrap_or(most), set: settings.memory.is_some() }
    }

    /// Bytes for requests on their way.
    pub(crate) fn requests(&self) -> usize {
        let (least, most) = REQUESTS_BYTES;
        (self.bytes / 8).clamp(least, most)
    }

    fn describe(&self) -> String {
        let source = if self.set { "the setting memory" } else { "7/8 of this machine's memory" };
        format!("{} ({source})", amount(self.bytes))
    }
}

/// A model that shall be served.
pub(crate) struct Wish<'a> {
    pub(crate) name: &'a str,
    pub(crate) dir: &'a ModelDir,
    pub(crate) device: &'a Device,
}

/// What one model may use.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    name: String,
    pub(crate) config: tinsmith_engine::Config,
    pub(crate) plan: Plan,
    /// What the parts hold, in words; in the order of [`Plan::parts`].
    notes: [String; 7],
}

/// Shares out the memory: what every model must have, then as much as is of use.
///
/// # Errors
///
/// The least that the models need does not fit: what it is, and what to do.
pub(crate) fn share(settings: &Settings, room: &Room, wishes: &[Wish<'_>]) -> Result<Vec<Planned>> {
    let mut parts = vec![("requests", room.requests()), ("process", PROCESS_BYTES)];
    for wish in wishes {
        parts.extend(wish.plan(settings, &wish.least(settings)).parts());
    }
    let needed = parts.iter().fold(0_usize, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if needed > room.bytes {
        bail!("{}", shortage(room, wishes, &parts, needed));
    }
    let spare = (room.bytes - needed) / wishes.len().max(1);
    Ok(wishes.iter().map(|wish| wish.planned(settings, spare)).collect())
}

/// One line that says what is missing.
fn shortage(
    room: &Room,
    wishes: &[Wish<'_>],
    parts: &[(&'static str, usize)],
    needed: usize,
) -> String {
    let names: Vec<&str> = wishes.iter().map(|wish| wish.name).collect();
    let mut sums: Vec<(&str, usize)> = Vec::new();
    for &(name, bytes) in parts {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => sums.push((name, bytes)),
        }
    }
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let list: Vec<String> =
        sums.iter().map(|(name, bytes)| format!("{name} {}", amount(*bytes))).collect();
    let advice = match sums[0].0 {
        "embeddings" | "layers" if wishes.iter().any(|wish| wish.is_f32()) => {
            "use --dtype bf16, which halves the weights, or serve a smaller model"
        }
        "embeddings" | "layers" => "serve a smaller model, or fewer",
        "keys and values" => "set kv_cache_mb lower",
        "training step" => "set activation_mb lower",
        "sampling step" => "set sequences_max lower",
        _ => "give this process more memory",
    };
    format!(
        "fit {} into {}: it needs {} at least ({}); {advice}, set memory higher, or use a larger machine",
        names.join(", "),
        room.describe(),
        amount(needed),
        list.join(", "),
    )
}

impl Wish<'_> {
    fn is_f32(&self) -> bool {
        self.device.kernel_set().starts_with("f32.")
    }

    /// Tokens of the longest sequence that is wanted.
    fn context(&self, settings: &Settings) -> usize {
        match settings.context_max {
            0 => self.dir.config().max_positions,
            context => context,
        }
    }

    fn block_bytes(&self) -> usize {
        cache_bytes(self.device, self.dir.config(), 1)
    }

    fn training_step(&self, tokens: usize, rank: usize) -> usize {
        training_step_bytes(self.device, self.dir.config(), tokens, rank)
    }

    fn run(&self, rank: usize) -> usize {
        run_bytes(self.device, self.dir.config(), &spec(rank))
    }

    fn sampler(&self, rank: usize) -> usize {
        sampler_bytes(self.device, self.dir.config(), &spec(rank))
    }

    fn plan(&self, settings: &Settings, shares: &Shares) -> Plan {
        let config = config::engine(settings, self.context(settings), shares);
        Plan::new(self.device, self.dir.config(), &config)
    }

    /// What the settings ask for, else the least that is of use.
    fn least(&self, settings: &Settings) -> Shares {
        let tokens = self.context(settings).min(TOKENS_MIN);
        let rank = usual_rank(settings);
        let kv_blocks = match settings.kv_cache_bytes {
            0 => tokens.div_ceil(ATTENTION_TILE),
            bytes => (bytes / self.block_bytes()).max(1),
        };
        let training_step_bytes = match settings.activation_bytes {
            0 => self.training_step(tokens, rank),
            bytes => bytes,
        };
        let (runs_bytes, samplers_bytes) = (self.run(rank), self.sampler(rank));
        Shares { kv_blocks, training_step_bytes, runs_bytes, samplers_bytes }
    }

    /// The least, and shares of what is spare as far as they are of use: a quarter each for keys and values
    /// (up to the usual) and for the training step, of the rest three quarters for runs.
    fn planned(&self, settings: &Settings, spare: usize) -> Planned {
        let (context, rank_max) = (self.context(settings), settings.lora_rank_max as usize);
        let mut shares = self.least(settings);
        let mut left = spare;
        if settings.kv_cache_bytes == 0 {
            let useful = settings.sequences_max.saturating_mul(context.div_ceil(ATTENTION_TILE));
            let more = (spare.min(4 * CACHE_BYTES_USUAL) / 4 / self.block_bytes())
                .min(useful.saturating_sub(shares.kv_blocks));
            shares.kv_blocks += more;
            left -= more * self.block_bytes();
        }
        if settings.activation_bytes == 0 {
            let useful = self.training_step(context, rank_max);
            left -= widen(&mut shares.training_step_bytes, useful, spare / 4);
        }
        let useful = settings.runs_max.saturating_mul(self.run(rank_max));
        left -= widen(&mut shares.runs_bytes, useful, left / 4 * 3);
        let useful = settings.samplers_max.saturating_mul(self.sampler(rank_max));
        widen(&mut shares.samplers_bytes, useful, left);
        let config = config::engine(settings, context, &shares);
        if config.max_model_len < context {
            tracing::warn!(
                context = config.max_model_len,
                wanted = context,
                "samples are cut to the context that the memory for keys and values holds; training is not"
            );
        }
        let own = self.dir.config().max_positions;
        if context > own {
            tracing::warn!(context, own, "sequences may be longer than the model was made for");
        }
        let plan = Plan::new(self.device, self.dir.config(), &config);
        let notes = self.notes(settings, &config);
        Planned { name: self.name.to_owned(), config, plan, notes }
    }

    fn notes(&self, settings: &Settings, config: &tinsmith_engine::Config) -> [String; 7] {
        let decoder = self.dir.config();
        let rank = usual_rank(settings);
        let datum = longest_datum(self.device, decoder, config, rank);
        let runs = (config.runs_bytes_max / self.run(rank)).min(settings.runs_max);
        let samplers = (config.samplers_bytes_max / self.sampler(rank)).min(settings.samplers_max);
        [
            format!("{} tokens of {} features", decoder.vocab_size, decoder.hidden),
            format!("{} layers, packed forward and backward", decoder.layers),
            format!("{} tokens", config.kv_blocks * ATTENTION_TILE),
            format!("datums of up to {datum} tokens at rank {rank}"),
            format!("{} sequences", config.max_num_seqs),
            format!("{runs} of rank {rank}; others rest on disk"),
            format!("{samplers} of rank {rank}; others rest on disk"),
        ]
    }
}

/// Adds to `bytes` up to `more`, as far as `useful`; how much it was.
fn widen(bytes: &mut usize, useful: usize, more: usize) -> usize {
    let more = more.min(useful.saturating_sub(*bytes));
    *bytes += more;
    more
}

fn usual_rank(settings: &Settings) -> usize {
    USUAL_RANK.min(settings.lora_rank_max as usize)
}

fn spec(rank: usize) -> LoraSpec {
    LoraSpec { rank, seed: 0, train_attn: true, train_mlp: true, train_unembed: true }
}

/// The plan, for people.
pub(crate) fn lines(room: &Room, plans: &[Planned]) -> Vec<String> {
    let fixed = room.requests() + PROCESS_BYTES;
    let total = plans.iter().fold(fixed, |sum, planned| sum.saturating_add(planned.plan.total()));
    let mut lines = vec![format!("memory: at most {} of {}", amount(total), room.describe())];
    let mut line = |name: &str, bytes: usize, note: &str| {
        lines.push(format!("  {name:<16}{:>10}  {note}", amount(bytes)));
    };
    for planned in plans {
        let prefix = if plans.len() > 1 { format!("{}: ", planned.name) } else { String::new() };
        for ((name, bytes), note) in planned.plan.parts().into_iter().zip(&planned.notes) {
            line(name, bytes, &format!("{prefix}{note}"));
        }
    }
    line("requests", room.requests(), "bodies, queues and results");
    line("process", PROCESS_BYTES, "code, threads and connections");
    lines
}

/// Bytes, for people.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn amount(bytes: usize) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1000.0 {
        format!("{mebibytes:.1} MiB")
    } else {
        format!("{:.1} GiB", mebibytes / 1024.0)
    }
}
