//! How much arithmetic a step is: products of the linear maps, of their adapters, and of attention.

use tinsmith_engine::DecoderConfig;

/// Inputs and outputs of each linear map of a layer.
fn maps(decoder: &DecoderConfig) -> [(usize, usize); 7] {
    let queries = decoder.heads * decoder.head_dim;
    let keys = decoder.kv_heads * decoder.head_dim;
    [
        (decoder.hidden, queries),
        (decoder.hidden, keys),
        (decoder.hidden, keys),
        (queries, decoder.hidden),
        (decoder.hidden, decoder.ffn),
        (decoder.hidden, decoder.ffn),
        (decoder.ffn, decoder.hidden),
    ]
}

/// Floating-point operations of one token through the layers, without attention.
pub(super) fn layers(decoder: &DecoderConfig) -> usize {
    let products = maps(decoder).into_iter().map(|(inputs, outputs)| 2 * inputs * outputs);
    decoder.layers * products.sum::<usize>()
}

/// The same of the unembedding.
pub(super) fn unembedding(decoder: &DecoderConfig) -> usize {
    2 * decoder.hidden * decoder.vocab_size
}

/// A training step on datums of these `lengths`, with adapters of `rank` on every linear map and the unembedding.
///
/// Forward and the gradient of the inputs are a product each; an adapter's two matrices take one forward and two
/// backward each; attention takes two products forward and five backward.
pub(super) fn training(decoder: &DecoderConfig, lengths: &[usize], rank: usize) -> usize {
    let features = maps(decoder).into_iter().map(|(inputs, outputs)| inputs + outputs);
    let adapted = decoder.layers * features.sum::<usize>() + decoder.hidden + decoder.vocab_size;
    let token = 2 * (layers(decoder) + unembedding(decoder)) + 3 * 2 * rank * adapted;
    let tokens: usize = lengths.iter().sum();
    let pairs: usize = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let pair = 7 * 2 * decoder.layers * decoder.heads * decoder.head_dim;
    tokens * token + pairs * pair
}
