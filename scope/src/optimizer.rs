//! How do gradients move the weights? Adam with f32 moments, the decoder's rows kept at norm 1, and a learning rate that warms
//! up, stays, and decays.

use rayon::prelude::*;

use crate::{
    kernels::{AdamStep, adam, dot, scale},
    layout::Layout,
    step::{Group, Step, Weights},
    workers::Workers,
};

/// Latents that one thread takes at a time.
const BLOCK_LATENTS: usize = 32;

/// Adam's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamSettings {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    /// The largest norm of all gradients together; larger ones are scaled down to it.
    pub(crate) max_gradient_norm: f64,
}

/// Adam's memory.
#[derive(Clone, Debug)]
pub(crate) struct Adam {
    /// First moments.
    pub(crate) m: Weights,
    /// Second moments.
    pub(crate) v: Weights,
    /// Steps done.
    pub(crate) steps: u64,
}

impl Adam {
    /// For weights of this layout; `own` as in [`Weights::zeros`].
    pub(crate) fn new(layout: &Layout, own: usize) -> Self {
        Self { m: Weights::zeros(layout, own), v: Weights::zeros(layout, own), steps: 0 }
    }

    /// Moves `weights` by the gradients of `step`, and makes the decoder's rows unit vectors again. What the architecture
    /// learns beside weights and biases moves `own_rate` times as fast.
    pub(crate) fn step(
        &mut self,
        workers: &Workers,
        weights: &mut Weights,
        step: &Step,
        gradient_norm: f64,
        [lr, own_rate]: [f64; 2],
        settings: AdamSettings,
    ) {
        self.steps += 1;
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let constants = AdamStep {
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            epsilon: settings.epsilon as f32,
            rate: (lr / (1.0 - settings.beta1.powi(t))) as f32,
            root_scale: (1.0 / (1.0 - settings.beta2.powi(t)).sqrt()) as f32,
            gradient_scale: (settings.max_gradient_norm / (gradient_norm + 1e-6)).min(1.0) as f32,
        };
        let (_, touched) = step.fired();
        let gradients = &step.gradients;
        let of_groups = weights.groups.iter_mut().zip(&gradients.groups);
        for ((group, gradients), (m, v)) in of_groups.zip(self.m.groups.iter_mut().zip(&mut self.v.groups)) {
            let touched = &touched[group.layout.latents.clone()];
            workers.install(|| move_latents(group, gradients, [m, v], touched, constants));
            let own = AdamStep { rate: constants.rate * own_rate as f32, ..constants };
            for (((values, m), v), gradient) in group.own.iter_mut().zip(&mut m.own).zip(&mut v.own).zip(&gradients.own)
            {
                adam(values, m, v, gradient, own);
            }
            adam(&mut group.b_enc, &mut m.b_enc, &mut v.b_enc, &gradients.b_enc, constants);
        }
        let (m, v) = (&mut self.m, &mut self.v);
        for (((skip, m), v), gradient) in
            weights.skips.iter_mut().zip(&mut m.skips).zip(&mut v.skips).zip(&gradients.skips)
        {
            adam(skip.as_mut_slice(), m.as_mut_slice(), v.as_mut_slice(), gradient.as_slice(), constants);
        }
        adam(&mut weights.b_dec, &mut m.b_dec, &mut v.b_dec, &gradients.b_dec, constants);
    }
}

/// The rows of the encoder and of the decoder.
fn move_latents(group: &mut Group, gradients: &Group, [m, v]: [&mut Group; 2], touched: &[bool], constants: AdamStep) {
    let (d_in, d_out) = (group.encoder.cols(), group.decoder.cols());
    let zero = vec![0.0; d_in.max(d_out)];
    let [of_encoder, of_decoder] = [d_in, d_out].map(|width| BLOCK_LATENTS * width);
    group
        .encoder
        .as_mut_slice()
        .par_chunks_mut(of_encoder)
        .zip(m.encoder.as_mut_slice().par_chunks_mut(of_encoder))
        .zip(v.encoder.as_mut_slice().par_chunks_mut(of_encoder))
        .zip(group.decoder.as_mut_slice().par_chunks_mut(of_decoder))
        .zip(m.decoder.as_mut_slice().par_chunks_mut(of_decoder))
        .zip(v.decoder.as_mut_slice().par_chunks_mut(of_decoder))
        .enumerate()
        .for_each(|(block, (((((encoder, m_enc), v_enc), decoder), m_dec), v_dec))| {
            for i in 0..encoder.len() / d_in {
                let latent = block * BLOCK_LATENTS + i;
                let (enc, dec) = if touched[latent] {
                    (gradients.encoder.row(latent), gradients.decoder.row(latent))
                } else {
                    (&zero[..d_in], &zero[..d_out])
                };
                let row = i * d_in..(i + 1) * d_in;
                let (m, v) = (&mut m_enc[row.clone()], &mut v_enc[row.clone()]);
                adam(&mut encoder[row], m, v, enc, constants);
                let row = i * d_out..(i + 1) * d_out;
                let (m, v) = (&mut m_dec[row.clone()], &mut v_dec[row.clone()]);
                let decoder = &mut decoder[row];
                adam(decoder, m, v, dec, constants);
                make_unit(decoder);
            }
        });
}

/// Scales a row to norm 1, unless it is zero.
pub(crate) fn make_unit(row: &mut [f32]) {
    let norm = dot(row, row).sqrt();
    if norm > 0.0 {
        scale(row, 1.0 / norm);
    }
}

/// The learning rate by step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) lr: f64,
    pub(crate) warmup_steps: u64,
    pub(crate) decay_steps: u64,
    pub(crate) steps: u64,
}

impl Schedule {
    /// At `step`, counted from 0: up in a straight line to `lr`, and over the last `decay_steps` down in a straight line, so
    /// that the step after the last would have 0.
    pub(crate) fn lr(&self, step: u64) -> f64 {
        let up = (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        let down = self.steps.saturating_sub(step) as f64 / self.decay_steps.max(1) as f64;
        self.lr * up.min(down).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let schedule = Schedule { lr: 2.0, warmup_steps: 3, decay_steps: 4, steps: 12 };
        let rates: Vec<f64> = (0..12).map(|step| schedule.lr(step)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5]);
    }

    #[test]
    fn rows_become_unit_vectors() {
        let mut row = [3.0, 4.0];
        make_unit(&mut row);
        assert_eq!(row, [0.6, 0.8]);
        let mut zero = [0.0, 0.0];
        make_unit(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
