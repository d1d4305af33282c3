//! What would a person who watches want to be told before the training has ended?

use std::fmt;

use super::TrainProgress;

/// The part of a training before which nothing is said: everything is still moving.
const QUIET: f64 = 0.3;
/// The share of dead latents from which they are worth a word.
const DEAD: f64 = 0.2;
/// The share of tokens from which a latent fires often (Gemma Scope 2's), and how many of them are worth a word.
const OFTEN: f64 = 0.1;
const MANY_OFTEN: f64 = 0.02;
/// How far from its target the number of latents that fire may be, as a part of it, when λ has long risen.
const OFF_TARGET: f64 = 0.3;
const LATE: f64 = 0.6;

/// Something that usually ends in a coder of little use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Notice {
    /// Many latents have not fired for long: this share.
    Dead(f64),
    /// Many latents fire on more than a tenth of the tokens: this share.
    Dense(f64),
    /// Another number of latents fires than was wanted.
    OffTarget {
        /// How many fire.
        l0: f64,
        /// How many should.
        wanted: f64,
    },
}

impl Notice {
    pub(super) fn of(at: &TrainProgress, fired: &[u32], n_rows: usize, wanted: Option<f64>) -> Vec<Self> {
        let done = at.step as f64 / at.steps.max(1) as f64;
        if done < QUIET || fired.is_empty() {
            return Vec::new();
        }
        let mut notices = Vec::new();
        let d_sae = fired.len() as f64;
        let dead = at.dead as f64 / d_sae;
        if dead > DEAD {
            notices.push(Self::Dead(dead));
        }
        let often = fired.iter().filter(|&&n| f64::from(n) > OFTEN * n_rows as f64).count() as f64 / d_sae;
        if often > MANY_OFTEN {
            notices.push(Self::Dense(often));
        }
        if let Some(wanted) = wanted.filter(|wanted| done > LATE && (at.l0 - wanted).abs() > OFF_TARGET * wanted) {
            notices.push(Self::OffTarget { l0: at.l0, wanted });
        }
        notices
    }

    /// Whether both are about the same trouble.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead(share) => write!(
                f,
                "{:.0} % of the latents are dead; fewer latents, a lower learning rate or a larger `--aux-weight` may help",
                100.0 * share
            ),
            Self::Dense(share) => write!(
                f,
                "{:.0} % of the latents fire on more than a tenth of the tokens; fewer may fire with a smaller `--k`, or with \
                 a larger `--sparsity`",
                100.0 * share
            ),
            Self::OffTarget { l0, wanted } => write!(
                f,
                "{l0:.0} latents fire for a token where {wanted:.0} were wanted; a larger `--sparsity` pulls harder"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_late_and_in_words() {
        let at = |step, dead, l0| TrainProgress { step, steps: 100, dead, l0, ..TrainProgress::default() };
        let mut fired = [0; 50];
        fired[..3].fill(40);
        assert!(Notice::of(&at(20, 30, 90.0), &fired, 100, Some(32.0)).is_empty(), "too early");
        let notices = Notice::of(&at(70, 30, 90.0), &fired, 100, Some(32.0));
        let told: Vec<String> = notices.iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("60 % of the latents are dead;"), "{told:?}");
        assert!(told[1].starts_with("6 % of the latents fire on more than a tenth"), "{told:?}");
        assert!(told[2].starts_with("90 latents fire for a token where 32 were wanted"), "{told:?}");
        assert!(Notice::of(&at(70, 3, 35.0), &[1; 50], 100, Some(32.0)).is_empty(), "all is well");
    }
}
