//! What a case of random schedules asks for: runs with their work, samplers with their jobs.

use std::{collections::BTreeMap, sync::Arc};

use tinsmith_engine::{AdamParams, Datum, LoraSpec, LossChoice, RunKey, SampleJob, Stop, Work};

use crate::{
    sequence_losses::Pairwise,
    tiny::{SplitMix64, adam, datum, job, text_of},
};

/// Stands for a loss that is no name of the registry.
const CUSTOM: &str = "custom";

const LOSSES: [&str; 8] = [
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    CUSTOM,
];
/// Prompts and datums begin with the first tokens of one of these.
const STEMS: usize = 3;
const STEM_TOKENS: usize = 70;
const TAIL_TOKENS: usize = 20;
pub(super) const DRAWN_TOKENS_MAX: usize = 16;
/// Of a prompt with its completion.
pub(super) const SEQUENCE_TOKENS_MAX: usize = STEM_TOKENS + TAIL_TOKENS + DRAWN_TOKENS_MAX;

/// One training run from its beginning.
#[derive(Clone, Debug)]
pub(super) struct RunPlan {
    pub(super) spec: LoraSpec,
    pub(super) steps: Vec<Step>,
}

/// What a run does, in order.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Score(Scoring),
    Optimize(AdamParams),
    /// A sampler of the weights as they are then, and what is asked of it.
    Snapshot(Vec<SampleJob>),
}

/// One request to score datums, or the same in several.
#[derive(Clone, Debug)]
pub(super) struct Scoring {
    /// One request for each.
    pub(super) parts: Vec<Vec<Datum>>,
    /// [`CUSTOM`]: [`Pairwise`].
    pub(super) loss: &'static str,
    pub(super) config: BTreeMap<String, f64>,
    pub(super) forward_only: bool,
}

impl Scoring {
    pub(super) fn work(&self, run: RunKey, datums: Vec<Datum>) -> Work {
        Work::ForwardBackward {
            run,
            datums,
            loss: match self.loss {
                CUSTOM => LossChoice::Custom(Arc::new(Pairwise)),
                name => name.into(),
            },
            config: self.config.clone(),
            forward_only: self.forward_only,
        }
    }
}

/// Draws plans.
#[derive(Debug)]
pub(super) struct Planner {
    pub(super) random: SplitMix64,
    stems: Vec<Vec<u32>>,
}

impl Planner {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let stems = (0..STEMS).map(|_| random.tokens(STEM_TOKENS)).collect();
        Self { random, stems }
    }

    pub(super) fn run(&mut self, steps: usize) -> RunPlan {
        let any = |random: &mut SplitMix64| random.below(4) > 0;
        let train_unembed = any(&mut self.random);
        let spec = LoraSpec {
            rank: 1 + self.random.below(9),
            seed: self.random.next(),
            train_attn: any(&mut self.random) || !train_unembed,
            train_mlp: any(&mut self.random),
            train_unembed,
        };
        RunPlan { spec, steps: (0..steps).map(|_| self.step()).collect() }
    }

    fn step(&mut self) -> Step {
        match self.random.below(8) {
            0..4 => Step::Score(self.scoring()),
            4..6 => Step::Optimize(AdamParams {
                weight_decay: 0.1,
                grad_clip_norm: [0.0, 0.5][self.random.below(2)],
                ..adam(0.02)
            }),
            _ => Step::Snapshot((0..=self.random.below(3)).map(|_| self.job()).collect()),
        }
    }

    pub(super) fn scoring(&mut self) -> Scoring {
        let loss = LOSSES[self.random.below(LOSSES.len())];
        let bounded = matches!(loss, "ppo" | "cispo" | "gspo");
        let config = match self.random.below(2) {
            1 if bounded => {
                let bounds = [("clip_low_threshold", 0.9), ("clip_high_threshold", 1.1)];
                bounds.map(|(name, bound)| (name.to_owned(), bound)).into()
            }
            _ => BTreeMap::new(),
        };
        let own_bounds = bounded && self.random.below(3) == 0;
        let datums: Vec<_> =
            (0..=self.random.below(4)).map(|_| self.datum(loss, own_bounds)).collect();
        let mut parts = vec![Vec::new()];
        for datum in datums {
            if self.random.below(4) == 0 && !parts[parts.len() - 1].is_empty() {
                parts.push(Vec::new());
            }
            parts.last_mut().unwrap().push(datum);
        }
        Scoring { parts, loss, config, forward_only: self.random.below(5) == 0 }
    }

    fn datum(&mut self, loss: &str, own_bounds: bool) -> Datum {
        let mut tokens = self.prompt();
        tokens.push(1);
        let mut datum = datum(&tokens);
        if loss == "cross_entropy" {
            datum.per_row = [1, 1, 2, 5][self.random.below(4)];
            datum.targets = self.random.tokens(datum.tokens.len() * datum.per_row);
        }
        let cells = datum.targets.len();
        let mut put = |name: &str, value: &mut dyn FnMut() -> f64| {
            #[expect(clippy::cast_possible_truncation, reason = "values are f32")]
            let values = (0..cells).map(|_| value() as f32).collect();
            datum.values.insert(name.to_owned(), values);
        };
        let random = &mut self.random;
        let mut sparse = || if random.below(3) == 0 { 0.0 } else { random.unit() };
        if loss == "cross_entropy" {
            put("weights", &mut sparse);
        } else {
            put("advantages", &mut sparse);
            put("logprobs", &mut || 2.0f64.mul_add(random.unit(), -2.0));
        }
        if loss == "stable_reinforce" {
            put("sampled", &mut || f64::from(u8::from(random.below(3) > 0)));
        }
        if loss == "gspo" && random.below(2) == 0 {
            put("sequence_ratio_mask", &mut || 0.1 + random.unit().abs());
        }
        if own_bounds {
            put("clip_low_threshold", &mut || random.unit().abs());
            put("clip_high_threshold", &mut || 1.0 + random.unit().abs());
        }
        datum
    }

    /// A stem's beginning, and perhaps something of its own.
    fn prompt(&mut self) -> Vec<u32> {
        let stem = self.random.below(STEMS);
        let shared = [STEM_TOKENS, self.random.below(STEM_TOKENS)][self.random.below(2)];
        let own = [0, self.random.below(TAIL_TOKENS)][self.random.below(2)];
        let mut tokens = self.stems[stem][..shared].to_vec();
        tokens.extend(self.random.tokens(own.max(usize::from(shared == 0))));
        tokens
    }

    pub(super) fn job(&mut self) -> SampleJob {
        let prompt = self.prompt();
        let mut job = job(&prompt, 1 + self.random.below(DRAWN_TOKENS_MAX));
        job.num_samples = 1 + self.random.below(3);
        job.seed = Some(self.random.next());
        job.temperature = [0.0, 0.7, 1.0, 1.0][self.random.below(4)];
        job.top_k = [None, None, Some(5)][self.random.below(3)];
        job.top_p = [1.0, 1.0, 0.8][self.random.below(3)];
        job.prompt_logprobs = self.random.below(2) == 0;
        job.stop = match self.random.below(4) {
            0 => Stop::Default,
            1 => Stop::Tokens(self.random.tokens(2)),
            2 => Stop::Strings(vec![text_of(self.random.below(64))]),
            _ => Stop::Tokens(Vec::new()),
        };
        job
    }
}
