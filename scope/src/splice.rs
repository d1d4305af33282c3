//! How is a coder put into a forward pass, and how are its features edited there?
//!
//! A coder reads the activation `x` at one hook point and speaks of the activation `y` at another; for an [`Sae`] both are
//! the same. With the error term kept, `y` becomes `y + (decode(edited) − decode(f))`, so that what the coder does not
//! explain stays; without it, `y` becomes `decode(edited)`. Encoder and decoder work in f32, whatever the model computes in.

use std::{cell::RefCell, collections::BTreeMap, error::Error as StdError, path::Path, path::PathBuf, rc::Rc};

use data::{HookPoint, ModelShape};
use engine::{
    hook::Hooks,
    intervention::{FeatureEdit, RowFunction, Selection},
};
use tch::{Kind, Tensor};

use crate::{
    coder::Coder,
    error::{Error, Result},
    kernels::weighted_sum,
    sae::{Sae, Scratch, SparseCoder},
    sparse::SparseRows,
};

/// A coder with edits of its features.
pub struct Splice {
    coder: Rc<dyn SparseCoder>,
    /// By feature; of several for one feature, the last.
    edits: BTreeMap<u32, FeatureEdit>,
    keep_error: bool,
}

impl Splice {
    /// `keep_error`: whether what the coder does not explain stays.
    pub fn new(coder: Rc<dyn SparseCoder>, edits: &[(usize, FeatureEdit)], keep_error: bool) -> Result<Self> {
        let d_sae = coder.d_sae();
        if let Some(&(feature, _)) = edits.iter().find(|(feature, _)| *feature >= d_sae) {
            return Err(Error::Feature { feature, d_sae });
        }
        let edits = edits.iter().map(|&(feature, edit)| (feature as u32, edit)).collect();
        Ok(Self { coder, edits, keep_error })
    }

    /// Changes rows that are both read and spoken of, `[n, d_in]`.
    pub fn apply(&self, rows: &mut [f32]) {
        let read = rows.to_vec();
        let acts = self.encode(&read);
        self.write(&acts, &read, rows);
    }

    /// Reads at the first hook point and writes at the second, which comes later in the pass or is the same. Tokens that are
    /// not selected are left alone.
    pub fn attach<'a>(
        &'a self,
        [input, output]: [HookPoint; 2],
        model: &ModelShape,
        tokens: &'a Selection,
        hooks: &mut Hooks<'a>,
    ) -> Result<()> {
        let d_in = self.coder.d_in();
        for (point, expected) in [(input, d_in), (output, self.coder.d_out())] {
            let width = point.shape(model).map_or(0, |shape| shape.iter().product());
            if width != expected {
                return Err(Error::Width { expected, width, hook: point.to_string() });
            }
        }
        let read: Rc<RefCell<(SparseRows, Vec<f32>)>> = Rc::default();
        let seen = Rc::clone(&read);
        hooks.read(input, move |_, value| {
            let rows = values(value);
            *read.borrow_mut() = (self.encode(&rows), rows);
        });
        hooks.add(output, move |place, value| {
            let chosen = tokens.chosen(place);
            let (acts, read) = &*seen.borrow();
            let mut rows = values(value);
            let width = rows.len() / chosen.len().max(1);
            let mut changed = false;
            for (row, values) in rows.chunks_exact_mut(width.max(1)).enumerate().filter(|(row, _)| chosen[*row]) {
                let mut one = SparseRows::new();
                let (latents, found) = acts.row(row);
                one.push_row(found.iter().copied().zip(latents.iter().copied()));
                self.write(&one, &read[row * d_in..][..d_in], values);
                changed = true;
            }
            changed.then(|| Tensor::from_slice(&rows).view_as(value).to_device(value.device()))
        });
        Ok(())
    }

    fn encode(&self, rows: &[f32]) -> SparseRows {
        let mut acts = SparseRows::new();
        self.coder.encode(rows, &mut Scratch::default(), &mut acts);
        acts
    }

    /// `read`: `[n, d_in]`; `rows`: `[n, d_out]`; as many as `acts` has.
    fn write(&self, acts: &SparseRows, read: &[f32], rows: &mut [f32]) {
        if !self.keep_error {
            self.coder.decode(&self.edited(acts), read, rows);
            return;
        }
        let width = rows.len() / acts.n_rows().max(1);
        let (mut latents, mut changes) = (Vec::new(), Vec::new());
        let read = read.chunks_exact(self.coder.d_in());
        for (((found, values), read), row) in acts.iter().zip(read).zip(rows.chunks_exact_mut(width.max(1))) {
            latents.clear();
            changes.clear();
            let scale = self.coder.decoder_scale(read);
            // The biases of both reconstructions cancel, and so does every feature that is not edited.
            for (&latent, &edit) in &self.edits {
                let was = found.binary_search(&latent).map_or(0.0, |at| values[at]);
                let change = becomes(edit) - was;
                if change != 0.0 {
                    latents.push(latent);
                    changes.push(scale * change);
                }
            }
            for (&latent, change) in latents.iter().zip(&changes) {
                weighted_sum(&[0], std::slice::from_ref(change), &self.coder.decoder_row(latent as usize), row);
            }
        }
    }

    /// The activations with the edits.
    fn edited(&self, acts: &SparseRows) -> SparseRows {
        let mut edited = SparseRows::new();
        for (latents, values) in acts.iter() {
            let found = latents.iter().copied().zip(values.iter().copied());
            let mut row: BTreeMap<u32, f32> = found.collect();
            row.extend(self.edits.iter().map(|(&latent, &edit)| (latent, becomes(edit))));
            edited.push_row(row.into_iter().filter(|(_, value)| *value != 0.0).map(|(latent, value)| (value, latent)));
        }
        edited
    }
}

/// The activation of an edited feature.
fn becomes(edit: FeatureEdit) -> f32 {
    match edit {
        FeatureEdit::Ablate => 0.0,
        FeatureEdit::Clamp(at) => at,
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    let x = x.to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; x.numel()];
    x.copy_data(&mut values, x.numel());
    values
}

/// The coders that interventions name by their folders; each is opened once.
#[derive(Debug, Default)]
pub struct Coders {
    open: BTreeMap<PathBuf, Rc<Sae>>,
}

impl Coders {
    fn get(&mut self, dir: &Path) -> Result<Rc<Sae>> {
        if let Some(sae) = self.open.get(dir) {
            return Ok(Rc::clone(sae));
        }
        let sae = Rc::new(Coder::load(dir)?.single(dir)?);
        self.open.insert(dir.to_owned(), Rc::clone(&sae));
        Ok(sae)
    }
}

impl engine::intervention::Coders for Coders {
    fn decoder_row(&mut self, coder: &Path, feature: usize) -> Result<Vec<f32>, Box<dyn StdError + Send + Sync>> {
        let sae = self.get(coder)?;
        if feature >= sae.d_sae() {
            return Err(Error::Feature { feature, d_sae: sae.d_sae() }.into());
        }
        Ok(sae.w_dec.row(feature).to_vec())
    }

    fn splice(
        &mut self,
        coder: &Path,
        point: HookPoint,
        width: usize,
        edits: &[(usize, FeatureEdit)],
        keep_error: bool,
    ) -> Result<RowFunction, Box<dyn StdError + Send + Sync>> {
        let sae = self.get(coder)?;
        if sae.transcoder {
            return Err(Error::TwoSites { path: coder.into() }.into());
        }
        if sae.d_in() != width {
            return Err(Error::Width { expected: sae.d_in(), width, hook: point.to_string() }.into());
        }
        let splice = Splice::new(sae, edits, keep_error)?;
        Ok(Box::new(move |rows| splice.apply(rows)))
    }
}

#[cfg(test)]
mod tests;
