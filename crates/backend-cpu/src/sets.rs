//! Kernel sets: names for "these instructions, these roundings", and which of them a model gets.
//!
//! A set decides how frozen matrices are kept and multiplied, and how attention's factors are; all other ops
//! run in f32 on a [`Path`].
//! A new set is a variant of [`KernelSet`] with its [`Entry`], an arm in `Weight::operand` and one in
//! `Tiling::of`, and a file in `sets/` with its product. A set whose bits change gets a new version.

use std::fmt;

use tinsmith_backend::Dtype;

use crate::{Error, lanes::Path};

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use bf16_amx::linear::Tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_avx512;
#[cfg(target_arch = "x86_64")]
mod bf16_fma;
pub(crate) mod packed;

/// Instructions and roundings by one name; the one to prefer for weights in bf16 last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KernelSet {
    /// Weights and arithmetic in f32: the same bits on every CPU.
    F32,
    /// Weights in bf16, widened exactly; else what `f32` computes, in the same order.
    W16Avx2,
    /// Weights and the rows beside them rounded to bf16, pairs of products added in f32 as `vdpbf16ps`
    /// does.
    Bf16Avx512,
    /// The same roundings, 32 products at a time added in f32 by `tdpbf16ps`.
    Bf16Amx,
}

/// What is known of a set.
struct Entry {
    name: &'static str,
    versioned: &'static str,
    /// How frozen matrices are kept.
    weights: Dtype,
    /// Where the f32 ops may run.
    paths: &'static [Path],
    /// Instructions beside those of the path, each with the question whether the CPU has them.
    needs: &'static [Need],
}

/// Instructions by name, and whether the CPU has them.
type Need = (&'static str, fn() -> bool);

impl KernelSet {
    /// Every set, the one to prefer for weights in bf16 last.
    pub const ALL: [Self; 4] = [Self::F32, Self::W16Avx2, Self::Bf16Avx512, Self::Bf16Amx];

    fn entry(self) -> &'static Entry {
        match self {
            Self::F32 => &Entry {
                name: "f32",
                versioned: "f32.2",
                weights: Dtype::F32,
                paths: &Path::ALL,
                needs: &[],
            },
            Self::W16Avx2 => &Entry {
                name: "w16-avx2",
                versioned: "w16-avx2.2",
                weights: Dtype::Bf16,
                paths: &[Path::Avx2, Path::Avx512],
                needs: &[],
            },
            Self::Bf16Avx512 => &Entry {
                name: "bf16-avx512",
                versioned: "bf16-avx512.2",
                weights: Dtype::Bf16,
                paths: &[Path::Avx512],
                needs: &[("AVX512-BF16", has_avx512_bf16)],
            },
            Self::Bf16Amx => &Entry {
                name: "bf16-amx",
                versioned: "bf16-amx.2",
                weights: Dtype::Bf16,
                paths: &[Path::Avx512],
                needs: &[("AVX512-BF16", has_avx512_bf16), ("AMX-BF16", has_amx_bf16)],
            },
        }
    }

    /// As users write it, e.g. `bf16-amx`.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// As checkpoints and journals record it, e.g. `bf16-amx.2`.
    pub fn versioned(self) -> &'static str {
        self.entry().versioned
    }

    /// How frozen matrices are kept in memory: f32 or bf16.
    pub fn weights(self) -> Dtype {
        self.entry().weights
    }

    /// Where its f32 ops may run, the fastest last; all give the same bits.
    pub fn paths(self) -> &'static [Path] {
        self.entry().paths
    }

    /// Instructions that this CPU lacks; none: the set can run here.
    pub fn missing(self) -> Vec<&'static str> {
        let Entry { paths, needs, .. } = self.entry();
        let path = paths[0];
        let lacks_path = (!path.is_available()).then(|| path.needs());
        let lacking = needs.iter().filter(|(_, present)| !present());
        lacks_path.into_iter().chain(lacking.map(|&(name, _)| name)).collect()
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        self.missing().is_empty()
    }
}

impl fmt::Display for KernelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set, and the path of its f32 ops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kernels {
    pub(crate) set: KernelSet,
    pub(crate) path: Path,
}

impl Kernels {
    /// The set on a path.
    ///
    /// # Errors
    ///
    /// The set does not run on that path, or the CPU lacks instructions.
    pub fn new(set: KernelSet, path: Path) -> Result<Self, Error> {
        let missing = set.missing();
        let kernels = Self { set, path };
        if !set.paths().contains(&path) {
            return Err(Error::NoSuchPath(kernels));
        }
        if !missing.is_empty() {
            return Err(Error::KernelsUnavailable(kernels, missing.join(" and ")));
        }
        if !path.is_available() {
            return Err(Error::KernelsUnavailable(kernels, path.needs().to_owned()));
        }
        Ok(kernels)
    }

    /// The set on the fastest path that the CPU has.
    ///
    /// # Errors
    ///
    /// The CPU lacks instructions.
    pub fn best(set: KernelSet) -> Result<Self, Error> {
        let path = set.paths().iter().rfind(|path| path.is_available());
        Self::new(set, path.copied().unwrap_or_else(|| set.paths()[0]))
    }

    /// The set `f32` on the fastest path.
    pub fn f32() -> Self {
        let path = Path::ALL.into_iter().rfind(|path| path.is_available());
        Self { set: KernelSet::F32, path: path.unwrap_or(Path::Portable) }
    }

    /// Every set on every path that this CPU has.
    pub fn available() -> Vec<Self> {
        let on_paths = |set: KernelSet| set.paths().iter().map(move |&path| Self::new(set, path));
        KernelSet::ALL.into_iter().flat_map(on_paths).filter_map(Result::ok).collect()
    }

    /// The set.
    pub fn set(self) -> KernelSet {
        self.set
    }

    /// The instructions of its f32 ops.
    pub fn path(self) -> Path {
        self.path
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.set)?;
        if self.set.paths().len() > 1 { write!(f, ":{}", self.path) } else { Ok(()) }
    }
}

/// What the weights are to be kept in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DtypeChoice {
    /// bf16 where the model's files are, else f32.
    Auto,
    /// f32.
    F32,
    /// bf16, whatever the files hold.
    Bf16,
}

impl DtypeChoice {
    /// Reads `auto`, `f32` or `bf16`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "f32" => Some(Self::F32),
            "bf16" => Some(Self::Bf16),
            _ => None,
        }
    }
}

/// Which kernels to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KernelChoice {
    /// The best that the CPU has for the weights.
    Auto,
    /// A set, on its fastest path.
    Set(KernelSet),
    /// A set on one path.
    Exact(KernelSet, Path),
}

impl KernelChoice {
    /// Reads `auto`, the name of a set, or that with a path, e.g. `f32:avx2`.
    pub fn parse(name: &str) -> Option<Self> {
        if name == "auto" {
            return Some(Self::Auto);
        }
        let (set, path) = name.split_once(':').map_or((name, None), |(a, b)| (a, Some(b)));
        let set = KernelSet::ALL.into_iter().find(|known| known.name() == set)?;
        match path {
            None => Some(Self::Set(set)),
            Some(path) => {
                let path = set.paths().iter().find(|known| known.to_string() == path)?;
                Some(Self::Exact(set, *path))
            }
        }
    }

    /// Everything that [`KernelChoice::parse`] reads, for messages.
    pub fn names() -> String {
        let mut names = vec!["auto".to_owned()];
        for set in KernelSet::ALL {
            names.push(set.to_string());
            if set.paths().len() > 1 {
                names.extend(set.paths().iter().map(|path| format!("{set}:{path}")));
            }
        }
        names.join(", ")
    }
}

/// The kernels for a model whose matrices are stored as `stored`.
///
/// # Errors
///
/// The CPU lacks the instructions, or the kernels keep weights in another dtype than the one wanted.
pub fn choose(dtype: DtypeChoice, kernels: KernelChoice, stored: Dtype) -> Result<Kernels, Error> {
    let chosen = match kernels {
        KernelChoice::Auto => return choose_best(dtype, stored),
        KernelChoice::Set(set) => (set, None),
        KernelChoice::Exact(set, path) => (set, Some(path)),
    };
    let (set, path) = chosen;
    let wanted = match dtype {
        DtypeChoice::Auto => set.weights(),
        DtypeChoice::F32 => Dtype::F32,
        DtypeChoice::Bf16 => Dtype::Bf16,
    };
    if wanted != set.weights() {
        return Err(Error::OtherDtype {
            set,
            kept: dtype_name(set.weights()),
            wanted: dtype_name(wanted),
        });
    }
    path.map_or_else(|| Kernels::best(set), |path| Kernels::new(set, path))
}

fn choose_best(dtype: DtypeChoice, stored: Dtype) -> Result<Kernels, Error> {
    let halves = match dtype {
        DtypeChoice::Auto => stored == Dtype::Bf16,
        DtypeChoice::F32 => false,
        DtypeChoice::Bf16 => true,
    };
    let fits = |set: &KernelSet| halves && set.weights() == Dtype::Bf16 && set.is_available();
    match KernelSet::ALL.into_iter().rfind(fits) {
        Some(set) => Kernels::best(set),
        None if dtype == DtypeChoice::Bf16 => Err(Error::NoHalves),
        None => Ok(Kernels::f32()),
    }
}

/// A dtype as users write it.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    bf16_avx512::is_available()
}

#[cfg(target_arch = "x86_64")]
fn has_amx_bf16() -> bool {
    bf16_amx::is_available()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_bf16() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_amx_bf16() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in KernelChoice::names().split(", ") {
            assert!(KernelChoice::parse(name).is_some(), "{name}");
        }
        for kernels in Kernels::available() {
            let read = KernelChoice::parse(&kernels.to_string()).unwrap();
            assert_eq!(choose(DtypeChoice::Auto, read, Dtype::F32).unwrap(), kernels);
        }
        for name in ["", "f32:", "f32:amx", "bf16-amx:avx2", "w16-avx2:portable", "F32"] {
            assert_eq!(KernelChoice::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_stored_dtype_decides_where_nobody_does() {
        let best = |dtype, stored| choose(dtype, KernelChoice::Auto, stored).unwrap();
        for stored in [Dtype::F32, Dtype::F16] {
            assert_eq!(best(DtypeChoice::Auto, stored), Kernels::f32());
        }
        assert_eq!(best(DtypeChoice::F32, Dtype::Bf16), Kernels::f32());
        let preferred = KernelSet::ALL.into_iter().rfind(|set| set.is_available()).unwrap();
        assert_eq!(best(DtypeChoice::Auto, Dtype::Bf16).set(), preferred);
        let forced = choose(DtypeChoice::Bf16, KernelChoice::Auto, Dtype::F32);
        if preferred == KernelSet::F32 {
            assert!(matches!(forced, Err(Error::NoHalves)));
        } else {
            assert_eq!(forced.unwrap().set(), preferred);
        }
    }

    #[test]
    fn what_contradicts_or_is_missing_is_refused() {
        let message = |dtype, name| {
            let kernels = KernelChoice::parse(name).unwrap();
            choose(dtype, kernels, Dtype::Bf16).map_err(|error| error.to_string())
        };
        assert_eq!(
            message(DtypeChoice::F32, "bf16-amx").unwrap_err(),
            "run kernels bf16-amx with dtype f32: they keep weights in bf16"
        );
        assert_eq!(
            message(DtypeChoice::Bf16, "f32:portable").unwrap_err(),
            "run kernels f32 with dtype bf16: they keep weights in f32"
        );
        for set in KernelSet::ALL.into_iter().filter(|set| !set.is_available()) {
            let message = message(DtypeChoice::Auto, set.name()).unwrap_err();
            assert!(message.contains("lacks") && message.contains(set.missing()[0]), "{message}");
        }
        let odd = Kernels::new(KernelSet::Bf16Amx, Path::Avx2);
        assert!(matches!(odd, Err(Error::NoSuchPath(_))));
    }
}
