//! The one decoder: its weights, and the public face of its forward and backward steps.

mod backward;
mod forward;

use std::ops::Range;

use tinsmith_backend::{Ask, Backend, Coefficients, Drawn, Unembedding};

use crate::{
    Result,
    batch::{InferBatch, Spans, TrainBatch},
    config::DecoderConfig,
    files::ModelDir,
    lora::{Projection, Site},
    workspace::{Keep, Stream, Workspace},
};
use forward::{Attend, Pass};

/// A decoder whose frozen weights are on the device, packed.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    embed: B::Weight,
    /// `None`: the embedding.
    unembed: Option<B::Weight>,
    final_norm: B::Vector,
    layers: Vec<LayerWeights<B>>,
}

#[derive(Debug)]
struct LayerWeights<B: Backend> {
    attention_norm: B::Vector,
    mlp_norm: B::Vector,
    /// Norms of what attention and MLP give.
    post_norms: Option<[B::Vector; 2]>,
    /// Norms of each query and each key head.
    qk_norms: Option<(B::Vector, B::Vector)>,
    /// By [`Projection`].
    projections: Vec<Matrix<B>>,
}

#[derive(Debug)]
struct Matrix<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Vector>,
}

impl<B: Backend> Decoder<B> {
    /// Packs every weight for the device. The directory is not needed afterwards.
    ///
    /// # Errors
    /// No room on the device.
    pub fn load(b: &mut B, dir: &ModelDir) -> Result<Self> {
        dir.check_finite()?;
        Self::load_as(b, dir, dir.config().clone())
    }

    /// As [`Decoder::load`], with other switches than the directory's.
    fn load_as(b: &mut B, dir: &ModelDir, config: DecoderConfig) -> Result<Self> {
        let names = config.names;
        let matrix = |b: &mut B, name: &str| b.weight(&dir.raw(&format!("{name}.weight")));
        let embed = matrix(b, names.embed)?;
        let unembed = if config.tie_embeddings { None } else { Some(matrix(b, names.unembed)?) };
        let final_norm = dir.raw(&format!("{}.weight", names.final_norm));
        let final_norm = b.vector(&final_norm, config.norm_offset)?;
        let layers: Result<Vec<_>> =
            (0..config.layers).map(|layer| LayerWeights::load(b, dir, &config, layer)).collect();
        Ok(Self { embed, unembed, final_norm, layers: layers?, config })
    }

    /// The decoder's switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Room for the keys and values of `blocks` blocks of tokens.
    ///
    /// # Errors
    /// No room on the device.
    pub fn cache(&self, b: &mut B, blocks: usize) -> Result<B::Cache> {
        Ok(b.cache(blocks, self.config.layers, &self.config.attention_shape(0))?)
    }

    /// Logprobs of the candidates, `[rows * per_row]`, without gradients.
    ///
    /// # Errors
    /// No room on the device.
    pub fn forward(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &TrainBatch<'_, B>,
        logprobs: &mut [f32],
    ) -> Result<()> {
        self.train_pass(b, workspace, batch, Keep::Nothing)?;
        self.score(b, workspace, batch, logprobs);
        Ok(())
    }

    /// Scores the rows of a pass.
    fn score(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &TrainBatch<'_, B>,
        logprobs: &mut [f32],
    ) {
        let Workspace { stream, lists, .. } = workspace;
        let (spans, mut uses) = (Spans::train(&batch.groups, lists), lists.uses());
        spans.fill(Site::Unembed, &mut uses);
        b.rms_norm(&mut stream.normed, &stream.x, &self.final_norm, self.config.rms_eps);
        b.score(logprobs, &stream.normed, self.unembedding(), &uses, batch.targets);
        spans.keep(uses, lists);
    }

    /// Computes logprobs, asks for their coefficients, and adds to each group's gradient.
    ///
    /// Gradients stop at the lowest layer that something trainable needs.
    ///
    /// # Errors
    /// No room on the device; then no gradient has been touched.
    pub fn forward_backward(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &mut TrainBatch<'_, B>,
        coefficients: &mut Coefficients<'_>,
    ) -> Result<()> {
        self.pass_for_gradients(b, workspace, batch)?;
        self.backward(b, workspace, batch, coefficients);
        Ok(())
    }

    /// As [`Decoder::forward_backward`], to the bit, but asks for the coefficients of all rows at once, after
    /// all are scored: one pass more over the logits, whose `logprobs`, `[rows * per_row]`, are given back.
    ///
    /// # Errors
    /// No room on the device; then no gradient has been touched.
    pub fn forward_backward_whole(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &mut TrainBatch<'_, B>,
        logprobs: &mut [f32],
        coefficients: &mut Coefficients<'_>,
    ) -> Result<()> {
        self.pass_for_gradients(b, workspace, batch)?;
        self.score(b, workspace, batch, logprobs);
        let mut known = vec![0.0; logprobs.len()];
        coefficients(0..batch.tokens.len(), logprobs, &mut known);
        let per_row = batch.targets.per_row;
        let mut look_up = |rows: Range<usize>, _: &[f32], out: &mut [f32]| {
            out.copy_from_slice(&known[rows.start * per_row..rows.end * per_row]);
        };
        self.backward(b, workspace, batch, &mut look_up);
        Ok(())
    }

    /// Runs whole sequences through the layers, and keeps what the way back needs.
    fn pass_for_gradients(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &TrainBatch<'_, B>,
    ) -> Result<()> {
        let layers = batch
            .groups
            .iter()
            .any(|group| group.gradient.is_some() && group.adapter.spec().trains_layers());
        workspace.prepare_gradients(b, &self.config, batch.tokens.len(), layers)?;
        let keep = match (layers, batch.recompute) {
            (false, _) => Keep::Nothing,
            (true, true) => Keep::Inputs,
            (true, false) => Keep::States,
        };
        self.train_pass(b, workspace, batch, keep)
    }

    /// Runs rows through the layers, over and into the cache; [`Decoder::sample`]
    /// reads what it leaves in the workspace.
    ///
    /// # Errors
    /// No room on the device.
    pub fn infer(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        cache: &mut B::Cache,
        batch: &InferBatch<'_, B>,
    ) -> Result<()> {
        workspace.prepare(b, &self.config, batch.tokens.len(), Keep::Nothing)?;
        workspace.positions.clear();
        for sequence in &batch.sequences {
            assert_eq!(sequence.rows.start, workspace.positions.len(), "sequences tile the rows");
            let positions = sequence.position..sequence.position + sequence.rows.len();
            workspace.positions.extend(positions.map(position));
        }
        let attend = Attend::Paged { cache, sequences: &batch.sequences };
        let lists = &mut workspace.lists;
        let (spans, uses) = (Spans::infer(batch, lists), lists.uses());
        let mut pass = Pass::new(b, &spans, attend, false, uses);
        self.run_layers(&mut pass, workspace, batch.tokens, Keep::Nothing);
        let uses = pass.uses;
        spans.keep(uses, &mut workspace.lists);
        Ok(())
    }

    /// Reads tokens off the logits of `rows`, which are rows of the `batch` that [`Decoder::infer`] ran
    /// last, in ascending order. Row `i` of the asks is `rows[i]`; `answers` is filled in their order.
    ///
    /// # Errors
    /// No room on the device.
    pub fn sample(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        (batch, rows): (&InferBatch<'_, B>, &[usize]),
        asks: &[Ask],
        answers: &mut Vec<Drawn>,
    ) -> Result<()> {
        let Workspace { stream, lists, .. } = workspace;
        self.pick(b, stream, rows)?;
        let (spans, mut uses) = (Spans::gathered(batch, rows, lists), lists.uses());
        spans.fill(Site::Unembed, &mut uses);
        b.sample(answers, &stream.picked_normed, self.unembedding(), &uses, asks);
        spans.keep(uses, lists);
        Ok(())
    }

    /// Gathers rows of the residual stream and norms them for the unembedding.
    fn pick(&self, b: &mut B, stream: &mut Stream<B>, rows: &[usize]) -> Result<()> {
        b.resize(&mut stream.picked, rows.len())?;
        b.resize(&mut stream.picked_normed, rows.len())?;
        b.gather(&mut stream.picked, &stream.x, rows);
        let (out, x) = (&mut stream.picked_normed, &stream.picked);
        b.rms_norm(out, x, &self.final_norm, self.config.rms_eps);
        Ok(())
    }

    /// Runs whole sequences through the layers; leaves the residual stream in the workspace.
    fn train_pass(
        &self,
        b: &mut B,
        workspace: &mut Workspace<B>,
        batch: &TrainBatch<'_, B>,
        keep: Keep,
    ) -> Result<()> {
        workspace.prepare(b, &self.config, batch.tokens.len(), keep)?;
        workspace.positions.clear();
        for sequence in &batch.sequences {
            assert_eq!(sequence.start, workspace.positions.len(), "sequences tile the rows");
            workspace.positions.extend((0..sequence.len()).map(position));
        }
        let attend = Attend::Whole(&batch.sequences);
        let lists = &mut workspace.lists;
        let (spans, uses) = (Spans::train(&batch.groups, lists), lists.uses());
        let mut pass = Pass::new(b, &spans, attend, keep == Keep::States, uses);
        self.run_layers(&mut pass, workspace, batch.tokens, keep);
        let uses = pass.uses;
        spans.keep(uses, &mut workspace.lists);
        Ok(())
    }

    fn unembedding(&self) -> Unembedding<'_, B> {
        let weight = self.unembed.as_ref().unwrap_or(&self.embed);
        Unembedding { weight, softcap: self.config.logit_softcap }
    }
}

impl<B: Backend> LayerWeights<B> {
    fn load(b: &mut B, dir: &ModelDir, config: &DecoderConfig, layer: usize) -> Result<Self> {
        let names = config.names;
        let vector = |b: &mut B, name: &str| {
            let norm = dir.raw(&format!("{}.{layer}.{name}.weight", names.layers));
            b.vector(&norm, config.norm_offset)
        };
        let projection = |b: &mut B, projection: Projection| {
            let name = projection.file_name(config, layer);
            let bias = projection.has_bias(config).then(|| dir.raw(&format!("{name}.bias")));
            Ok(Matrix {
                weight: b.weight(&dir.raw(&format!("{name}.weight")))?,
                bias: bias.map(|bias| b.vector(&bias, 0.0)).transpose()?,
            })
        };
        let post_norms = if config.post_norms {
            let [attention, mlp] = names.post_norms;
            Some([vector(b, attention)?, vector(b, mlp)?])
        } else {
            None
        };
        let qk_norms = if config.qk_norm {
            Some((vector(b, names.q_norm)?, vector(b, names.k_norm)?))
        } else {
            None
        };
        let projections: Result<Vec<_>> =
            Projection::ALL.into_iter().map(|each| projection(b, each)).collect();
        Ok(Self {
            attention_norm: vector(b, names.attention_norm)?,
            mlp_norm: vector(b, names.mlp_norm)?,
            post_norms,
            qk_norms,
            projections: projections?,
        })
    }
}

fn position(index: usize) -> u32 {
    u32::try_from(index).expect("sequences are shorter than 2³² tokens")
}

#[cfg(test)]
mod tests;
