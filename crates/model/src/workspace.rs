//! The buffers of a step. They are made once, grow to the largest step they have met, and are used again.

use tinsmith_backend::Backend;

use crate::{Result, batch::Lists, config::DecoderConfig, lora::Projection};

/// The buffers of a step; one serves training and inference in turn.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    pub(crate) stream: Stream<B>,
    /// The residual stream before each layer, where backward follows.
    pub(crate) inputs: Vec<B::Rows>,
    /// What else backward needs of each layer. A step that does not keep it uses the first for every layer.
    pub(crate) layers: Vec<LayerState<B>>,
    pub(crate) gradients: Option<Gradients<B>>,
    pub(crate) positions: Vec<u32>,
    pub(crate) identity: Vec<usize>,
    pub(crate) lists: Lists,
}

/// What a pass through the layers leaves behind for the way back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keep {
    /// There is no way back.
    Nothing,
    /// Each layer's input: its state is computed again.
    Inputs,
    /// Each layer's input and state.
    States,
}

/// What runs through the layers, and what each layer may overwrite.
#[derive(Debug)]
pub(crate) struct Stream<B: Backend> {
    /// The residual stream.
    pub(crate) x: B::Rows,
    /// Output of an RMS norm.
    pub(crate) normed: B::Rows,
    /// Queries after norm and rotation.
    pub(crate) q: B::Rows,
    /// Keys after norm and rotation.
    pub(crate) k: B::Rows,
    /// Input of the down projection.
    pub(crate) gated: B::Rows,
    /// Rows picked for the unembedding, before and after the final norm.
    pub(crate) picked: B::Rows,
    pub(crate) picked_normed: B::Rows,
}

/// Outputs of one layer's ops that backward reads. Norms, rotation and activation are computed again.
#[derive(Debug)]
pub(crate) struct LayerState<B: Backend> {
    pub(crate) q: B::Rows,
    pub(crate) k: B::Rows,
    pub(crate) v: B::Rows,
    pub(crate) attention: B::Rows,
    /// Log of the sum of exponentials of each row and head.
    pub(crate) lse: B::Rows,
    /// The residual stream before the MLP.
    pub(crate) middle: B::Rows,
    pub(crate) gate: B::Rows,
    pub(crate) up: B::Rows,
    /// What attention and MLP gave, before their norms; without rows where there are no such norms.
    pub(crate) projected: [B::Rows; 2],
    /// `x Aᵀ` of each projection.
    pub(crate) hidden: [B::Rows; Projection::ALL.len()],
}

/// Gradients on their way down.
#[derive(Debug)]
pub(crate) struct Gradients<B: Backend> {
    /// Of the residual stream.
    pub(crate) dx: B::Rows,
    /// Of a norm's output.
    pub(crate) dnormed: B::Rows,
    /// Of the rotated queries and keys.
    pub(crate) dq_rotated: B::Rows,
    pub(crate) dk_rotated: B::Rows,
    pub(crate) dq: B::Rows,
    pub(crate) dk: B::Rows,
    pub(crate) dv: B::Rows,
    pub(crate) dattention: B::Rows,
    pub(crate) dgated: B::Rows,
    pub(crate) dgate: B::Rows,
    pub(crate) dup: B::Rows,
}

impl<B: Backend> Workspace<B> {
    /// Empty buffers.
    ///
    /// # Errors
    /// No room on the device.
    pub fn new(b: &mut B, config: &DecoderConfig) -> Result<Self> {
        let stream = Stream {
            x: b.rows(0, config.hidden)?,
            normed: b.rows(0, config.hidden)?,
            q: b.rows(0, config.q_features())?,
            k: b.rows(0, config.kv_features())?,
            gated: b.rows(0, config.ffn)?,
            picked: b.rows(0, config.hidden)?,
            picked_normed: b.rows(0, config.hidden)?,
        };
        Ok(Self {
            stream,
            inputs: Vec::new(),
            layers: Vec::new(),
            gradients: None,
            positions: Vec::new(),
            identity: Vec::new(),
            lists: Lists::default(),
        })
    }

    /// Frees every buffer; the next step makes those that it needs.
    ///
    /// # Errors
    /// The device failed.
    pub fn release(&mut self, b: &mut B, config: &DecoderConfig) -> Result<()> {
        *self = Self::new(b, config)?;
        Ok(())
    }

    /// Makes room for a step of `rows` rows.
    pub(crate) fn prepare(
        &mut self,
        b: &mut B,
        config: &DecoderConfig,
        rows: usize,
        keep: Keep,
    ) -> Result<()> {
        let (inputs, layers) = match keep {
            Keep::Nothing => (0, 1),
            Keep::Inputs => (config.layers, 1),
            Keep::States => (config.layers, config.layers),
        };
        while self.inputs.len() < inputs {
            self.inputs.push(b.rows(0, config.hidden)?);
        }
        while self.layers.len() < layers {
            self.layers.push(LayerState::new(b, config)?);
        }
        for input in &mut self.inputs[..inputs] {
            b.resize(input, rows)?;
        }
        let stream = &mut self.stream;
        for buffer in
            [&mut stream.x, &mut stream.normed, &mut stream.q, &mut stream.k, &mut stream.gated]
        {
            b.resize(buffer, rows)?;
        }
        for layer in &mut self.layers[..layers] {
            layer.resize(b, rows, if config.post_norms { rows } else { 0 })?;
        }
        if self.identity.len() < rows {
            self.identity = (0..rows).collect();
        }
        Ok(())
    }

    /// Makes room for the gradients of a step; those of the layers only if they are asked for.
    pub(crate) fn prepare_gradients(
        &mut self,
        b: &mut B,
        config: &DecoderConfig,
        rows: usize,
        layers: bool,
    ) -> Result<()> {
        let mut gradients = match self.gradients.take() {
            Some(gradients) => gradients,
            None => Gradients::new(b, config)?,
        };
        gradients.resize(b, if layers { rows } else { 0 })?;
        self.gradients = Some(gradients);
        Ok(())
    }
}

impl<B: Backend> LayerState<B> {
    fn new(b: &mut B, config: &DecoderConfig) -> Result<Self> {
        let mut rows = |features: usize| b.rows(0, features);
        Ok(Self {
            q: rows(config.q_features())?,
            k: rows(config.kv_features())?,
            v: rows(config.kv_features())?,
            attention: rows(config.q_features())?,
            lse: rows(config.heads)?,
            middle: rows(config.hidden)?,
            gate: rows(config.ffn)?,
            up: rows(config.ffn)?,
            projected: [rows(config.hidden)?, rows(config.hidden)?],
            // `linear` sets both sizes.
            hidden: [rows(1)?, rows(1)?, rows(1)?, rows(1)?, rows(1)?, rows(1)?, rows(1)?],
        })
    }

    fn resize(&mut self, b: &mut B, rows: usize, projected: usize) -> Result<()> {
        for buffer in &mut self.projected {
            b.resize(buffer, projected)?;
        }
        for buffer in [
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.attention,
            &mut self.middle,
            &mut self.gate,
            &mut self.up,
        ] {
            b.resize(buffer, rows)?;
        }
        Ok(())
    }
}

impl<B: Backend> Gradients<B> {
    fn new(b: &mut B, config: &DecoderConfig) -> Result<Self> {
        let mut rows = |features: usize| b.rows(0, features);
        Ok(Self {
            dx: rows(config.hidden)?,
            dnormed: rows(config.hidden)?,
            dq_rotated: rows(config.q_features())?,
            dk_rotated: rows(config.kv_features())?,
            dq: rows(config.q_features())?,
            dk: rows(config.kv_features())?,
            dv: rows(config.kv_features())?,
            dattention: rows(config.q_features())?,
            dgated: rows(config.ffn)?,
            dgate: rows(config.ffn)?,
            dup: rows(config.ffn)?,
        })
    }

    fn resize(&mut self, b: &mut B, rows: usize) -> Result<()> {
        for buffer in [
            &mut self.dx,
            &mut self.dnormed,
            &mut self.dq_rotated,
            &mut self.dk_rotated,
            &mut self.dq,
            &mut self.dk,
            &mut self.dv,
            &mut self.dattention,
            &mut self.dgated,
            &mut self.dgate,
            &mut self.dup,
        ] {
            b.resize(buffer, rows)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tinsmith_backend::{ReferenceBackend, reference::Rows};

    use super::*;
    use crate::{
        batch::TrainBatch,
        decoder::Decoder,
        golden::{Golden, Ragged, minus},
        lora::{Adapter, LoraSpec, PairSet},
        memory::{StepShape, step_bytes},
    };

    /// A long step and then a short one use what was planned for each.
    #[test]
    fn steps_use_the_planned_memory() {
        for case in ["qwen3/untied", "gemma2/capped"] {
            check(case, false);
            check(case, true);
        }
    }

    fn check(case: &str, recompute: bool) {
        let (golden, mut b) = (Golden::open(case), ReferenceBackend);
        let decoder = Decoder::load(&mut b, &golden.dir).unwrap();
        let spec =
            LoraSpec { rank: 6, seed: 0, train_attn: true, train_mlp: true, train_unembed: true };
        let adapter = Adapter::new(&mut b, decoder.config(), spec).unwrap();
        let mut gradient = PairSet::zeros(&mut b, &adapter).unwrap();
        let mut workspace = Workspace::new(&mut b, decoder.config()).unwrap();
        for sequence in [&golden.sequences[3], &golden.sequences[2]] {
            let mut ragged = Ragged::default();
            ragged.push(sequence);
            let tokens = ragged.tokens.len();
            let weights = vec![1.0; tokens];
            let group = ragged.group(0..tokens, &adapter, Some(&mut gradient));
            let mut batch = TrainBatch { recompute, ..ragged.batch(vec![group]) };
            decoder
                .forward_backward(&mut b, &mut workspace, &mut batch, &mut |rows, _, out| {
                    minus(out, &weights[rows]);
                })
                .unwrap();
            let step = StepShape::datum(tokens, spec.rank, recompute);
            let numbers = tokens * (size_of::<u32>() + size_of::<usize>());
            let planned = step_bytes(&b, decoder.config(), &step) - numbers;
            assert_eq!(used_bytes(&workspace), planned);
        }
    }

    fn used_bytes(workspace: &Workspace<ReferenceBackend>) -> usize {
        let Stream { x, normed, q, k, gated, picked, picked_normed } = &workspace.stream;
        let mut buffers: Vec<&Rows> = vec![x, normed, q, k, gated, picked, picked_normed];
        buffers.extend(&workspace.inputs);
        for state in &workspace.layers {
            let LayerState { q, k, v, attention, lse, middle, gate, up, .. } = state;
            buffers.extend([q, k, v, attention, lse, middle, gate, up]);
            let LayerState { projected, hidden, .. } = state;
            buffers.extend(projected);
            buffers.extend(hidden);
        }
        let Gradients { dx, dnormed, dq_rotated, dk_rotated, dq, dk, dv, dattention, .. } =
            workspace.gradients.as_ref().unwrap();
        buffers.extend([dx, dnormed, dq_rotated, dk_rotated, dq, dk, dv, dattention]);
        let Gradients { dgated, dgate, dup, .. } = workspace.gradients.as_ref().unwrap();
        buffers.extend([dgated, dgate, dup]);
        let numbers: usize = buffers.iter().map(|buffer| buffer.values().len()).sum();
        numbers * size_of::<f64>()
    }
}
