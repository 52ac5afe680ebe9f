//! `tinsmith bench profile`: what each op takes of a training step, of prefill and of decode steps.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;
use tinsmith_backend::Dtype;

use super::{
    Computing, FULL, Format, Model,
    engine::{Step, Subject},
};
use crate::{
    device::{self, Device},
    models,
    terminal::{problem, say},
};

mod notes;
mod timed;

use notes::{Cost, Costs, Notes};
use timed::Timed;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    computing: Computing,
    /// The model to run.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
    /// Rounds of each kind of step that count, after one that does not.
    #[arg(long, default_value = "5")]
    rounds: usize,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Everything that was measured, and where.
#[derive(Debug, Serialize)]
struct Profile {
    cpu: String,
    kernels: String,
    model: &'static str,
    kinds: Vec<Kind>,
}

/// One kind of step: means over all steps of all rounds.
#[derive(Debug, Serialize)]
struct Kind {
    what: String,
    /// Of the engine; an update of a run takes several.
    steps: usize,
    /// Of one of `units`: an update, a step of prefill, a decode step.
    ms: f64,
    units: usize,
    tokens_per_s: f64,
    /// Of linear ops, attention and the unembedding together, by the time in them.
    products_gflops: f64,
    ops: Vec<OpShare>,
}

#[derive(Debug, Serialize)]
struct OpShare {
    op: String,
    /// Of the time of the whole kind.
    percent: f64,
    /// A unit.
    ms: f64,
    calls: f64,
    gflops: Option<f64>,
}

/// Sums over the steps of one kind.
#[derive(Debug, Default)]
struct Sums {
    steps: usize,
    units: usize,
    tokens: u64,
    time: Duration,
    costs: Costs,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let settings = super::settings(&arguments.computing, (super::NANO, &nano), folder.path())?;
    let model = arguments.model.name();
    problem(&format!("measuring the ops of {model}"));
    let dir = arguments.model.dir(&nano, folder.path())?;
    let notes = Notes::default();
    let mut subject =
        Subject::open(&settings, model, &dir, |device| Timed::new(device, notes.clone()))?;
    let kinds = kinds(&mut subject, &notes, arguments.rounds.max(1))?;
    let kernels = device::open(&settings, Dtype::Bf16)?.describe().to_string();
    let profile = Profile { cpu: super::cpu(), kernels, model, kinds };
    match arguments.format {
        Format::Table => profile.print_tables(),
        Format::Json => say(&serde_json::to_string_pretty(&profile).context("write the profile")?),
    }
    Ok(())
}

fn kinds(subject: &mut Subject<Timed<Device>>, notes: &Notes, rounds: usize) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    let (datums, tokens) = (FULL.datums, FULL.datum_tokens);
    let mut sums = Sums::default();
    for round in 0..=rounds {
        let work = subject.training_step(&vec![tokens; datums]);
        notes.take();
        subject.complete_in_steps(work, |step| {
            let costs = notes.take();
            if round > 0 {
                sums.add(step, costs);
            }
        })?;
    }
    (sums.units, sums.tokens) = (rounds, (rounds * datums * tokens) as u64);
    kinds.push(sums.kind(format!("training step, {datums} x {tokens} tokens")));

    let (prompts, tokens) = (FULL.prefill_prompts, FULL.prefill_tokens);
    let prefill = |step: &Step| step.prefill_tokens > 0;
    let sums = sampled(subject, notes, rounds, (prompts, tokens, 1), prefill)?;
    kinds.push(sums.kind(format!("prefill step, {prompts} prompts of {tokens} tokens")));

    for &sequences in FULL.sequences {
        // Every sequence draws a token, and no prompt is computed.
        let decode =
            |step: &Step| step.prefill_tokens == 0 && step.decode_tokens >= sequences as u64;
        let sizes = (sequences, FULL.prompt_tokens, FULL.new_tokens);
        let sums = sampled(subject, notes, rounds, sizes, decode)?;
        kinds.push(sums.kind(format!("decode step, {sequences} at a time")));
    }
    Ok(kinds)
}

/// The steps that are `wanted` of rounds of samples, each `(sequences, prompt tokens, new tokens)`.
fn sampled(
    subject: &mut Subject<Timed<Device>>,
    notes: &Notes,
    rounds: usize,
    (sequences, prompt, new): (usize, usize, usize),
    wanted: impl Fn(&Step) -> bool,
) -> Result<Sums> {
    let mut sums = Sums::default();
    for round in 0..=rounds {
        let work = subject.samples(sequences, prompt, new);
        notes.take();
        subject.complete_in_steps(work, |step| {
            let costs = notes.take();
            if round > 0 && wanted(&step) {
                sums.add(step, costs);
                sums.units += 1;
                let prefill = step.prefill_tokens;
                sums.tokens += if prefill > 0 { prefill } else { step.decode_tokens };
            }
        })?;
    }
    Ok(sums)
}

impl Sums {
    fn add(&mut self, step: Step, costs: Costs) {
        self.steps += 1;
        self.time += step.time;
        for (op, cost) in costs {
            let sum = self.costs.entry(op).or_default();
            sum.calls += cost.calls;
            sum.time += cost.time;
            sum.flops += cost.flops;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn kind(self, what: String) -> Kind {
        let units = self.units.max(1) as f64;
        let all = self.time.as_secs_f64();
        let share = |op: String, time: f64, calls: f64, gflops| OpShare {
            op,
            percent: 100.0 * time / all,
            ms: 1e3 * time / units,
            calls,
            gflops,
        };
        let mut ops: Vec<OpShare> = Vec::new();
        let mut within = 0.0;
        for (op, cost) in &self.costs {
            let name = match op.shape {
                Some((inputs, outputs)) => format!("{} {inputs} -> {outputs}", op.name),
                None => op.name.to_owned(),
            };
            let time = cost.time.as_secs_f64();
            within += time;
            ops.push(share(name, time, cost.calls as f64 / units, cost.gflops()));
        }
        ops.push(share("outside of ops".to_owned(), all - within, 1.0, None));
        ops.sort_by(|a, b| b.percent.total_cmp(&a.percent));
        let mut products = Cost::default();
        for cost in self.costs.values().filter(|cost| cost.flops > 0) {
            products.time += cost.time;
            products.flops += cost.flops;
        }
        Kind {
            what,
            steps: self.steps,
            ms: 1e3 * all / units,
            units: self.units,
            tokens_per_s: self.tokens as f64 / all,
            products_gflops: products.gflops().unwrap_or(0.0),
            ops,
        }
    }
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn gflops(&self) -> Option<f64> {
        (self.flops > 0).then(|| self.flops as f64 / self.time.as_secs_f64() / 1e9)
    }
}

impl Profile {
    fn print_tables(&self) {
        say(&format!("{}\n{}\nmodel {}", self.cpu, self.kernels, self.model));
        for kind in &self.kinds {
            kind.print_table();
        }
    }
}

impl Kind {
    fn print_table(&self) {
        let Self { what, ms, units, tokens_per_s, products_gflops, .. } = self;
        say(&format!(
            "\n{what}: {ms:.2} ms ({units} of them), {tokens_per_s:.0} tokens/s, \
             products {products_gflops:.0} GFLOP/s"
        ));
        say("     %       ms    calls  us/call  GFLOP/s  op");
        for OpShare { op, percent, ms, calls, gflops } in &self.ops {
            let each = 1e3 * ms / calls.max(f64::MIN_POSITIVE);
            let gflops = gflops.map_or(String::new(), |gflops| format!("{gflops:.0}"));
            say(&format!("{percent:>6.1} {ms:>8.3} {calls:>8.1} {each:>8.1} {gflops:>8}  {op}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tinsmith_backend::conformance::{self, Tolerances};
    use tinsmith_backend_cpu::{Config, CpuBackend, DtypeChoice, KernelChoice, choose};

    use super::*;

    #[test]
    fn a_timed_backend_computes_what_the_one_inside_does() {
        let kernels = choose(DtypeChoice::F32, KernelChoice::Auto, Dtype::F32).unwrap();
        let make = || {
            let inner = CpuBackend::new(Config { threads: 1, kernels }).unwrap();
            Timed::new(inner, Notes::default())
        };
        conformance::all(make, &Tolerances::F32);
    }

    #[test]
    fn shares_add_up() {
        let mut sums = Sums { units: 2, tokens: 100, ..Sums::default() };
        let cost = |ms, flops| Cost { calls: 4, time: Duration::from_millis(ms), flops };
        let op = |name| notes::Op { name, shape: None };
        let step = Step { time: Duration::from_millis(20), prefill_tokens: 0, decode_tokens: 0 };
        let costs = Costs::from([(op("add"), cost(2, 0)), (op("attention"), cost(6, 24_000_000))]);
        sums.add(step, costs.clone());
        sums.add(step, costs);
        let kind = sums.kind("steps".to_owned());
        assert_eq!((kind.ms, kind.tokens_per_s, kind.products_gflops), (20.0, 2500.0, 4.0));
        let shares: Vec<_> =
            kind.ops.iter().map(|op| (op.op.as_str(), op.percent.round(), op.gflops)).collect();
        assert_eq!(
            shares,
            [("outside of ops", 60.0, None), ("attention", 30.0, Some(4.0)), ("add", 10.0, None)]
        );
    }
}
