//! Settings of the losses that have some. To add a loss with settings, add a type here and its line in `table.rs`.

use crate::Loss;

use super::LossFn;

const LOW: &str = "clip_low_threshold";
const HIGH: &str = "clip_high_threshold";

/// A loss with settings, each `None` where the server's default holds.
macro_rules! settings {
    ($(#[$doc:meta])* $loss:ident { $($(#[$field_doc:meta])* $field:ident = $name:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $loss {
            $($(#[$field_doc])* pub $field: Option<f64>,)*
        }

        impl From<$loss> for Loss {
            fn from(settings: $loss) -> Self {
                let mut loss = Self::new(LossFn::$loss);
                $(if let Some(number) = settings.$field {
                    loss = loss.with_setting($name, number);
                })*
                loss
            }
        }
    };
}

settings! {
    /// Settings of `ppo`. Both are bounds of the ratio itself, not distances from one.
    Ppo {
        /// The ratio's lower bound, 0.8 where not set.
        clip_low = LOW,
        /// The ratio's upper bound, 1.2 where not set.
        clip_high = HIGH,
    }
}

settings! {
    /// Settings of `cispo`. Both are bounds of the ratio itself, not distances from one.
    Cispo {
        /// The ratio's lower bound, 0 where not set.
        clip_low = LOW,
        /// The ratio's upper bound, 4 where not set.
        clip_high = HIGH,
    }
}

settings! {
    /// Settings of `dro`.
    Dro {
        /// Weight of the squared distance from the sampler, 0.05 where not set.
        beta = "beta",
    }
}

settings! {
    /// Settings of `gspo`. Both are bounds of the sequence's ratio itself, not distances from one.
    Gspo {
        /// The ratio's lower bound, 0.9997 where not set.
        clip_low = LOW,
        /// The ratio's upper bound, 1.0004 where not set.
        clip_high = HIGH,
    }
}

settings! {
    /// Settings of `stable_reinforce`.
    StableReinforce {
        /// Weight of the divergence from the sampler, 0 where not set.
        kl_coeff = "kl_coeff",
        /// The ratio's upper bound, 2 where not set.
        clip_high = HIGH,
    }
}

macro_rules! clipped {
    ($($loss:ident),*) => {$(
        impl $loss {
            /// Bounds of the ratio: 0.8 and 1.2 let it go a fifth either way.
            #[must_use]
            pub fn clip(self, low: f64, high: f64) -> Self {
                Self { clip_low: Some(low), clip_high: Some(high) }
            }
        }
    )*};
}

clipped!(Ppo, Cispo, Gspo);

impl Dro {
    /// Weight of the squared distance from the sampler.
    #[must_use]
    pub fn beta(self, beta: f64) -> Self {
        let mut settings = self;
        settings.beta = Some(beta);
        settings
    }
}

impl StableReinforce {
    /// Weight of the divergence from the sampler.
    #[must_use]
    pub fn kl_coeff(self, kl_coeff: f64) -> Self {
        Self { kl_coeff: Some(kl_coeff), ..self }
    }

    /// The ratio's upper bound.
    #[must_use]
    pub fn clip_high(self, clip_high: f64) -> Self {
        Self { clip_high: Some(clip_high), ..self }
    }
}
