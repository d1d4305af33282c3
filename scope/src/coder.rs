//! A coder of one site or two, or of several: which lies in a folder?

use std::{ops::Deref, path::Path};

use data::{HookPoint, Place, features::FeatureGroup};
use serde_json::{Map, Value};

use crate::{
    crosscoder::{Crosscoder, LatentGroup},
    error::{Error, Result},
    kernels::add,
    pretrained::{
        crosscoder,
        sae_lens::{self, Config},
    },
    sae::{Sae, SparseCoder},
    sites::Sites,
    train::VOUCHERS,
};

/// Any coder.
#[derive(Clone, Debug, PartialEq)]
pub enum Coder {
    /// An autoencoder or a transcoder.
    Sae(Sae),
    /// A coder between several sites.
    Crosscoder(Crosscoder),
}

impl From<Sae> for Coder {
    fn from(sae: Sae) -> Self {
        Self::Sae(sae)
    }
}

impl From<Crosscoder> for Coder {
    fn from(coder: Crosscoder) -> Self {
        Self::Crosscoder(coder)
    }
}

impl Deref for Coder {
    type Target = dyn SparseCoder;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Sae(sae) => sae,
            Self::Crosscoder(coder) => coder,
        }
    }
}

impl Coder {
    /// Opens a folder as [`Sae::load`] and [`Crosscoder::load`] do.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load_scaled(dir.as_ref(), None)
    }

    /// The same; `scale` as for [`sae_lens::load_scaled`].
    pub(crate) fn load_scaled(dir: &Path, scale: Option<f32>) -> Result<Self> {
        let path = dir.join(sae_lens::CONFIG_FILE);
        if path.is_file() && crosscoder::is_one(&Config::read(path)?) {
            return Ok(crosscoder::load(dir)?.into());
        }
        Ok(sae_lens::load_scaled(dir, scale)?.into())
    }

    /// Writes a folder as [`Sae::save`] and [`Crosscoder::save`] do.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        match self {
            Self::Sae(sae) => sae.save(dir),
            Self::Crosscoder(coder) => coder.save(dir),
        }
    }

    /// The same at a place, where nothing else stays; in an object store, `cfg.json` comes last too.
    pub fn save_at(&self, place: &Place) -> Result<()> {
        self.save(place.bring(|_| false)?)?;
        Ok(place.publish("", &VOUCHERS)?)
    }

    /// Its name.
    pub fn architecture(&self) -> String {
        match self {
            Self::Sae(sae) => sae.architecture(),
            Self::Crosscoder(coder) => coder.architecture().into(),
        }
    }

    /// What is known about its making.
    pub fn metadata(&self) -> &Map<String, Value> {
        match self {
            Self::Sae(sae) => &sae.metadata,
            Self::Crosscoder(coder) => &coder.metadata,
        }
    }

    /// The names of the hook points that it reads, and of those that it writes; `None` where it does not say.
    pub fn hook_names(&self) -> [Vec<Option<&str>>; 2] {
        match self {
            Self::Sae(sae) => [vec![sae.hook_name()], vec![sae.hook_name_out()]],
            Self::Crosscoder(coder) => [&coder.inputs, &coder.outputs]
                .map(|sites| sites.iter().map(|site| site.hook_name.as_deref()).collect()),
        }
    }

    /// The hook points that it reads and writes, if it says all of them; an error where it names one that does not exist.
    pub fn sites(&self) -> Result<Option<Sites>> {
        let [inputs, outputs] = self.hook_names();
        Ok(parse(inputs)?.zip(parse(outputs)?).map(|(inputs, outputs)| Sites { inputs, outputs }))
    }

    /// The hook points that it reads, if it says them.
    pub fn inputs_named(&self) -> Result<Option<Vec<HookPoint>>> {
        let [inputs, _] = self.hook_names();
        parse(inputs)
    }

    /// Which of the sites that it reads each group of latents reads, and from which latent on, where groups read one each.
    pub fn groups(&self, inputs: &[HookPoint]) -> Vec<FeatureGroup> {
        let Self::Crosscoder(coder) = self else { return Vec::new() };
        let groups = coder.groups.iter().zip(coder.latents());
        let of = |(group, latents): (&LatentGroup, std::ops::Range<usize>)| {
            let hook_point = inputs.get(group.reads.start).copied().filter(|_| group.reads.len() == 1)?;
            Some(FeatureGroup { hook_point, first_feature: latents.start as u32 })
        };
        groups.map(of).collect::<Option<_>>().unwrap_or_default()
    }

    /// Whether it writes vectors as wide as the residual stream.
    pub fn writes_stream(&self, d_model: usize) -> bool {
        self.output_widths().iter().all(|&width| width == d_model)
    }

    /// What a latent writes into the residual stream in all, `[d_model]`, where [`Coder::writes_stream`]: the last site's part of
    /// its decoder row where sites are the stream itself, as each of them has what was written before; otherwise the sum over
    /// sites.
    pub fn stream_direction(&self, latent: usize) -> Vec<f32> {
        let row = self.decoder_row(latent);
        let widths = self.output_widths();
        let Some(&width) = widths.last() else { return Vec::new() };
        let [_, names] = self.hook_names();
        let is_stream = names.iter().flatten().any(|name| name.contains("hook_resid"));
        if is_stream || widths.len() == 1 {
            return row[row.len() - width..].to_vec();
        }
        let mut sum = vec![0.0; width];
        for part in row.chunks_exact(width) {
            add(part, &mut sum);
        }
        sum
    }

    /// The autoencoder or transcoder that it is; an error that names `dir` where it is another.
    pub fn single(self, dir: &Path) -> Result<Sae> {
        match self {
            Self::Sae(sae) => Ok(sae),
            Self::Crosscoder(_) => Err(Error::SeveralSites { path: dir.into() }),
        }
    }
}

/// Hook points by their names, if all have one.
fn parse(names: Vec<Option<&str>>) -> Result<Option<Vec<HookPoint>>> {
    let Some(names) = names.into_iter().collect::<Option<Vec<&str>>>() else { return Ok(None) };
    Ok(Some(names.into_iter().map(|name| Ok(name.parse()?)).collect::<Result<_>>()?))
}
