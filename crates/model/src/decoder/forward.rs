//! The layers, forward. Training and inference run the same ops with the same arguments, attention aside,
//! so that a sampled token's logprob is the trainer's, bit for bit.

use std::ops::Range;

use tinsmith_backend::{Backend, Linear, LinearPart, LoraUse, PagedSequence, Qkv, Rope};

use super::{Decoder, LayerWeights};
use crate::{
    batch::Spans,
    lora::{Projection, Site},
    workspace::{Keep, LayerState, Stream, Workspace},
};

/// How a step's queries find their keys.
pub(super) enum Attend<'p, B: Backend> {
    /// Whole sequences, within the step.
    Whole(&'p [Range<usize>]),
    /// Through the cache.
    Paged { cache: &'p mut B::Cache, sequences: &'p [PagedSequence<'p>] },
}

/// One way through the layers.
pub(super) struct Pass<'p, 'a, B: Backend> {
    b: &'p mut B,
    spans: &'p Spans<'a, B>,
    attend: Attend<'p, B>,
    /// Whether backward will read each layer's state.
    keep: bool,
    /// Used again for each op.
    pub(super) uses: Vec<LoraUse<'a, B::Lora>>,
}

impl<'p, 'a, B: Backend> Pass<'p, 'a, B> {
    pub(super) fn new(
        b: &'p mut B,
        spans: &'p Spans<'a, B>,
        attend: Attend<'p, B>,
        keep: bool,
        uses: Vec<LoraUse<'a, B::Lora>>,
    ) -> Self {
        Self { b, spans, attend, keep, uses }
    }
}

/// The projection of one layer that an op runs.
struct LayerLinear<'w, B: Backend> {
    weights: &'w LayerWeights<B>,
    layer: usize,
    projection: Projection,
    add: bool,
}

/// Where the output of attention or MLP goes, and what is kept of it.
struct Output<'w, B: Backend> {
    x: &'w mut B::Rows,
    normed: &'w mut B::Rows,
    projected: &'w mut B::Rows,
    hidden: &'w mut B::Rows,
}

impl<B: Backend> Decoder<B> {
    /// Embeds the tokens and runs them through every layer; leaves the residual stream in the workspace.
    pub(super) fn run_layers(
        &self,
        pass: &mut Pass<'_, '_, B>,
        workspace: &mut Workspace<B>,
        tokens: &[u32],
        keep: Keep,
    ) {
        assert_eq!(workspace.positions.len(), tokens.len(), "sequences tile the rows");
        pass.b.embed(&mut workspace.stream.x, &self.embed, tokens, self.config.embed_scale);
        let Workspace { stream, inputs, layers, positions, identity, .. } = workspace;
        for layer in 0..self.config.layers {
            if keep != Keep::Nothing {
                pass.b.gather(&mut inputs[layer], &stream.x, &identity[..tokens.len()]);
            }
            let state = &mut layers[if keep == Keep::States { layer } else { 0 }];
            self.run_layer(pass, layer, (stream, state), positions, identity);
        }
    }

    /// Runs the residual stream through one layer.
    pub(super) fn run_layer(
        &self,
        pass: &mut Pass<'_, '_, B>,
        layer: usize,
        (stream, state): (&mut Stream<B>, &mut LayerState<B>),
        positions: &[u32],
        identity: &[usize],
    ) {
        self.attention(pass, layer, stream, state, positions);
        if pass.keep {
            pass.b.gather(&mut state.middle, &stream.x, &identity[..positions.len()]);
        }
        self.mlp(pass, layer, stream, state);
    }

    /// `x += o(attention(rope(q), rope(k), v))` of the normed x, with a norm around `o` if there is one.
    fn attention(
        &self,
        pass: &mut Pass<'_, '_, B>,
        layer: usize,
        stream: &mut Stream<B>,
        state: &mut LayerState<B>,
        positions: &[u32],
    ) {
        let weights = &self.layers[layer];
        let LayerState { q, k, v, attention, lse, projected: [projected, _], hidden, .. } = state;
        pass.b.rms_norm(
            &mut stream.normed,
            &stream.x,
            &weights.attention_norm,
            self.config.rms_eps,
        );
        let [q_hidden, k_hidden, v_hidden, ..] = hidden;
        let outputs = [
            (Projection::Q, &mut *q, q_hidden),
            (Projection::K, &mut *k, k_hidden),
            (Projection::V, &mut *v, v_hidden),
        ];
        pass.linears(&stream.normed, (weights, layer), outputs);
        let (q_rope, k_rope) = self.ropes(layer, positions);
        pass.b.rope(&mut stream.q, q, q_rope);
        pass.b.rope(&mut stream.k, k, k_rope);
        let shape = self.config.attention_shape(layer);
        match &mut pass.attend {
            Attend::Whole(sequences) => {
                let qkv = Qkv { q: &stream.q, k: &stream.k, v };
                pass.b.attention(attention, lse, qkv, sequences, &shape);
            }
            Attend::Paged { cache, sequences } => {
                pass.b.cache_write(cache, layer, &stream.k, v, sequences);
                pass.b.attention_paged(attention, &stream.q, cache, layer, sequences, &shape);
            }
        }
        let hidden = &mut hidden[Projection::O as usize];
        let Stream { x, normed, .. } = stream;
        let norm = weights.post_norms.as_ref().map(|norms| &norms[0]);
        let output = Output { x, normed, projected, hidden };
        let op = LayerLinear { weights, layer, projection: Projection::O, add: false };
        self.add_output(pass, attention, &op, norm, output);
    }

    /// `x += down(activation(gate) * up)` of the normed x, with a norm around `down` if there is one.
    fn mlp(
        &self,
        pass: &mut Pass<'_, '_, B>,
        layer: usize,
        stream: &mut Stream<B>,
        state: &mut LayerState<B>,
    ) {
        let weights = &self.layers[layer];
        let LayerState { gate, up, projected: [_, projected], hidden, .. } = state;
        pass.b.rms_norm(&mut stream.normed, &stream.x, &weights.mlp_norm, self.config.rms_eps);
        let [.., gate_hidden, up_hidden, down_hidden] = hidden;
        let outputs =
            [(Projection::Gate, &mut *gate, gate_hidden), (Projection::Up, &mut *up, up_hidden)];
        pass.linears(&stream.normed, (weights, layer), outputs);
        pass.b.gated(&mut stream.gated, gate, up, self.config.activation);
        let Stream { x, normed, gated, .. } = stream;
        let norm = weights.post_norms.as_ref().map(|norms| &norms[1]);
        let output = Output { x, normed, projected, hidden: down_hidden };
        let op = LayerLinear { weights, layer, projection: Projection::Down, add: false };
        self.add_output(pass, gated, &op, norm, output);
    }

    /// Adds a projection's output to the residual stream: at once, or after its norm.
    fn add_output(
        &self,
        pass: &mut Pass<'_, '_, B>,
        input: &B::Rows,
        op: &LayerLinear<'_, B>,
        norm: Option<&B::Vector>,
        to: Output<'_, B>,
    ) {
        let Output { x, normed, projected, hidden } = to;
        let Some(norm) = norm else {
            return pass.linear(x, input, &LayerLinear { add: true, ..*op }, hidden);
        };
        pass.linear(projected, input, op, hidden);
        pass.b.rms_norm(normed, projected, norm, self.config.rms_eps);
        pass.b.add(x, normed);
    }

    /// How one layer's queries and keys are normed and rotated.
    pub(super) fn ropes<'w>(
        &'w self,
        layer: usize,
        positions: &'w [u32],
    ) -> (Rope<'w, B>, Rope<'w, B>) {
        let norms = self.layers[layer].qk_norms.as_ref();
        let rope = |norm: Option<&'w B::Vector>| Rope {
            norm: norm.map(|weight| (weight, self.config.rms_eps)),
            table: self.config.rope_of(layer),
            positions,
            head_dim: self.config.head_dim,
        };
        (rope(norms.map(|norms| &norms.0)), rope(norms.map(|norms| &norms.1)))
    }
}

impl<B: Backend> Pass<'_, '_, B> {
    /// Several projections of the same rows: each with its output, and with what backward keeps.
    fn linears<const N: usize>(
        &mut self,
        x: &B::Rows,
        (weights, layer): (&LayerWeights<B>, usize),
        outputs: [(Projection, &mut B::Rows, &mut B::Rows); N],
    ) {
        self.uses.clear();
        let counts = outputs.each_ref().map(|(projection, ..)| {
            let before = self.uses.len();
            self.spans.append(Site::Layer(layer, *projection), &mut self.uses);
            self.uses.len() - before
        });
        let (mut counts, mut rest) = (counts.into_iter(), self.uses.as_slice());
        let mut parts = outputs.map(|(projection, out, hidden)| {
            let (uses, later) = rest.split_at(counts.next().unwrap_or(0));
            rest = later;
            let matrix = &weights.projections[projection as usize];
            let (weight, bias) = (&matrix.weight, matrix.bias.as_ref());
            let hidden = (self.keep && !uses.is_empty()).then_some(hidden);
            LinearPart { out, linear: Linear { weight, bias, uses, add: false }, hidden }
        });
        self.b.linears(x, &mut parts);
    }

    fn linear(
        &mut self,
        out: &mut B::Rows,
        x: &B::Rows,
        op: &LayerLinear<'_, B>,
        hidden: &mut B::Rows,
    ) {
        let matrix = &op.weights.projections[op.projection as usize];
        self.spans.fill(Site::Layer(op.layer, op.projection), &mut self.uses);
        let (weight, bias) = (&matrix.weight, matrix.bias.as_ref());
        let linear = Linear { weight, bias, uses: &self.uses, add: op.add };
        let hidden = (self.keep && !self.uses.is_empty()).then_some(hidden);
        self.b.linear(out, x, linear, hidden);
    }
}
