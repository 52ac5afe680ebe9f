//! LoRA (Hu et al. 2021): which matrices an adapter trains, its values, and pairs in its shapes.

use tinsmith_backend::{
    AdamW, Backend,
    philox::{philox4x32_10, uniform_f64},
};

use crate::{Error, Result, config::DecoderConfig};

/// `alpha` of every adapter: an adapter's product is scaled by `32 / rank`.
pub const ALPHA: f32 = 32.0;

/// Largest rank of an adapter.
pub const RANK_MAX: usize = 1024;

/// What an adapter is made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LoraSpec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Key of the random numbers in A. Zero for an adapter that was read from files.
    pub seed: u64,
    /// Trains q, k, v and o.
    pub train_attn: bool,
    /// Trains gate, up and down.
    pub train_mlp: bool,
    /// Trains the unembedding.
    pub train_unembed: bool,
}

impl LoraSpec {
    /// Factor on `x Aᵀ Bᵀ`.
    pub fn scale(&self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "ranks are at most RANK_MAX")]
        let rank = self.rank as f32;
        ALPHA / rank
    }

    /// Whether any layer has something to train.
    pub(crate) fn trains_layers(&self) -> bool {
        self.train_attn || self.train_mlp
    }

    pub(crate) fn trains(mut self, site: Site) -> bool {
        *self.flag_of(site)
    }

    /// The switch that decides about a site.
    pub(crate) fn flag_of(&mut self, site: Site) -> &mut bool {
        match site {
            Site::Layer(_, projection) if projection.is_attention() => &mut self.train_attn,
            Site::Layer(..) => &mut self.train_mlp,
            Site::Unembed => &mut self.train_unembed,
        }
    }

    /// Refuses a spec that no adapter can have.
    ///
    /// # Errors
    /// [`Error::Adapter`] says which limit it breaks.
    pub fn check(&self) -> Result<()> {
        if !(1..=RANK_MAX).contains(&self.rank) {
            let problem = format!("rank {} is not between 1 and {RANK_MAX}", self.rank);
            return Err(Error::Adapter(problem));
        }
        if !(self.train_attn || self.train_mlp || self.train_unembed) {
            let problem = "at least one of train_attn, train_mlp and train_unembed must be true";
            return Err(Error::Adapter(problem.to_owned()));
        }
        Ok(())
    }
}

/// The linear ops of a layer, in the order in which they run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Projection {
    pub(crate) const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    pub(crate) fn is_attention(self) -> bool {
        matches!(self, Self::Q | Self::K | Self::V | Self::O)
    }

    pub(crate) fn has_bias(self, config: &DecoderConfig) -> bool {
        match self {
            Self::Q | Self::K | Self::V => config.qkv_bias,
            Self::O => config.output_bias,
            Self::Gate | Self::Up | Self::Down => config.mlp_bias,
        }
    }

    /// `(outputs, inputs)`.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        match self {
            Self::Q => (config.q_features(), config.hidden),
            Self::K | Self::V => (config.kv_features(), config.hidden),
            Self::O => (config.hidden, config.q_features()),
            Self::Gate | Self::Up => (config.ffn, config.hidden),
            Self::Down => (config.hidden, config.ffn),
        }
    }

    /// Its name in the model files, e.g. `model.layers.0.self_attn.q_proj`.
    pub(crate) fn file_name(self, config: &DecoderConfig, layer: usize) -> String {
        self.under(config.names.layers, config, layer)
    }

    fn under(self, layers: &str, config: &DecoderConfig, layer: usize) -> String {
        format!("{layers}.{layer}.{}", config.names.projections[self as usize])
    }
}

/// A matrix that an adapter can train.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Site {
    Layer(usize, Projection),
    Unembed,
}

impl Site {
    /// Every site of a model, layer by layer, the unembedding last: the order of an adapter's tensors
    /// everywhere, in the gradient norm too.
    pub(crate) fn all(config: &DecoderConfig) -> impl Iterator<Item = Self> {
        let layer = |layer| Projection::ALL.map(|projection| Self::Layer(layer, projection));
        (0..config.layers).flat_map(layer).chain([Self::Unembed])
    }

    /// `(outputs, inputs)`.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        match self {
            Self::Layer(_, projection) => projection.shape(config),
            Self::Unembed => (config.vocab_size, config.hidden),
        }
    }

    /// The module's name in an adapter's files.
    pub(crate) fn module(self, config: &DecoderConfig) -> String {
        let names = &config.names.modules;
        match self {
            Self::Layer(layer, projection) => projection.under(names.layers, config, layer),
            Self::Unembed => names.unembed.to_owned(),
        }
    }

    /// The number of the site among an adapter's `slots`.
    pub(crate) fn index(self, slots: usize) -> usize {
        match self {
            Self::Layer(layer, projection) => layer * Projection::ALL.len() + projection as usize,
            Self::Unembed => slots - 1,
        }
    }
}

/// One adapter: A and B of every site that it trains.
#[derive(Debug)]
pub struct Adapter<B: Backend> {
    spec: LoraSpec,
    /// One slot for every site of the model.
    sites: Vec<Option<B::Lora>>,
}

impl<B: Backend> Adapter<B> {
    /// A new adapter: A uniform in ±1/√inputs, a function of (seed, tensor name, element) alone; B zero.
    ///
    /// # Errors
    /// A spec out of its limits, or no room on the device.
    pub fn new(b: &mut B, config: &DecoderConfig, spec: LoraSpec) -> Result<Self> {
        Self::from_host(b, config, spec, |site| Ok(initial(config, &spec, site)))
    }

    /// An adapter from host values, `(A, B)` of each site that `spec` trains.
    pub(crate) fn from_host(
        b: &mut B,
        config: &DecoderConfig,
        spec: LoraSpec,
        mut values: impl FnMut(Site) -> Result<(Vec<f32>, Vec<f32>)>,
    ) -> Result<Self> {
        spec.check()?;
        let mut sites = Vec::new();
        for site in Site::all(config) {
            sites.push(if spec.trains(site) {
                let (first, second) = values(site)?;
                Some(b.lora(&first, &second, spec.rank)?)
            } else {
                None
            });
        }
        Ok(Self { spec, sites })
    }

    /// What the adapter was made from.
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The same values in buffers of its own.
    ///
    /// # Errors
    /// No room on the device.
    pub fn copy(&self, b: &mut B) -> Result<Self> {
        let mut sites = Vec::with_capacity(self.sites.len());
        for site in &self.sites {
            sites.push(match site {
                Some(lora) => {
                    let (first, second) = b.read_lora(lora);
                    Some(b.lora(&first, &second, self.spec.rank)?)
                }
                None => None,
            });
        }
        Ok(Self { spec: self.spec, sites })
    }

    /// One `AdamW` step of every site, in the fixed order of sites.
    pub fn adamw(
        &mut self,
        b: &mut B,
        gradient: &PairSet<B>,
        moments: &mut Moments<B>,
        step: &AdamW,
    ) {
        let Moments { first, second, .. } = moments;
        let pairs = gradient.sites.iter().zip(&mut first.sites).zip(&mut second.sites);
        for (lora, ((gradient, first), second)) in self.sites.iter_mut().zip(pairs) {
            if let (Some(lora), Some(gradient), Some(first), Some(second)) =
                (lora, gradient, first, second)
            {
                b.adamw(lora, gradient, first, second, step);
            }
        }
    }

    pub(crate) fn site(&self, site: Site) -> Option<&B::Lora> {
        self.sites[site.index(self.sites.len())].as_ref()
    }
}

/// Two f32 arrays for each site of an adapter, in its shapes: a gradient, or a moment of the optimizer.
#[derive(Debug)]
pub struct PairSet<B: Backend> {
    sites: Vec<Option<B::Pair>>,
}

impl<B: Backend> PairSet<B> {
    /// Zeros in the shapes of `adapter`.
    ///
    /// # Errors
    /// No room on the device.
    pub fn zeros(b: &mut B, adapter: &Adapter<B>) -> Result<Self> {
        let pair = |site: &Option<B::Lora>| site.as_ref().map(|lora| b.pair(lora)).transpose();
        let sites: Result<Vec<_>, _> = adapter.sites.iter().map(pair).collect();
        Ok(Self { sites: sites? })
    }

    /// Sets every element to zero.
    pub fn zero(&mut self, b: &mut B) {
        for pair in self.sites.iter_mut().flatten() {
            b.zero_pair(pair);
        }
    }

    /// Takes the values of another set of the same adapter, without allocating.
    pub fn copy_from(&mut self, b: &mut B, from: &Self) {
        for (to, from) in self.sites.iter_mut().zip(&from.sites) {
            if let (Some(to), Some(from)) = (to, from) {
                b.copy_pair(to, from);
            }
        }
    }

    /// The sum of the squares of every element: site after site, A before B.
    pub fn sum_squares(&self, b: &mut B) -> f64 {
        let mut sum = 0.0;
        for pair in self.sites.iter().flatten() {
            let (first, second) = b.sum_squares(pair);
            sum += first;
            sum += second;
        }
        sum
    }

    pub(crate) fn site(&self, site: Site) -> Option<&B::Pair> {
        self.sites[site.index(self.sites.len())].as_ref()
    }

    /// Every site's pair, by [`Site::index`].
    pub(crate) fn sites_mut(&mut self) -> Vec<Option<&mut B::Pair>> {
        self.sites.iter_mut().map(Option::as_mut).collect()
    }

    pub(crate) fn site_mut(&mut self, site: Site) -> Option<&mut B::Pair> {
        let index = site.index(self.sites.len());
        self.sites[index].as_mut()
    }
}

/// The optimizer's state of one adapter.
#[derive(Debug)]
pub struct Moments<B: Backend> {
    /// Mean of the gradients.
    pub first: PairSet<B>,
    /// Mean of their squares.
    pub second: PairSet<B>,
    /// Steps done.
    pub step: u64,
}

impl<B: Backend> Moments<B> {
    /// Zeros in the shapes of `adapter`, before the first step.
    ///
    /// # Errors
    /// No room on the device.
    pub fn zeros(b: &mut B, adapter: &Adapter<B>) -> Result<Self> {
        let (first, second) = (PairSet::zeros(b, adapter)?, PairSet::zeros(b, adapter)?);
        Ok(Self { first, second, step: 0 })
    }

    /// Back to before the first step.
    pub fn zero(&mut self, b: &mut B) {
        self.first.zero(b);
        self.second.zero(b);
        self.step = 0;
    }
}

/// A and B of a site before its first step.
pub(crate) fn initial(config: &DecoderConfig, spec: &LoraSpec, site: Site) -> (Vec<f32>, Vec<f32>) {
    let (outputs, inputs) = site.shape(config);
    let name = crate::peft::tensor_name(&site.module(config), "A");
    (initial_a(spec.seed, &name, spec.rank, inputs), vec![0.0; outputs * spec.rank])
}

/// A `[rank, inputs]`, uniform in ±1/√inputs. The stream is Philox4x32-10 under the key `seed`; its counter
/// is the element's index and the first half of the tensor name's BLAKE3 digest.
fn initial_a(seed: u64, name: &str, rank: usize, inputs: usize) -> Vec<f32> {
    let digest = blake3::hash(name.as_bytes());
    let (words, _) = digest.as_bytes().as_chunks::<4>();
    let stream = [u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1])];
    let key = halves(seed);
    #[expect(clippy::cast_precision_loss, reason = "a count of features fits an f64")]
    let bound = 1.0 / (inputs as f64).sqrt();
    let element = |index: usize| {
        let [low, high] = halves(index as u64);
        let random = philox4x32_10([low, high, stream[0], stream[1]], key);
        #[expect(clippy::cast_possible_truncation, reason = "adapters are f32")]
        let value = (bound * 2.0f64.mul_add(uniform_f64(random[0], random[1]), -1.0)) as f32;
        value
    };
    (0..rank * inputs).map(element).collect()
}

/// The lower and the upper half.
fn halves(word: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is asked for")]
    let halves = [word as u32, (word >> 32) as u32];
    halves
}

#[cfg(test)]
mod tests {
    use tinsmith_backend::ReferenceBackend;

    use super::*;
    use crate::{
        golden::Golden,
        memory::{adapter_bytes, pairs_bytes},
    };

    const SPEC: LoraSpec =
        LoraSpec { rank: 4, seed: 7, train_attn: true, train_mlp: true, train_unembed: true };

    fn matrices(spec: LoraSpec) -> Vec<(Vec<f32>, Vec<f32>)> {
        let (golden, mut b) = (Golden::open("qwen3/odd"), ReferenceBackend);
        let adapter = Adapter::new(&mut b, golden.dir.config(), spec).unwrap();
        adapter.sites.iter().flatten().map(|lora| b.read_lora(lora)).collect()
    }

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let matrices = matrices(SPEC);
        assert_eq!(matrices.len(), 2 * 7 + 1);
        let (first, second) = &matrices[0];
        assert!(second.iter().all(|value| *value == 0.0));
        let bound = 1.0 / 40f32.sqrt();
        assert!(first.iter().all(|value| value.abs() <= bound));
        let mean = first.iter().sum::<f32>() / first.len() as f32;
        let variance = first.iter().map(|value| value * value).sum::<f32>() / first.len() as f32;
        assert!(mean.abs() < 0.1 * bound, "{mean}");
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.2, "{variance}");
    }

    /// Replaying a journal makes the adapter again from its seed: these numbers never change.
    #[test]
    fn a_is_a_function_of_seed_and_name() {
        let all = matrices(SPEC);
        assert_eq!(all[0].0[..3], [-0.092046015, 0.13061605, 0.114479296]);
        assert_eq!(matrices(SPEC), all);
        assert_ne!(all[0].0, all[1].0[..160]);
        assert_ne!(matrices(LoraSpec { seed: 8, ..SPEC })[0], all[0]);
        let part = matrices(LoraSpec { train_attn: false, train_unembed: false, ..SPEC });
        assert_eq!(part[0], all[4]);
    }

    #[test]
    fn sizes_are_known_before_there_is_an_adapter() {
        let (golden, b) = (Golden::open("qwen3/untied"), ReferenceBackend);
        let spec = LoraSpec { train_attn: false, ..SPEC };
        let planned = adapter_bytes(&b, golden.dir.config(), &spec);
        assert_eq!(planned, 8 * 4 * (3 * 3 * (72 + 100) + 72 + 259));
        assert_eq!(pairs_bytes(&b, golden.dir.config(), &spec), planned);
    }

    #[test]
    fn specs_have_limits() {
        let error = |spec: LoraSpec| spec.check().unwrap_err().to_string();
        let rank = error(LoraSpec { rank: 1025, ..SPEC });
        assert_eq!(rank, "use the adapter: rank 1025 is not between 1 and 1024");
        let nothing =
            LoraSpec { train_attn: false, train_mlp: false, train_unembed: false, ..SPEC };
        assert_eq!(
            error(nothing),
            "use the adapter: at least one of train_attn, train_mlp and train_unembed must be true"
        );
    }
}
