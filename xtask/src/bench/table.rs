//! The figures that are aimed at, and what was measured beside them, as Markdown or JSON.

use serde_json::{Value, json};

/// Which instructions the machine has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Machine {
    /// AVX2 or AVX-512 for products in f32.
    Vectors,
    /// AMX.
    Tiles,
}

/// What is reached for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

use Target::{AtLeast, AtMost};

/// A figure with its targets.
#[derive(Debug)]
pub(crate) struct Row {
    /// What `--only` calls the rows that are measured together.
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    unit: &'static str,
    vectors: Target,
    tiles: Target,
}

const fn row(
    (group, name): (&'static str, &'static str),
    what: &'static str,
    unit: &'static str,
    vectors: Target,
    tiles: Target,
) -> Row {
    Row { group, name, what, unit, vectors, tiles }
}

/// All rows, in the order in which they are printed.
pub(crate) const ROWS: &[Row] = &[
    row(
        ("train", "train"),
        "training step, 8 × 256 tokens, LoRA rank 32, against PyTorch + PEFT",
        "×",
        AtLeast(1.3),
        AtLeast(10.0),
    ),
    row(
        ("train", "attainable"),
        "the same as a share of the attainable GEMM rate",
        "%",
        AtLeast(75.0),
        AtLeast(40.0),
    ),
    row(
        ("decode", "decode 1"),
        "decode against llama.cpp, 1 sequence",
        "×",
        AtLeast(1.1),
        AtLeast(1.1),
    ),
    row(
        ("decode", "decode 8"),
        "decode against llama.cpp, 8 sequences",
        "×",
        AtLeast(1.3),
        AtLeast(1.5),
    ),
    row(
        ("decode", "decode 32"),
        "decode against llama.cpp, 32 sequences",
        "×",
        AtLeast(1.5),
        AtLeast(3.0),
    ),
    row(
        ("prefill", "prefill"),
        "prefill of 4 × 512 tokens against llama.cpp",
        "×",
        AtLeast(1.0),
        AtLeast(4.0),
    ),
    row(
        ("runs", "runs"),
        "8 runs of one datum each against one run of 8 datums",
        "×",
        AtLeast(0.9),
        AtLeast(0.85),
    ),
    row(
        ("ragged", "ragged"),
        "datums of 16 to 512 tokens against datums of 256",
        "×",
        AtLeast(0.95),
        AtLeast(0.9),
    ),
    row(
        ("threads", "threads"),
        "training step, all threads against 1",
        "×",
        AtLeast(1.9),
        AtLeast(1.8),
    ),
    row(
        ("threads", "threads by CPU time"),
        "the same, tokens a CPU-second (where cores are shared)",
        "×",
        AtLeast(0.95),
        AtLeast(0.9),
    ),
    row(
        ("memory", "memory"),
        "peak of a step over weights and adapter state",
        "MiB",
        AtMost(150.0),
        AtMost(150.0),
    ),
    row(
        ("optimizer", "optimizer"),
        "optimizer and gradient bookkeeping, share of a step",
        "%",
        AtMost(3.0),
        AtMost(5.0),
    ),
    row(
        ("long", "long"),
        "FLOP/s on a datum of 32,768 tokens against datums of 1,024",
        "×",
        AtLeast(0.8),
        AtLeast(0.7),
    ),
    row(
        ("server", "first token"),
        "unnamed sampler save to first token, p50",
        "ms",
        AtMost(20.0),
        AtMost(20.0),
    ),
    row(("server", "start"), "ready to serve after start, p50", "ms", AtMost(500.0), AtMost(500.0)),
    row(
        ("server", "optim_step"),
        "`optim_step` without gradients, submit to result, p50",
        "ms",
        AtMost(10.0),
        AtMost(10.0),
    ),
    row(
        ("latency", "beside training"),
        "first token while 8 × 256-token steps run, p95",
        "ms",
        AtMost(300.0),
        AtMost(300.0),
    ),
    row(
        ("latency", "beside a long datum"),
        "first token during one 32,768-token datum, p95",
        "ms",
        AtMost(300.0),
        AtMost(300.0),
    ),
    row(
        ("clients", "clients"),
        "64 clients over HTTP, 128-token completions, against the engine alone",
        "×",
        AtLeast(0.9),
        AtLeast(0.9),
    ),
];

/// What a row came to here.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The row's [`Row::name`].
    pub(crate) name: &'static str,
    /// In the row's unit; `None`: it could not be measured.
    pub(crate) value: Option<f64>,
    /// Both sides, or why there is no value.
    pub(crate) text: String,
    /// Of the attainable GEMM rate, where there are products to speak of.
    pub(crate) attainable: Option<f64>,
}

impl Target {
    fn is_reached(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }

    fn text(self, unit: &str) -> String {
        let (sign, bound) = match self {
            AtLeast(bound) => ('≥', bound),
            AtMost(bound) => ('≤', bound),
        };
        format!("{sign} {bound} {unit}")
    }
}

impl Row {
    fn target(&self, machine: Machine) -> Target {
        match machine {
            Machine::Vectors => self.vectors,
            Machine::Tiles => self.tiles,
        }
    }

    fn cell(&self, machine: Machine, here: Machine, measured: &Measured) -> String {
        let target = self.target(machine);
        let wanted = target.text(self.unit);
        match measured.value.filter(|_| machine == here) {
            None => format!("{wanted}: not measured"),
            Some(value) => {
                let sign = if target.is_reached(value) { "reached" } else { "missed" };
                format!("{wanted}: **{}** {sign}", figure(value))
            }
        }
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// The rows that were measured, as a Markdown table.
pub(crate) fn markdown(here: Machine, measured: &[Measured]) -> String {
    let mut lines = vec![
        "| figure | measured | of attainable | AVX2 machine | AMX machine |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for (row, measured) in found(measured) {
        let share = measured.attainable.map_or(String::new(), |share| format!("{share:.0} %"));
        let [vectors, tiles] =
            [Machine::Vectors, Machine::Tiles].map(|machine| row.cell(machine, here, measured));
        lines.push(format!("| {} | {} | {share} | {vectors} | {tiles} |", row.what, measured.text));
    }
    lines.join("\n")
}

/// The same for machines.
pub(crate) fn json(here: Machine, measured: &[Measured]) -> Value {
    let rows = found(measured).map(|(row, measured)| {
        let target = row.target(here);
        json!({
            "name": row.name,
            "figure": row.what,
            "value": measured.value,
            "unit": row.unit,
            "measured": measured.text,
            "attainable_percent": measured.attainable,
            "target": target.text(row.unit),
            "reached": measured.value.map(|value| target.is_reached(value)),
        })
    });
    rows.collect()
}

fn found(measured: &[Measured]) -> impl Iterator<Item = (&'static Row, &Measured)> {
    ROWS.iter().filter_map(|row| {
        measured.iter().find(|measured| measured.name == row.name).map(|measured| (row, measured))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_machine_is_not_measured() {
        let measured = |value| Measured {
            name: "train",
            value,
            text: "8,000 against 400 tokens/s".to_owned(),
            attainable: Some(41.2),
        };
        let table = markdown(Machine::Tiles, &[measured(Some(20.0))]);
        let line = table.lines().last().unwrap();
        assert!(
            line.contains("| 41 % | ≥ 1.3 ×: not measured | ≥ 10 ×: **20.0** reached |"),
            "{line}"
        );
        let table = markdown(Machine::Vectors, &[measured(Some(1.2))]);
        assert!(table.contains("≥ 1.3 ×: **1.20** missed | ≥ 10 ×: not measured"), "{table}");
        let reached = &json(Machine::Tiles, &[measured(None)])[0]["reached"];
        assert!(reached.is_null());
    }

    #[test]
    fn names_are_unique() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }
}
