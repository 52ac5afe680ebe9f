//! Rotary embeddings as `config.json` asks for them: where transformers 4 and 5 write them, and the scaling
//! methods. To add a method: a line in [`scaled`] and its formula, with golden numbers.

use std::f64::consts::PI;

use tinsmith_backend::RopeTable;

use crate::{Result, config::ConfigJson};

/// Base of the rotary embedding where `config.json` names none, in every family but Gemma 3.
const THETA: f64 = 10_000.0;

/// The head that is rotated, and how long sequences get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeShape {
    pub(crate) head_dim: usize,
    pub(crate) max_positions: usize,
}

/// The rotary embedding that all layers share.
pub(crate) fn shared(json: &ConfigJson, shape: RopeShape) -> Result<RopeTable> {
    // transformers 5 prefers the old name where both are set.
    let fields = ["rope_scaling", "rope_parameters"];
    let field = fields.into_iter().find(|field| json.get(field).is_some());
    let field = field.unwrap_or("rope_parameters");
    for kind in ["full_attention", "sliding_attention"] {
        let nested = format!("{field}.{kind}");
        if json.get(&nested).is_some() {
            return Err(json.unsupported(&nested, "layers of this family share one rotation"));
        }
    }
    scaled(json, field, ("rope_theta", THETA), shape)
}

/// The rotary embedding that the object at `field` describes. Its base is `rope_theta` in there, else
/// `theta`: the name of a field beside it, and the number where that is missing too.
pub(crate) fn scaled(
    json: &ConfigJson,
    field: &str,
    theta: (&str, f64),
    shape: RopeShape,
) -> Result<RopeTable> {
    let inside = |name: &str| format!("{field}.{name}");
    for field in ["partial_rotary_factor", &inside("partial_rotary_factor")] {
        if json.number_or(field, 1.0)? != 1.0 {
            return Err(json.unsupported(field, "partly rotated heads are not supported"));
        }
    }
    let theta = base(json, &inside("rope_theta"), theta)?;
    let scaling = Scaling { json, field, theta, shape };
    let kinds = ["rope_type", "type"].map(inside);
    let Some(kind) = kinds.into_iter().find(|kind| json.get(kind).is_some()) else {
        let factor = inside("factor");
        if json.get(&factor).is_some() {
            return Err(json.unsupported(&factor, "there is no `rope_type` beside it"));
        }
        return Ok(rope_table(theta, shape.head_dim));
    };
    let table = match json.text(&kind)? {
        "default" => rope_table(theta, shape.head_dim),
        "linear" => scaling.linear()?,
        "llama3" => scaling.llama3()?,
        "yarn" => scaling.yarn()?,
        _ => {
            let why = "only `default`, `linear`, `llama3` and `yarn` are supported";
            return Err(json.unsupported(&kind, why));
        }
    };
    let positive = |number: &f32| number.is_finite() && *number > 0.0;
    if !(table.inverse_frequencies.iter().all(positive) && positive(&table.amplitude)) {
        return Err(json.unsupported(field, "it gives frequencies that are no positive numbers"));
    }
    Ok(table)
}

/// Standard rotary embedding: `theta^(-2i / head_dim)`, the exponent rounded to f32 as transformers does.
pub fn rope_table(theta: f64, head_dim: usize) -> RopeTable {
    table(waves(theta, head_dim).map(|wave| 1.0 / wave))
}

/// Tokens per radian of each pair.
fn waves(theta: f64, head_dim: usize) -> impl Iterator<Item = f32> {
    #[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
    let exponent = move |i: usize| (2 * i) as f32 / head_dim as f32;
    (0..head_dim / 2).map(move |i| narrow(theta.powf(f64::from(exponent(i)))))
}

fn table(inverse_frequencies: impl Iterator<Item = f32>) -> RopeTable {
    RopeTable { inverse_frequencies: inverse_frequencies.collect(), amplitude: 1.0 }
}

fn base(json: &ConfigJson, inside: &str, (beside, default): (&str, f64)) -> Result<f64> {
    let field = if json.get(inside).is_some() { inside } else { beside };
    let theta = json.number_or(field, default)?;
    if !(theta.is_finite() && theta > 1.0) {
        return Err(json.unsupported(field, "it must be a number over 1"));
    }
    Ok(theta)
}

/// A scaling method's settings. Each method rounds where transformers 5 does: numbers of the file are f64,
/// tables are f32.
struct Scaling<'a> {
    json: &'a ConfigJson,
    /// Of the object with the settings.
    field: &'a str,
    theta: f64,
    shape: RopeShape,
}

impl Scaling<'_> {
    /// Positions counted `factor` times slower.
    fn linear(&self) -> Result<RopeTable> {
        let factor = narrow(self.number("factor")?);
        Ok(table(self.waves().map(|wave| 1.0 / wave / factor)))
    }

    /// Llama 3.1: long waves `factor` times slower, short ones as they are, a ramp between.
    fn llama3(&self) -> Result<RopeTable> {
        let factor = narrow(self.number("factor")?);
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        let old = self.original_positions()?;
        let (longest, shortest) = (narrow(old / low), narrow(old / high));
        let adjust = |wave: f32| {
            let frequency = 1.0 / wave;
            let length = narrow(2.0 * PI) / frequency;
            if length > longest {
                return frequency / factor;
            }
            if length < shortest {
                return frequency;
            }
            let smooth = (narrow(old) / length - narrow(low)) / narrow(high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        };
        Ok(table(self.waves().map(adjust)))
    }

    /// `YaRN` (Peng et al. 2023): slow pairs `factor` times slower, fast ones as they are, a ramp over the
    /// pairs between, and larger sines.
    fn yarn(&self) -> Result<RopeTable> {
        let old = self.original_positions()?;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2⁵³")]
        let (max_positions, dim) = (self.shape.max_positions as f64, self.shape.head_dim as f64);
        let factor = self.optional("factor")?.unwrap_or(max_positions / old);
        let pair = |turns: f64| dim * (old / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let mut low = pair(self.optional("beta_fast")?.unwrap_or(32.0));
        let mut high = pair(self.optional("beta_slow")?.unwrap_or(1.0));
        if self.json.flag_or(&self.inside("truncate"), true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let adjust = |(i, wave): (usize, f32)| {
            #[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
            let ramp = ((i as f32 - narrow(low)) / narrow(high - low)).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            1.0 / (narrow(factor) * wave) * (1.0 - keep) + 1.0 / wave * keep
        };
        let inverse_frequencies = self.waves().enumerate().map(adjust).collect();
        Ok(RopeTable { inverse_frequencies, amplitude: narrow(self.yarn_amplitude(factor)?) })
    }

    fn yarn_amplitude(&self, factor: f64) -> Result<f64> {
        let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let scales = (self.optional("mscale")?, self.optional("mscale_all_dim")?);
        Ok(match (self.optional("attention_factor")?, scales) {
            (Some(amplitude), _) => amplitude,
            (None, (Some(all), Some(dims))) => grown(all) / grown(dims),
            (None, (None, _) | (_, None)) => grown(1.0),
        })
    }

    /// Tokens of the sequences that the model was trained with before it was stretched.
    fn original_positions(&self) -> Result<f64> {
        const NAME: &str = "original_max_position_embeddings";
        let field = if self.json.get(NAME).is_some() { NAME } else { &self.inside(NAME) };
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2⁵³")]
        self.json.number_or(field, self.shape.max_positions as f64)
    }

    fn waves(&self) -> impl Iterator<Item = f32> {
        waves(self.theta, self.shape.head_dim)
    }

    fn inside(&self, name: &str) -> String {
        format!("{}.{name}", self.field)
    }

    fn number(&self, name: &str) -> Result<f64> {
        self.json.number(&self.inside(name))
    }

    /// `None` where it is missing, null or 0, which transformers takes for missing.
    fn optional(&self, name: &str) -> Result<Option<f64>> {
        let number = self.json.number_or(&self.inside(name), 0.0)?;
        Ok((number != 0.0).then_some(number))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "tables are f32")]
fn narrow(number: f64) -> f32 {
    number as f32
}
