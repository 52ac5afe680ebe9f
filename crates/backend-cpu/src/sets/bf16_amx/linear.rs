//! The linear ops of the set, as jobs.

use std::ops::Range;

use tinsmith_backend::LoraUse;

use super::{
    gradient::{Big, BigRows, Gradients},
    job::{Arena, Job, Multiplier, Output, PRODUCTS_MAX, Source},
};
use crate::{
    buffer::{Lora, View, ViewMut},
    linear::Side,
    pool::Pool,
};

/// Memory that the set's ops use again.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    arena: Arena,
    pub(crate) gradients: Gradients,
}

/// One linear map; its views begin with the op's first row.
#[derive(Clone, Copy)]
pub(crate) struct Map<'a> {
    pub(crate) panels: View,
    pub(crate) outputs: usize,
    pub(crate) bias: Option<*const f32>,
    pub(crate) uses: &'a [LoraUse<'a, Lora>],
    /// Takes `x Aᵀ`.
    pub(crate) hidden: Option<ViewMut>,
    pub(crate) out: ViewMut,
    pub(crate) add: bool,
}

const NOWHERE: View = View { pointer: std::ptr::null(), stride: 0 };

impl Map<'_> {
    pub(crate) const NONE: Self = Self {
        panels: NOWHERE,
        outputs: 0,
        bias: None,
        uses: &[],
        hidden: None,
        out: ViewMut { pointer: std::ptr::null_mut(), stride: 0 },
        add: false,
    };
}

impl MapBack<'_> {
    pub(crate) const NONE: Self =
        Self { dy: NOWHERE, outputs: 0, panels: NOWHERE, uses: &[], hidden: None };
}

/// One linear map's gradient: from its outputs to its inputs.
#[derive(Clone, Copy)]
pub(crate) struct MapBack<'a> {
    pub(crate) dy: View,
    pub(crate) outputs: usize,
    /// Panels of the transposed matrix; not looked at where no input's gradient is asked for.
    pub(crate) panels: View,
    pub(crate) uses: &'a [LoraUse<'a, Lora>],
    /// Takes `dy B`.
    pub(crate) hidden: Option<ViewMut>,
}

/// The gradient of what linear maps read.
#[derive(Clone, Copy)]
pub(crate) struct InputGradient {
    pub(crate) out: ViewMut,
    pub(crate) inputs: usize,
    pub(crate) add: bool,
}

impl Tiles {
    /// Several linear maps of the same rows, which are `rows` of the step.
    ///
    /// # Safety
    ///
    /// The set is available; views reach all rows, inputs and padded outputs; nobody else writes the
    /// outputs.
    pub(crate) unsafe fn forward(
        &mut self,
        (x, inputs): (View, usize),
        rows: &Range<usize>,
        maps: &[Map<'_>],
        pool: &Pool,
    ) {
        for maps in maps.chunks(PRODUCTS_MAX) {
            let mut multipliers = [Multiplier::NONE; PRODUCTS_MAX];
            let mut outputs = [const { Output::NONE }; PRODUCTS_MAX];
            for (i, map) in maps.iter().enumerate() {
                let Map { panels, outputs: width, bias, uses, hidden, out, add } = *map;
                multipliers[i] = Multiplier { source: 0, panels, uses, side: Side::Down, hidden };
                outputs[i] = Output { out, outputs: width, bias, add, of: i..i + 1 };
            }
            let job = Job {
                rows: rows.len(),
                first: rows.start,
                sources: &[Source { x, inputs }],
                multipliers: &multipliers[..maps.len()],
                outputs: &outputs[..maps.len()],
            };
            job.run(&mut self.arena, pool);
        }
    }

    /// The sums that were pushed since the gradients were cleared: over `x`, and over what the last
    /// [`Tiles::backward`] read, of `outputs` features each.
    ///
    /// # Safety
    ///
    /// The set is available; `x` and that op have the rows of all datums; nobody else writes the gradients.
    pub(crate) unsafe fn sum_gradients(
        &mut self,
        (x, inputs): (View, usize),
        outputs: impl Iterator<Item = usize>,
        pool: &Pool,
    ) {
        let big = |source: usize, features| {
            let rows = BigRows::Rounded(self.arena.rounded(source));
            Big { rows, features }
        };
        let mut bigs = [const { None }; 1 + PRODUCTS_MAX];
        bigs[0] = Some(Big { rows: BigRows::Floats(x), features: inputs });
        for (source, (to, features)) in bigs[1..].iter_mut().zip(outputs).enumerate() {
            *to = Some(big(source, features));
        }
        self.gradients.run(&bigs, pool);
    }

    /// `dy B` of several linear maps, and the sum of what they give to the rows that they read.
    ///
    /// # Safety
    ///
    /// As for [`Tiles::forward`].
    pub(crate) unsafe fn backward(
        &mut self,
        mut dx: Option<InputGradient>,
        rows: &Range<usize>,
        maps: &[MapBack<'_>],
        pool: &Pool,
    ) {
        for maps in maps.chunks(PRODUCTS_MAX) {
            let mut multipliers = [Multiplier::NONE; PRODUCTS_MAX];
            let mut sources = [Source::NONE; PRODUCTS_MAX];
            for (i, map) in maps.iter().enumerate() {
                let MapBack { dy, outputs, panels, uses, hidden } = *map;
                multipliers[i] = Multiplier { source: i, panels, uses, side: Side::Up, hidden };
                sources[i] = Source { x: dy, inputs: outputs };
            }
            let output = dx.map(|InputGradient { out, inputs, add }| Output {
                out,
                outputs: inputs,
                bias: None,
                add,
                of: 0..maps.len(),
            });
            let job = Job {
                rows: rows.len(),
                first: rows.start,
                sources: &sources[..maps.len()],
                multipliers: &multipliers[..maps.len()],
                outputs: output.as_slice(),
            };
            job.run(&mut self.arena, pool);
            dx = dx.map(|dx| InputGradient { add: true, ..dx });
        }
    }
}
