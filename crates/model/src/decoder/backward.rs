//! The layers, backward, by hand: the ops of `forward.rs` in reverse.
//!
//! Base weights are frozen, so a gradient flows on only where an adapter below still needs it.

use std::ops::Range;

use tinsmith_backend::{
    AttentionForward, Backend, Coefficients, LinearGradientPart, LoraGradientUse, Qkv, QkvGradients,
};

use super::{
    Decoder,
    forward::{Attend, Pass},
};
use crate::{
    batch::{Spans, TrainBatch},
    lora::{Adapter, Projection, Site},
    workspace::{Gradients, LayerState, Stream, Workspace},
};

/// One way back through the layers.
struct Back<'p, B: Backend> {
    b: &'p mut B,
    groups: Vec<GroupBack<'p, B>>,
    sequences: &'p [Range<usize>],
    positions: &'p [u32],
    /// Whether any group trains attention.
    attention: bool,
    /// Used again for each op.
    uses: Vec<LoraGradientUse<'p, B::Lora, B::Pair>>,
}

/// A group that asks for a gradient.
struct GroupBack<'p, B: Backend> {
    rows: Range<usize>,
    datums: &'p [Range<usize>],
    adapter: &'p Adapter<B>,
    /// By site. Each is lent to an op once.
    gradient: Vec<Option<&'p mut B::Pair>>,
}

impl<B: Backend> Decoder<B> {
    /// Scores, differentiates and adds to the groups' gradients, after a pass that kept its states.
    pub(super) fn backward(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &mut TrainBatch<'_, B>,
        coefficients: &mut Coefficients<'_>,
    ) {
        let Workspace { stream, inputs, layers: states, gradients, positions, identity, lists } =
            workspace;
        let gradients = gradients.as_mut().expect("made before the forward pass");
        let (targets, recompute) = (batch.targets, batch.recompute);
        let spans = Spans::train(&batch.groups, lists);
        let mut uses = lists.uses();
        let mut back = Back::new(b, batch, positions);
        let layers = back.trains_layers();
        let eps = self.config.rms_eps;
        back.b.rms_norm(&mut stream.normed, &stream.x, &self.final_norm, eps);
        let dx = layers.then_some(&mut gradients.dnormed);
        let (x, unembedding) = (&stream.normed, self.unembedding());
        back.fill(Site::Unembed);
        back.b.score_backward(dx, x, unembedding, &mut back.uses, targets, coefficients);
        if !layers {
            return spans.keep(uses, lists);
        }
        back.b.zero(&mut gradients.dx);
        let (dx, dy) = (&mut gradients.dx, &gradients.dnormed);
        back.b.rms_norm_backward(dx, dy, &stream.x, &self.final_norm, eps);
        for layer in (0..self.config.layers).rev() {
            let (input, state) = (&inputs[layer], &mut states[if recompute { 0 } else { layer }]);
            if recompute {
                back.b.gather(&mut stream.x, input, &identity[..positions.len()]);
                let attend = Attend::Whole(back.sequences);
                let mut pass = Pass::new(&mut *back.b, &spans, attend, true, uses);
                self.run_layer(&mut pass, layer, (stream, state), positions, identity);
                uses = pass.uses;
            }
            self.mlp_backward(&mut back, layer, stream, state, gradients);
            if layer > 0 || back.attention {
                self.attention_backward(&mut back, layer, stream, (input, state), gradients);
            }
        }
        spans.keep(uses, lists);
    }

    fn mlp_backward(
        &self,
        back: &mut Back<'_, B>,
        layer: usize,
        stream: &mut Stream<B>,
        state: &LayerState<B>,
        gradients: &mut Gradients<B>,
    ) {
        let weights = &self.layers[layer];
        let activation = self.config.activation;
        let Gradients { dx, dnormed, dgated, dgate, dup, .. } = gradients;
        let post_norm = weights.post_norms.as_ref().map(|norms| &norms[1]);
        back.b.gated(&mut stream.gated, &state.gate, &state.up, activation);
        let dy = self.output_gradient(back, post_norm, &state.projected[1], dx, dnormed);
        let down = [(Projection::Down, dy)];
        self.linears_backward(back, (layer, state), Some(&mut *dgated), &stream.gated, down);
        back.b.gated_backward(dgate, dup, dgated, &state.gate, &state.up, activation);
        back.b.rms_norm(&mut stream.normed, &state.middle, &weights.mlp_norm, self.config.rms_eps);
        let flows = layer > 0 || back.attention;
        let outputs = [(Projection::Gate, &*dgate), (Projection::Up, &*dup)];
        let to = flows.then_some(&mut *dnormed);
        self.linears_backward(back, (layer, state), to, &stream.normed, outputs);
        if flows {
            let (x, weight) = (&state.middle, &weights.mlp_norm);
            back.b.rms_norm_backward(dx, dnormed, x, weight, self.config.rms_eps);
        }
    }

    fn attention_backward(
        &self,
        back: &mut Back<'_, B>,
        layer: usize,
        stream: &mut Stream<B>,
        (input, state): (&B::Rows, &LayerState<B>),
        gradients: &mut Gradients<B>,
    ) {
        let weights = &self.layers[layer];
        let (eps, norm) = (self.config.rms_eps, &weights.attention_norm);
        let Gradients { dx, dnormed, dq, dk, dv, dattention, .. } = gradients;
        let (dq_rotated, dk_rotated) = (&mut gradients.dq_rotated, &mut gradients.dk_rotated);
        let post_norm = weights.post_norms.as_ref().map(|norms| &norms[0]);
        let dy = self.output_gradient(back, post_norm, &state.projected[0], dx, dnormed);
        let out = [(Projection::O, dy)];
        self.linears_backward(back, (layer, state), Some(&mut *dattention), &state.attention, out);

        let (q_rope, k_rope) = self.ropes(layer, back.positions);
        back.b.rope(&mut stream.q, &state.q, q_rope);
        back.b.rope(&mut stream.k, &state.k, k_rope);
        back.b.attention_backward(
            QkvGradients { dq: &mut *dq_rotated, dk: &mut *dk_rotated, dv: &mut *dv },
            AttentionForward {
                qkv: Qkv { q: &stream.q, k: &stream.k, v: &state.v },
                out: &state.attention,
                lse: &state.lse,
                dout: dattention,
            },
            back.sequences,
            &self.config.attention_shape(layer),
        );
        let (q_rope, k_rope) = self.ropes(layer, back.positions);
        back.b.rope_backward(dq, dq_rotated, &state.q, q_rope);
        back.b.rope_backward(dk, dk_rotated, &state.k, k_rope);

        back.b.rms_norm(&mut stream.normed, input, norm, eps);
        let flows = layer > 0;
        let outputs = [(Projection::Q, &*dq), (Projection::K, &*dk), (Projection::V, &*dv)];
        let to = flows.then_some(&mut *dnormed);
        self.linears_backward(back, (layer, state), to, &stream.normed, outputs);
        if flows {
            back.b.rms_norm_backward(dx, dnormed, input, norm, eps);
        }
    }

    /// The gradient of what attention or MLP gave before it was added: that of the residual stream, taken
    /// back through the norm, into `to`, if there is one.
    fn output_gradient<'g>(
        &self,
        back: &mut Back<'_, B>,
        norm: Option<&B::Vector>,
        projected: &B::Rows,
        dx: &'g B::Rows,
        to: &'g mut B::Rows,
    ) -> &'g B::Rows {
        let Some(norm) = norm else { return dx };
        back.b.zero(to);
        back.b.rms_norm_backward(to, dx, projected, norm, self.config.rms_eps);
        to
    }

    /// The gradient of projections of the same rows, in their order; nothing runs where nobody asks.
    fn linears_backward<const N: usize>(
        &self,
        back: &mut Back<'_, B>,
        (layer, state): (usize, &LayerState<B>),
        dx: Option<&mut B::Rows>,
        x: &B::Rows,
        outputs: [(Projection, &B::Rows); N],
    ) {
        back.uses.clear();
        let counts = outputs.map(|(projection, _)| back.append(Site::Layer(layer, projection)));
        if dx.is_none() && back.uses.is_empty() {
            return;
        }
        let (mut counts, mut rest) = (counts.into_iter(), back.uses.as_mut_slice());
        let mut parts = outputs.map(|(projection, dy)| {
            let (uses, later) = std::mem::take(&mut rest).split_at_mut(counts.next().unwrap_or(0));
            rest = later;
            let weight = &self.layers[layer].projections[projection as usize].weight;
            LinearGradientPart { dy, weight, hidden: &state.hidden[projection as usize], uses }
        });
        back.b.linears_backward(dx, x, &mut parts);
    }
}

impl<'p, B: Backend> Back<'p, B> {
    fn new(b: &'p mut B, batch: &'p mut TrainBatch<'_, B>, positions: &'p [u32]) -> Self {
        let groups = batch.groups.iter_mut().filter_map(|group| {
            let gradient = group.gradient.as_deref_mut()?.sites_mut();
            let (rows, adapter) = (group.rows.clone(), group.adapter);
            Some(GroupBack { rows, datums: &group.datums, adapter, gradient })
        });
        let groups: Vec<_> = groups.collect();
        let attention = groups.iter().any(|group| group.adapter.spec().train_attn);
        let sequences = &batch.sequences;
        Self { b, groups, sequences, positions, attention, uses: Vec::new() }
    }

    fn trains_layers(&self) -> bool {
        self.groups.iter().any(|group| group.adapter.spec().trains_layers())
    }

    /// Fills `uses` with the places where the gradients at one site gather.
    fn fill(&mut self, site: Site) {
        self.uses.clear();
        self.append(site);
    }

    /// Adds them to `uses`; answers how many they are.
    fn append(&mut self, site: Site) -> usize {
        let before = self.uses.len();
        for group in &mut self.groups {
            let index = site.index(group.gradient.len());
            if let (Some(lora), Some(gradient)) =
                (group.adapter.site(site), group.gradient[index].take())
            {
                self.uses.push(LoraGradientUse {
                    rows: group.rows.clone(),
                    datums: group.datums,
                    lora,
                    gradient,
                    scale: group.adapter.spec().scale(),
                });
            }
        }
        self.uses.len() - before
    }
}
