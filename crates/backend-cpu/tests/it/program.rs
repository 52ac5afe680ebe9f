//! A step of every op on any backend, with numbers made up from a counter.

use std::ops::Range;

use half::bf16;
use tinsmith_backend::{
    Activation, AdamW, Ask, AttentionForward, AttentionShape, Backend, Draw, Dtype, Linear,
    LoraGradientUse, LoraUse, PagedSequence, Qkv, QkvGradients, Query, RawMatrix, Rope, RopeTable,
    Targets, Unembedding,
};

/// Sizes of one program.
#[derive(Debug)]
pub(crate) struct Shape {
    lengths: &'static [usize],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    features: usize,
    outputs: usize,
    ranks: [usize; 2],
}

pub(crate) const SHAPES: [Shape; 5] = [
    Shape {
        lengths: &[1, 0, 33, 7],
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        features: 24,
        outputs: 37,
        ranks: [1, 7],
    },
    Shape {
        lengths: &[70, 65],
        heads: 3,
        kv_heads: 1,
        head_dim: 40,
        features: 300,
        outputs: 130,
        ranks: [64, 3],
    },
    Shape {
        lengths: &[130, 3],
        heads: 2,
        kv_heads: 2,
        head_dim: 64,
        features: 512,
        outputs: 600,
        ranks: [32, 16],
    },
    Shape {
        lengths: &[70, 2],
        heads: 4,
        kv_heads: 2,
        head_dim: 256,
        features: 64,
        outputs: 80,
        ranks: [2, 5],
    },
    Shape {
        lengths: &[1],
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        features: 1,
        outputs: 1,
        ranks: [1, 1],
    },
];

/// What one op gave.
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f32>,
}

/// Runs every op, on matrices that are stored as `stored`: f32 or bf16.
pub(crate) fn program<B: Backend>(backend: &mut B, shape: &Shape, stored: Dtype) -> Vec<Output> {
    let mut run = Run { backend, shape, stored, outputs: Vec::new(), counter: 1 };
    run.elementwise();
    run.linear();
    run.attention();
    for softcap in [None, Some(1.5)] {
        run.score(softcap);
        run.sample(softcap);
    }
    run.adamw();
    run.outputs
}

struct Run<'a, B> {
    backend: &'a mut B,
    shape: &'a Shape,
    stored: Dtype,
    outputs: Vec<Output>,
    counter: u64,
}

impl<B: Backend> Run<'_, B> {
    /// Numbers in about `-scale..scale` (`SplitMix64`).
    fn numbers(&mut self, count: usize, scale: f32) -> Vec<f32> {
        let number = || {
            self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.counter;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            scale * ((z >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        std::iter::repeat_with(number).take(count).collect()
    }

    fn rows(&mut self, rows: usize, features: usize) -> B::Rows {
        let values = self.numbers(rows * features, 1.5);
        let mut buffer = self.backend.rows(rows, features).unwrap();
        self.backend.write_rows(&mut buffer, &values);
        buffer
    }

    fn weight(&mut self, outputs: usize, inputs: usize) -> B::Weight {
        let values = self.numbers(outputs * inputs, 2.0 / (inputs as f32).sqrt());
        let bytes = match self.stored {
            Dtype::Bf16 => {
                let halves = values.iter().map(|&value| bf16::from_f32(value));
                halves.flat_map(|half| half.to_le_bytes()).collect::<Vec<_>>()
            }
            Dtype::F32 | Dtype::F16 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let raw = RawMatrix { bytes: &bytes, dtype: self.stored, rows: outputs, cols: inputs };
        self.backend.weight(&raw).unwrap()
    }

    fn vector(&mut self, features: usize, offset: f32) -> B::Vector {
        let values = self.numbers(features, 1.0);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let raw = RawMatrix { bytes: &bytes, dtype: Dtype::F32, rows: 1, cols: features };
        self.backend.vector(&raw, offset).unwrap()
    }

    fn lora(&mut self, rank: usize, (outputs, inputs): (usize, usize)) -> B::Lora {
        let a = self.numbers(rank * inputs, 1.0 / (inputs as f32).sqrt());
        let b = self.numbers(outputs * rank, 1.0);
        self.backend.lora(&a, &b, rank).unwrap()
    }

    fn keep(&mut self, name: &'static str, values: Vec<f32>) {
        self.outputs.push(Output { name, values });
    }

    fn keep_rows(&mut self, name: &'static str, rows: &B::Rows) {
        let values = self.backend.read_rows(rows);
        self.keep(name, values);
    }

    fn keep_pair(&mut self, name: &'static str, pair: &B::Pair) {
        let (a, b) = self.backend.read_pair(pair);
        self.keep(name, a);
        self.keep(name, b);
    }

    fn total(&self) -> usize {
        self.shape.lengths.iter().sum()
    }

    fn sequences(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let lengths = self.shape.lengths.iter();
        lengths.map(|length| (start..start + length, start += length).0).collect()
    }

    fn elementwise(&mut self) {
        let (rows, features) = (self.total(), self.shape.features);
        let table = self.weight(50, features);
        let mut x = self.rows(rows, features);
        let tokens = (0..rows as u32).map(|i| i * 7 % 50).collect::<Vec<_>>();
        self.backend.embed(&mut x, &table, &tokens, 1.25);
        self.keep_rows("embed", &x);
        let indices = (0..rows).rev().collect::<Vec<_>>();
        let mut out = self.rows(rows, features);
        self.backend.gather(&mut out, &x, &indices);
        self.keep_rows("gather", &out);
        let other = self.rows(rows, features);
        self.backend.add(&mut out, &other);
        self.keep_rows("add", &out);
        let weight = self.vector(features, 1.0);
        self.backend.rms_norm(&mut out, &x, &weight, 1e-6);
        self.keep_rows("rms_norm", &out);
        let dy = self.rows(rows, features);
        self.backend.rms_norm_backward(&mut out, &dy, &x, &weight, 1e-6);
        self.keep_rows("rms_norm_backward", &out);
        for activation in [Activation::Silu, Activation::GeluTanh] {
            self.backend.gated(&mut out, &x, &dy, activation);
            self.keep_rows("gated", &out);
            let (gate, up) = (self.rows(rows, features), self.rows(rows, features));
            let mut dup = self.rows(rows, features);
            self.backend.gated_backward(&mut out, &mut dup, &dy, &gate, &up, activation);
            self.keep_rows("gated_backward dgate", &out);
            self.keep_rows("gated_backward dup", &dup);
        }
        self.rope();
    }

    fn rope(&mut self) {
        let (rows, head_dim) = (self.total(), self.shape.head_dim);
        let features = self.shape.heads * head_dim;
        let (x, dy) = (self.rows(rows, features), self.rows(rows, features));
        let mut out = self.rows(rows, features);
        let weight = self.vector(head_dim, 0.0);
        let frequency = |i: usize| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32);
        let inverse_frequencies = (0..head_dim / 2).map(frequency).collect();
        let table = RopeTable { inverse_frequencies, amplitude: 1.1 };
        let positions = (0..rows as u32).map(|i| i * i % 150_000).collect::<Vec<_>>();
        for norm in [None, Some((&weight, 1e-6))] {
            let rope = || Rope { norm, table: &table, positions: &positions, head_dim };
            self.backend.rope(&mut out, &x, rope());
            self.keep_rows("rope", &out);
            self.backend.rope_backward(&mut out, &dy, &x, rope());
            self.keep_rows("rope_backward", &out);
        }
    }

    fn linear(&mut self) {
        let (rows, inputs, outputs) = (self.total(), self.shape.features, self.shape.outputs);
        let weight = self.weight(outputs, inputs);
        let bias = self.vector(outputs, 0.0);
        let [first, second] = self.shape.ranks;
        let loras = [self.lora(first, (outputs, inputs)), self.lora(second, (outputs, inputs))];
        let (x, dy) = (self.rows(rows, inputs), self.rows(rows, outputs));
        let mut out = self.rows(rows, outputs);
        let split = self.shape.lengths[0];
        let uses = [
            LoraUse { rows: 0..split, lora: &loras[0], scale: 0.5 },
            LoraUse { rows: split..rows, lora: &loras[1], scale: 2.0 },
        ];
        let mut hidden = self.backend.rows(0, 1).unwrap();
        for add in [false, true] {
            let linear = Linear { weight: &weight, bias: Some(&bias), uses: &uses, add };
            self.backend.linear(&mut out, &x, linear, Some(&mut hidden));
            self.keep_rows("linear", &out);
        }
        let linear = Linear { weight: &weight, bias: None, uses: &uses[1..], add: false };
        self.backend.linear(&mut out, &x, linear, None);
        self.keep_rows("linear, one use", &out);
        let mut dx = self.rows(rows, inputs);
        let mut gradients = self.zero_pairs(&loras);
        let sequences = self.sequences();
        let (left, right) = gradients.split_at_mut(1);
        let mut uses = [
            LoraGradientUse {
                rows: 0..split,
                datums: &sequences[..1],
                lora: &loras[0],
                gradient: &mut left[0],
                scale: 0.5,
            },
            LoraGradientUse {
                rows: split..rows,
                datums: &sequences[1..],
                lora: &loras[1],
                gradient: &mut right[0],
                scale: 2.0,
            },
        ];
        self.backend.linear_backward(Some(&mut dx), &dy, &x, &weight, &hidden, &mut uses);
        self.keep_rows("linear_backward dx", &dx);
        for gradient in &gradients {
            self.keep_pair("linear_backward gradient", gradient);
        }
    }

    fn zero_pairs(&mut self, loras: &[B::Lora]) -> Vec<B::Pair> {
        let backend = &mut *self.backend;
        let zero = |lora| {
            let mut pair = backend.pair(lora).unwrap();
            backend.zero_pair(&mut pair);
            pair
        };
        loras.iter().map(zero).collect()
    }

    fn attention(&mut self) {
        let Shape { heads, kv_heads, head_dim, .. } = *self.shape;
        for (window, softcap) in [
            (None, None),
            (None, Some(0.8)),
            (Some(1), None),
            (Some(20), Some(1.5)),
            (Some(32), None),
            (Some(64), Some(30.0)),
            (Some(1000), None),
        ] {
            let scale = 1.0 / (head_dim as f32).sqrt();
            self.attend(&AttentionShape { heads, kv_heads, head_dim, scale, window, softcap });
        }
    }

    fn attend(&mut self, shape: &AttentionShape) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        let rows = self.total();
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let (q, dout) = (self.rows(rows, wide), self.rows(rows, wide));
        let (k, v) = (self.rows(rows, narrow), self.rows(rows, narrow));
        let (mut out, mut lse) = (self.rows(rows, wide), self.backend.rows(0, heads).unwrap());
        let sequences = self.sequences();
        let qkv = || Qkv { q: &q, k: &k, v: &v };
        self.backend.attention(&mut out, &mut lse, qkv(), &sequences, shape);
        self.keep_rows("attention", &out);
        self.keep_rows("attention lse", &lse);
        let mut dq = self.rows(rows, wide);
        let (mut dk, mut dv) = (self.rows(rows, narrow), self.rows(rows, narrow));
        let gradients = QkvGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let forward = AttentionForward { qkv: qkv(), out: &out, lse: &lse, dout: &dout };
        self.backend.attention_backward(gradients, forward, &sequences, shape);
        for (name, rows) in [("dq", &dq), ("dk", &dk), ("dv", &dv)] {
            self.keep_rows(name, rows);
        }
        let mut cache = self.backend.cache(16, 2, shape).unwrap();
        let blocks = (0..16u32).rev().collect::<Vec<_>>();
        let mut used = 0;
        let paged = sequences.iter().map(|rows| {
            let count = rows.len().div_ceil(32);
            used += count;
            let blocks = &blocks[used - count..used];
            PagedSequence { rows: rows.clone(), position: 0, blocks }
        });
        let paged = paged.collect::<Vec<_>>();
        self.backend.cache_write(&mut cache, 1, &k, &v, &paged);
        let training = self.backend.read_rows(&out);
        self.backend.attention_paged(&mut out, &q, &cache, 1, &paged, shape);
        assert_eq!(self.backend.read_rows(&out), training, "prefill gives what training gives");
        for (i, mut one) in paged.into_iter().enumerate() {
            for row in sequences[i].clone() {
                one =
                    PagedSequence { rows: row..row + 1, position: row - sequences[i].start, ..one };
                self.backend.attention_paged(&mut out, &q, &cache, 1, &[one.clone()], shape);
            }
        }
        assert_eq!(self.backend.read_rows(&out), training, "decode gives what training gives");
    }

    fn score(&mut self, softcap: Option<f32>) {
        let (rows, inputs, vocabulary) = (self.total(), self.shape.features, self.shape.outputs);
        let weight = self.weight(vocabulary, inputs);
        let x = self.rows(rows, inputs);
        let loras = [self.lora(self.shape.ranks[0], (vocabulary, inputs))];
        let ids = (0..2 * rows as u32).map(|i| i * 13 % vocabulary as u32).collect::<Vec<_>>();
        let targets = Targets { ids: &ids, per_row: 2 };
        let uses = [LoraUse { rows: 0..rows, lora: &loras[0], scale: 0.7 }];
        let unembedding = Unembedding { weight: &weight, softcap };
        let mut logprobs = vec![0.0; 2 * rows];
        self.backend.score(&mut logprobs, &x, unembedding, &uses, targets);
        let mut dx = self.rows(rows, inputs);
        let mut gradients = self.zero_pairs(&loras);
        let mut again = vec![0.0; 2 * rows];
        let sequences = self.sequences();
        let mut uses = [LoraGradientUse {
            rows: 0..rows,
            datums: &sequences,
            lora: &loras[0],
            gradient: &mut gradients[0],
            scale: 0.7,
        }];
        let mut coefficients = |rows: Range<usize>, logprobs: &[f32], out: &mut [f32]| {
            again[2 * rows.start..2 * rows.end].copy_from_slice(logprobs);
            for (i, (out, logprob)) in out.iter_mut().zip(logprobs).enumerate() {
                *out = if (rows.start + i / 2) % 5 == 2 { 0.0 } else { 0.1 * logprob - 1.0 };
            }
        };
        let (dx_out, coefficients) = (Some(&mut dx), &mut coefficients);
        self.backend.score_backward(dx_out, &x, unembedding, &mut uses, targets, coefficients);
        assert_eq!(logprobs.len(), again.len());
        self.keep("score", logprobs);
        self.keep("score_backward logprobs", again);
        self.keep_rows("score_backward dx", &dx);
        self.keep_pair("score_backward gradient", &gradients[0]);
    }

    fn sample(&mut self, softcap: Option<f32>) {
        let (rows, inputs, vocabulary) = (self.total(), self.shape.features, self.shape.outputs);
        let weight = self.weight(vocabulary, inputs);
        let x = self.rows(rows, inputs);
        let draws = (0..rows).map(|i| Draw {
            temperature: [1.0, 0.0, 0.6, 1.7][i % 4],
            top_k: [None, Some(3), Some(1000)][i / 4 % 3],
            top_p: [1.0, 0.5, 0.95][i / 12 % 3],
            uniform: (i as f64 * 0.618).fract(),
        });
        let count = vocabulary.min(40);
        let asks = draws.enumerate().flat_map(|(row, draw)| {
            let top = Query::Top { count, temperature: draw.temperature };
            [Query::Draw(draw), top].map(|query| Ask { row, query })
        });
        let asks = asks.collect::<Vec<_>>();
        let unembedding = Unembedding { weight: &weight, softcap };
        let mut drawn = Vec::new();
        self.backend.sample(&mut drawn, &x, unembedding, &[], &asks);
        self.keep("sample tokens", drawn.iter().map(|drawn| drawn.token as f32).collect());
        self.keep("sample logprobs", drawn.iter().map(|drawn| drawn.logprob).collect());
    }

    fn adamw(&mut self) {
        let shape = (self.shape.outputs, self.shape.features);
        let rank = self.shape.ranks[1];
        let mut lora = self.lora(rank, shape);
        let mut pairs = self.zero_pairs(std::slice::from_ref(&lora));
        pairs.extend(self.zero_pairs(std::slice::from_ref(&lora)));
        let mut gradient = self.backend.pair(&lora).unwrap();
        let (first, second) = pairs.split_at_mut(1);
        for step in 1..=20 {
            let a = self.numbers(rank * shape.1, 1.0);
            let b = self.numbers(rank * shape.0, 1.0);
            self.backend.write_pair(&mut gradient, &a, &b);
            let step = AdamW {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-12,
                weight_decay: 0.01,
                step,
                gradient_scale: 0.7,
            };
            self.backend.adamw(&mut lora, &gradient, &mut first[0], &mut second[0], &step);
        }
        let (a, b) = self.backend.read_lora(&lora);
        self.keep("adamw a", a);
        self.keep("adamw b", b);
        self.keep_pair("adamw second", &pairs[1]);
        let (a, b) = self.backend.sum_squares(&pairs[1]);
        self.keep("sum_squares", vec![a as f32, b as f32]);
    }
}
