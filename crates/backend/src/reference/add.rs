//! Adding activations: the residual after a norm of its own.

use super::Rows;

/// `out += x`.
pub(super) fn add(out: &mut Rows, x: &Rows) {
    assert_eq!((out.len(), out.features()), (x.len(), x.features()), "one shape");
    for (out, x) in out.values_mut().iter_mut().zip(x.values()) {
        *out += x;
    }
}
