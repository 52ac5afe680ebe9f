//! Golden files for tests: what PyTorch computes with small random models; see `tests/golden/*/make.py`.

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

use safetensors::SafeTensors;
use tinsmith_backend::{Backend, Dtype, Targets};

use crate::{
    batch::{TrainBatch, TrainGroup},
    decoder::Decoder,
    files::ModelDir,
    lora::{Adapter, PairSet},
    peft::{self, Files},
    tensors::widen,
    workspace::Workspace,
};

/// Every golden model.
pub(crate) const CASES: [&str; 10] = [
    "gemma2/capped",
    "gemma3/image",
    "gemma3/text",
    "llama/biased",
    "llama/scaled",
    "mistral/windowed",
    "qwen2/windowed",
    "qwen3/odd",
    "qwen3/tied",
    "qwen3/untied",
];

/// Farthest that a logprob may be from PyTorch's.
pub(crate) const LOGPROB_TOLERANCE: f32 = 1e-4;

/// Farthest that a LoRA gradient may be from PyTorch's, relative to its own size.
pub(crate) const GRADIENT_TOLERANCE: f32 = 1e-3;

/// One golden model, opened, with what is expected of it.
pub(crate) struct Golden {
    pub(crate) path: PathBuf,
    pub(crate) dir: ModelDir,
    pub(crate) sequences: Vec<Sequence>,
    /// Sequences that the gradients are of, with the weight of each row.
    pub(crate) trained: Vec<(usize, Vec<f32>)>,
    pub(crate) gradients: BTreeMap<String, Vec<f32>>,
    /// Over 2,048 tokens, in models whose rotation is scaled.
    pub(crate) long: Option<Long>,
}

/// A sequence of which a few rows are known: those, their targets and logprobs.
pub(crate) struct Long {
    pub(crate) tokens: Vec<u32>,
    pub(crate) rows: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) base_logprobs: Vec<f32>,
    pub(crate) logprobs: Vec<f32>,
}

pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) base_logprobs: Vec<f32>,
    pub(crate) logprobs: Vec<f32>,
}

/// Sequences one after another, as a step wants them.
#[derive(Default)]
pub(crate) struct Ragged {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) sequences: Vec<Range<usize>>,
}

impl Golden {
    pub(crate) fn open(case: &str) -> Self {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(case);
        let dir = ModelDir::open(&path).unwrap();
        let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| widen(file.tensor(name).unwrap().data(), Dtype::F32);
        let integers = |name: &str| -> Vec<u32> {
            let words = file.tensor(name).unwrap().data().as_chunks::<4>().0;
            words.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        let (tokens, targets) = (integers("tokens"), integers("targets"));
        let (base, adapted) = (floats("base_logprobs"), floats("logprobs"));
        let mut sequences = Vec::new();
        let mut begin = 0;
        for length in integers("lengths") {
            let rows = begin..begin + length as usize;
            begin = rows.end;
            sequences.push(Sequence {
                tokens: tokens[rows.clone()].to_vec(),
                targets: targets[rows.clone()].to_vec(),
                base_logprobs: base[rows.clone()].to_vec(),
                logprobs: adapted[rows].to_vec(),
            });
        }
        let mut weights = floats("weights").into_iter();
        let trained = integers("trained").into_iter().map(|index| {
            let index = index as usize;
            (index, weights.by_ref().take(sequences[index].tokens.len()).collect())
        });
        let trained = trained.collect();
        let gradients = file
            .names()
            .into_iter()
            .filter_map(|name| Some((name.strip_prefix("grad.")?.to_owned(), floats(name))));
        let gradients = gradients.collect();
        let long = file.tensor("long_tokens").is_ok().then(|| Long {
            tokens: integers("long_tokens"),
            rows: integers("long_rows"),
            targets: integers("long_targets"),
            base_logprobs: floats("long_base_logprobs"),
            logprobs: floats("long_logprobs"),
        });
        Self { path, dir, sequences, trained, gradients, long }
    }

    /// The files that PEFT saved.
    pub(crate) fn adapter_files(&self) -> Files {
        let read = |name: &str| {
            (name.to_owned(), std::fs::read(self.path.join("adapter").join(name)).unwrap())
        };
        [peft::CONFIG, peft::WEIGHTS].map(read).into()
    }

    /// `lora_alpha` in them, over ours.
    pub(crate) fn alpha_ratio(&self) -> f32 {
        if self.path.ends_with("odd") { 8.0 / 32.0 } else { 1.0 }
    }

    pub(crate) fn load<B: Backend>(&self, b: &mut B) -> (Decoder<B>, Adapter<B>) {
        let decoder = Decoder::load(b, &self.dir).unwrap();
        let adapter = peft::read_adapter(b, decoder.config(), &self.adapter_files()).unwrap();
        (decoder, adapter)
    }

    /// The sequences that the gradients are of, one datum each, and the weights of all rows.
    pub(crate) fn training(&self) -> (Ragged, Vec<f32>) {
        let (mut ragged, mut all) = (Ragged::default(), Vec::new());
        for (index, weights) in &self.trained {
            ragged.push(&self.sequences[*index]);
            all.extend(weights);
        }
        (ragged, all)
    }
}

impl Ragged {
    pub(crate) fn push(&mut self, sequence: &Sequence) {
        let begin = self.tokens.len();
        self.tokens.extend(&sequence.tokens);
        self.targets.extend(&sequence.targets);
        self.sequences.push(begin..self.tokens.len());
    }

    pub(crate) fn batch<'a, B: Backend>(
        &'a self,
        groups: Vec<TrainGroup<'a, B>>,
    ) -> TrainBatch<'a, B> {
        let targets = Targets { ids: &self.targets, per_row: 1 };
        TrainBatch {
            tokens: &self.tokens,
            sequences: self.sequences.clone(),
            groups,
            targets,
            recompute: false,
        }
    }

    /// Logprobs with one adapter, or none.
    pub(crate) fn forward<B: Backend>(
        &self,
        b: &mut B,
        decoder: &Decoder<B>,
        adapter: Option<&Adapter<B>>,
    ) -> Vec<f32> {
        let rows = 0..self.tokens.len();
        let group = |adapter| self.group(rows.clone(), adapter, None);
        let batch = self.batch(adapter.map(group).into_iter().collect());
        let mut workspace = Workspace::new(b, decoder.config()).unwrap();
        let mut logprobs = vec![0.0; self.tokens.len()];
        decoder.forward(b, &mut workspace, &batch, &mut logprobs).unwrap();
        logprobs
    }

    /// A group of all sequences within `rows`.
    pub(crate) fn group<'a, B: Backend>(
        &self,
        rows: Range<usize>,
        adapter: &'a Adapter<B>,
        gradient: Option<&'a mut PairSet<B>>,
    ) -> TrainGroup<'a, B> {
        let inside = |datum: &&Range<usize>| rows.start <= datum.start && datum.end <= rows.end;
        let datums = self.sequences.iter().filter(inside).cloned().collect();
        TrainGroup { rows, datums, adapter, gradient }
    }

    /// The gradient of `-Σ weight * logprob` for one adapter.
    pub(crate) fn backward<B: Backend>(
        &self,
        b: &mut B,
        decoder: &Decoder<B>,
        adapter: &Adapter<B>,
        weights: &[f32],
    ) -> PairSet<B> {
        let mut gradient = PairSet::zeros(b, adapter).unwrap();
        let mut workspace = Workspace::new(b, decoder.config()).unwrap();
        let rows = 0..self.tokens.len();
        let mut batch = self.batch(vec![self.group(rows, adapter, Some(&mut gradient))]);
        decoder
            .forward_backward(b, &mut workspace, &mut batch, &mut |rows, _, coefficients| {
                minus(coefficients, &weights[rows]);
            })
            .unwrap();
        gradient
    }
}

/// The coefficients of a weighted cross entropy.
pub(crate) fn minus(coefficients: &mut [f32], weights: &[f32]) {
    for (coefficient, weight) in coefficients.iter_mut().zip(weights) {
        *coefficient = -weight;
    }
}
