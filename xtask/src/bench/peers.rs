//! `cargo xtask bench peers`: Tinsmith beside PyTorch with PEFT and llama.cpp, in turns, on the same machine.
//!
//! Each peer runs at its best: every setting is tried in every round, and its best median counts. A new row is an
//! entry of `ROWS` in `table.rs` and a function in `peers/` that measures it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    process::{self, Peer},
    table::{self, Machine, Measured, ROWS},
};
use crate::say;

mod alone;
mod sampling;
mod training;

const DATUMS: usize = 8;
const TOKENS: usize = 256;
const OURS: &str = "tinsmith";
const HELP: &str = "\
usage: cargo xtask bench peers [--rounds N] [--only GROUP,…] [--kernels SET] [--json FILE]

groups: train, decode, prefill, runs, ragged, threads, memory, optimizer, long, server, latency, clients";

/// What was asked for.
#[derive(Debug)]
struct Options {
    rounds: usize,
    only: Vec<String>,
    kernels: Option<String>,
    json: Option<String>,
}

/// Where it is measured.
struct Bench<'a> {
    root: &'a Path,
    options: &'a Options,
    model: PathBuf,
    /// What our own server says of itself.
    ready: Value,
    machine: Machine,
    /// GFLOP/s of the best product, all threads.
    attainable: f64,
    samples: Samples,
    measured: Vec<Measured>,
}

/// Answers by who gave them and to what.
#[derive(Debug, Default)]
struct Samples(BTreeMap<(String, String), Vec<Value>>);

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        say(HELP);
        return Ok(());
    }
    let options = Options::read(arguments)?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let mut bench = Bench::open(root, &options, folder.path())?;
    if ["train", "runs", "ragged", "threads"].iter().any(|group| options.wants(group)) {
        training::measure(&mut bench)?;
    }
    if options.wants("decode") || options.wants("prefill") {
        sampling::measure(&mut bench, folder.path())?;
    }
    for (name, measure) in alone::GROUPS {
        bench.group(name, *measure);
    }
    bench.print()
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self { rounds: 5, only: Vec::new(), kernels: None, json: None };
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            let value = rest.next().with_context(|| format!("read {name}: a value\n\n{HELP}"))?;
            match name.as_str() {
                "--rounds" => options.rounds = value.parse().context("read --rounds: a number")?,
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                "--kernels" => options.kernels = Some(value.clone()),
                "--json" => options.json = Some(value.clone()),
                _ => bail!("know {name}\n\n{HELP}"),
            }
        }
        ensure!(options.rounds > 0, "measure no rounds");
        for group in &options.only {
            ensure!(ROWS.iter().any(|row| row.group == group), "know {group}\n\n{HELP}");
        }
        Ok(options)
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == group)
    }
}

impl<'a> Bench<'a> {
    fn open(root: &'a Path, options: &'a Options, folder: &Path) -> Result<Self> {
        let model = folder.join("small");
        let text = model.to_str().context("read the temporary directory as UTF-8")?;
        let mut bench = Self {
            root,
            options,
            model: model.clone(),
            ready: Value::Null,
            machine: Machine::Vectors,
            attainable: 0.0,
            samples: Samples::default(),
            measured: Vec::new(),
        };
        bench.tinsmith(&["write-model", "small", text])?;
        say("measuring what this machine reaches at best");
        let machine: Value = bench.answer(&["machine", "--format", "json"])?;
        bench.ready = bench.peer(OURS, &[])?.ready.clone();
        let sets = machine["kernels"].as_array().context("read the kernel sets")?;
        if sets.iter().any(|set| set["set"].as_str().is_some_and(|set| set.contains("amx"))) {
            bench.machine = Machine::Tiles;
        }
        let same = |set: &&Value| {
            ["set", "path", "threads"].iter().all(|field| set[field] == bench.ready[field])
        };
        let set = sets.iter().find(same);
        bench.attainable = set
            .and_then(|set| set["attainable_gflops"].as_f64())
            .context("find these kernels among those that were measured")?;
        Ok(bench)
    }

    fn kernels(&self) -> Vec<&str> {
        self.options.kernels.iter().flat_map(|set| ["--kernels", set.as_str()]).collect()
    }

    fn tinsmith(&self, arguments: &[&str]) -> Result<String> {
        process::text(self.root, "cargo", &line(arguments))
    }

    fn answer(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.tinsmith(arguments)?;
        serde_json::from_str(&printed)
            .with_context(|| format!("read what `bench {}` printed", arguments.join(" ")))
    }

    fn peer(&self, label: &str, arguments: &[&str]) -> Result<Peer> {
        let arguments = [&["rounds"], &self.kernels()[..], arguments].concat();
        Peer::start(self.root, label, "cargo", &line(&arguments))
    }

    /// Measures a group that is wanted. One that cannot be measured says why in its rows.
    fn group(&mut self, name: &str, measure: fn(&mut Self) -> Result<()>) {
        if !self.options.wants(name) {
            return;
        }
        say(&format!("measuring {name}"));
        if let Err(error) = measure(self) {
            for row in ROWS.iter().filter(|row| row.group == name) {
                let text = format!("not measured: {error:#}");
                self.add(Measured { name: row.name, value: None, text, attainable: None });
            }
        }
    }

    /// A training step of all datums, as our own process takes it.
    fn train() -> String {
        format!("train{}", format!(" {TOKENS}").repeat(DATUMS))
    }

    fn add(&mut self, measured: Measured) {
        if !self.measured.iter().any(|other| other.name == measured.name) {
            self.measured.push(measured);
        }
    }

    fn share(&self, gflops: f64) -> Option<f64> {
        Some(100.0 * gflops / self.attainable)
    }

    /// A ratio of two rates.
    fn ratio(&mut self, name: &'static str, (ours, theirs): (f64, f64), note: &str) {
        let text = format!("{ours:.0} against {theirs:.0} tokens/s{note}");
        let value = Some(ours / theirs);
        self.add(Measured { name, value, text, attainable: None });
    }

    fn print(&self) -> Result<()> {
        let (cpu, kernels) = (&self.ready["cpu"], &self.ready["kernels"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        say(&format!(
            "\n{}, {}, attainable {:.0} GFLOP/s, medians of {} rounds\n",
            text(cpu),
            text(kernels),
            self.attainable,
            self.options.rounds
        ));
        say(&table::markdown(self.machine, &self.measured));
        if let Some(file) = &self.options.json {
            let all = json!({
                "cpu": cpu,
                "kernels": kernels,
                "attainable_gflops": self.attainable,
                "rounds": self.options.rounds,
                "rows": table::json(self.machine, &self.measured),
                "samples": self.samples.json(),
            });
            let text = serde_json::to_string_pretty(&all).context("write the figures")?;
            fs::write(file, text).with_context(|| format!("write {file}"))?;
        }
        Ok(())
    }
}

/// What runs a bench of the release build.
fn line<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let start = ["run", "--release", "--locked", "--quiet", "--package", "tinsmith-cli", "--"];
    [&start[..], &["bench"], arguments].concat()
}

impl Samples {
    /// The first round warms up.
    fn add(&mut self, round: usize, who: &str, case: &str, answer: Value) {
        if round > 0 {
            self.0.entry((who.to_owned(), case.to_owned())).or_default().push(answer);
        }
    }

    /// The median of a number of each answer; NaN without answers.
    fn median(&self, who: &str, case: &str, number: impl Fn(&Value) -> Option<f64>) -> f64 {
        let answers = self.0.get(&(who.to_owned(), case.to_owned()));
        let mut values: Vec<f64> = answers.into_iter().flatten().filter_map(number).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        let entries = self
            .0
            .iter()
            .map(|((who, case), answers)| json!({ "who": who, "case": case, "answers": answers }));
        entries.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_leave_out_the_first_round() {
        let mut samples = Samples::default();
        for (round, seconds) in [9.0, 3.0, 1.0, 2.0].into_iter().enumerate() {
            samples.add(round, OURS, "train 1", json!({ "seconds": seconds }));
        }
        let seconds = |answer: &Value| answer["seconds"].as_f64();
        assert_eq!(samples.median(OURS, "train 1", seconds), 2.0);
        assert!(samples.median(OURS, "train 2", seconds).is_nan());
    }

    #[test]
    fn options_are_checked() {
        let read = |words: &[&str]| {
            Options::read(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let options = read(&["--rounds", "2", "--only", "train,decode"]).unwrap();
        assert!(options.rounds == 2 && options.wants("decode") && !options.wants("long"));
        assert!(read(&["--only", "trane"]).is_err());
        assert!(read(&["--rounds", "0"]).is_err());
        assert!(read(&["--rounds"]).is_err());
    }
}
