//! What is minimized, written plainly: dense, in f64, through libtorch, with the closed-form gradients of
//! `reference/sae.md` §4.1.
//!
//! Training runs the fast path in `step`, which computes the same from the few latents that fire. This one is what it is
//! tested against, and what is tested against finite differences.
//!
//! With rows `X [B, d_in]`, pre-activations `Z = (X − b_dec)·w_enc + b_enc`, activations `F = σ(Z)`, residual
//! `R = F·w_dec + b_dec − X`, and the variance `V(X) = (Σ‖x‖² − ‖Σx‖²/B)/B`:
//!
//! - reconstruction: `L_rec = Σ‖R‖² / (B·V(X))`, the batch's fraction of variance unexplained;
//! - AuxK (arXiv 2406.04093 §A.2): with `E = −R` held fixed and `Ê = F_aux·w_dec` from the `k_aux` largest positive
//!   pre-activations among dead latents, `L_aux = α·min(n_dead/k_aux, 1)·Σ‖Ê − E‖² / (B·V(E))`. The factor for few dead
//!   latents is SAELens's and sparsify's.

use tch::{Kind, Tensor};

use crate::error::Result;

/// Which pre-activations of a batch become activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The `k` largest positive of each row.
    TopK {
        /// How many.
        k: usize,
    },
    /// The `k` times rows largest positive of the batch.
    BatchTopK {
        /// How many in the mean over rows.
        k: usize,
    },
}

/// The second chance of dead latents: they reconstruct what the living ones leave.
#[derive(Clone, Copy, Debug)]
pub struct AuxK<'a> {
    /// The dead latents, ascending.
    pub dead: &'a [u32],
    /// How many of them may fire in a row.
    pub k: usize,
    /// α.
    pub weight: f64,
}

impl AuxK<'_> {
    /// α, reduced when fewer latents are dead than could fire.
    pub(crate) fn scaled_weight(&self) -> f64 {
        self.weight * (self.dead.len() as f64 / self.k.max(1) as f64).min(1.0)
    }
}

/// Weights, or gradients of weights, in f64.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// `[d_in, d_sae]`.
    pub w_enc: Vec<f64>,
    /// `[d_sae, d_in]`.
    pub w_dec: Vec<f64>,
    /// `[d_sae]`.
    pub b_enc: Vec<f64>,
    /// `[d_in]`.
    pub b_dec: Vec<f64>,
}

/// The two parts of the loss; their sum is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Fraction of the batch's variance that is not reconstructed.
    pub reconstruction: f64,
    /// AuxK, weighted.
    pub aux: f64,
}

/// The loss on `rows` (`[B, d_in]`) and its gradients.
///
/// `error` is what AuxK reconstructs (`[B, d_in]`); `None` takes `E = −R`, as training does. (It is an argument because it is
/// held fixed while the gradient is taken.)
pub fn loss_and_gradients(
    parameters: &Parameters,
    rows: &[f64],
    selection: Selection,
    aux: Option<AuxK<'_>>,
    error: Option<&[f64]>,
) -> Result<(Loss, Parameters)> {
    let (d_in, d_sae) = (parameters.b_dec.len() as i64, parameters.b_enc.len() as i64);
    let x = Tensor::from_slice(rows).f_view([-1, d_in])?; // [B, d_in]
    let n = x.size()[0] as f64;
    let w_enc = Tensor::from_slice(&parameters.w_enc).f_view([d_in, d_sae])?;
    let w_dec = Tensor::from_slice(&parameters.w_dec).f_view([d_sae, d_in])?;
    let b_enc = Tensor::from_slice(&parameters.b_enc);
    let b_dec = Tensor::from_slice(&parameters.b_dec);

    let centered = &x - &b_dec;
    let z = centered.f_matmul(&w_enc)? + &b_enc; // [B, d_sae]
    let f = select(&z, selection)?; // [B, d_sae]
    let residual = f.f_matmul(&w_dec)? + &b_dec - &x; // [B, d_in]
    let reconstruction = mean_square(&residual) / variance(&x);

    let g = &residual * (2.0 / (n * variance(&x))); // [B, d_in]
    let mut dw_dec = f.tr().f_matmul(&g)?; // [d_sae, d_in]
    let mut db_dec = sum_rows(&g); // [d_in]
    let mut dz = g.f_matmul(&w_dec.tr())? * f.gt(0.0); // [B, d_sae]

    let mut loss = Loss { reconstruction, aux: 0.0 };
    if let Some(aux) = aux.filter(|aux| !aux.dead.is_empty()) {
        let dead = Tensor::from_slice(&aux.dead.iter().map(|&latent| i64::from(latent)).collect::<Vec<_>>());
        let error = match error {
            Some(error) => Tensor::from_slice(error).f_view([-1, d_in])?,
            None => -&residual,
        };
        let k = aux.k.min(aux.dead.len());
        let f_aux = select(&z.f_index_select(1, &dead)?, Selection::TopK { k })?; // [B, n_dead]
        let w_dead = w_dec.f_index_select(0, &dead)?; // [n_dead, d_in]
        let missing = f_aux.f_matmul(&w_dead)? - &error; // [B, d_in]
        let scale = aux.scaled_weight() / variance(&error);
        if scale.is_finite() {
            loss.aux = scale * mean_square(&missing);
            let g = missing * (2.0 * scale / n); // [B, d_in]
            dw_dec = dw_dec.f_index_add(0, &dead, &f_aux.tr().f_matmul(&g)?)?;
            let dz_dead = g.f_matmul(&w_dead.tr())? * f_aux.gt(0.0); // [B, n_dead]
            dz = dz.f_index_add(1, &dead, &dz_dead)?;
        }
    }

    let dw_enc = centered.tr().f_matmul(&dz)?; // [d_in, d_sae]
    let db_enc = sum_rows(&dz); // [d_sae]
    db_dec -= w_enc.f_matmul(&db_enc)?;
    let gradients = Parameters {
        w_enc: values(&dw_enc)?,
        w_dec: values(&dw_dec)?,
        b_enc: values(&db_enc)?,
        b_dec: values(&db_dec)?,
    };
    Ok((loss, gradients))
}

fn select(z: &Tensor, selection: Selection) -> Result<Tensor> {
    let positive = z.f_relu()?;
    let (flat, k) = match selection {
        Selection::TopK { k } => (positive.shallow_clone(), k as i64),
        Selection::BatchTopK { k } => (positive.f_view([1, -1])?, k as i64 * z.size()[0]),
    };
    let k = k.min(flat.size()[1]);
    let (values, indices) = flat.f_topk(k, -1, true, false)?;
    Ok(flat.f_zeros_like()?.f_scatter(-1, &indices, &values)?.f_view_as(z)?)
}

fn sum_rows(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(0, false, Kind::Double)
}

/// Mean over rows of the squared norm.
fn mean_square(x: &Tensor) -> f64 {
    (x * x).sum(Kind::Double).double_value(&[]) / x.size()[0] as f64
}

/// Mean over rows of the squared distance from the mean row.
fn variance(x: &Tensor) -> f64 {
    let mean = sum_rows(x) / x.size()[0] as f64;
    mean_square(&(x - mean))
}

fn values(x: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(x.f_contiguous()?.f_view(-1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Picks one of the four.
    type Part = fn(&mut Parameters) -> &mut Vec<f64>;

    const D_IN: usize = 4;
    const D_SAE: usize = 8;
    const ROWS: usize = 6;

    fn parameters(random: &mut Random) -> Parameters {
        let mut normals = |n: usize, scale: f64| (0..n).map(|_| scale * random.normal()).collect();
        Parameters {
            w_enc: normals(D_IN * D_SAE, 0.5),
            w_dec: normals(D_IN * D_SAE, 0.5),
            b_enc: normals(D_SAE, 0.1),
            b_dec: normals(D_IN, 0.3),
        }
    }

    /// Compares every gradient with `(L(w + h) − L(w − h)) / 2h`.
    fn check(selection: Selection, aux: Option<AuxK<'_>>) {
        const STEP: f64 = 1e-6;
        let mut random = Random::new(7);
        let parameters = parameters(&mut random);
        let rows: Vec<f64> = (0..ROWS * D_IN).map(|_| random.normal()).collect();
        let error: Vec<f64> = (0..ROWS * D_IN).map(|_| random.normal()).collect();
        let total = |parameters: &Parameters| {
            let (loss, _) = loss_and_gradients(parameters, &rows, selection, aux, Some(&error)).unwrap();
            loss.reconstruction + loss.aux
        };
        let (loss, gradients) = loss_and_gradients(&parameters, &rows, selection, aux, Some(&error)).unwrap();
        assert!(loss.reconstruction > 0.0);
        assert_eq!(loss.aux > 0.0, aux.is_some());

        let parts: [(&str, Part); 4] = [
            ("w_enc", |p| &mut p.w_enc),
            ("w_dec", |p| &mut p.w_dec),
            ("b_enc", |p| &mut p.b_enc),
            ("b_dec", |p| &mut p.b_dec),
        ];
        let mut gradients = gradients;
        for (name, part) in parts {
            let mut largest = 0.0_f64;
            for (index, &gradient) in part(&mut gradients).iter().enumerate() {
                let shifted = |by: f64| {
                    let mut shifted = parameters.clone();
                    part(&mut shifted)[index] += by;
                    total(&shifted)
                };
                let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
                assert!((numeric - gradient).abs() < 1e-6, "{name}[{index}]: {numeric} and {gradient}");
                largest = largest.max(gradient.abs());
            }
            assert!(largest > 1e-3, "{name} has a gradient");
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        check(Selection::TopK { k: 2 }, None);
        check(Selection::BatchTopK { k: 2 }, None);
    }

    #[test]
    fn gradients_of_auxk_equal_finite_differences() {
        let dead = [1, 4, 6];
        for k in [1, 2, 5] {
            let aux = Some(AuxK { dead: &dead, k, weight: 0.5 });
            check(Selection::TopK { k: 2 }, aux);
            check(Selection::BatchTopK { k: 2 }, aux);
        }
    }

    #[test]
    fn without_an_error_auxk_reconstructs_the_residual() {
        let mut random = Random::new(3);
        let parameters = parameters(&mut random);
        let rows: Vec<f64> = (0..ROWS * D_IN).map(|_| random.normal()).collect();
        let aux = Some(AuxK { dead: &[], k: 2, weight: 0.5 });
        let (loss, _) = loss_and_gradients(&parameters, &rows, Selection::TopK { k: 2 }, aux, None).unwrap();
        assert_eq!(loss.aux, 0.0);
        let aux = Some(AuxK { dead: &[0, 1, 2, 3, 4, 5, 6, 7], k: 8, weight: 0.5 });
        let (loss, _) = loss_and_gradients(&parameters, &rows, Selection::TopK { k: 2 }, aux, None).unwrap();
        assert!(loss.aux > 0.0 && loss.aux.is_finite());
    }
}
