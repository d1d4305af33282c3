//! Where does the table of per-layer embeddings lie, and how do the rows of a batch get to the device?
//!
//! The table of an E2B holds more numbers than the rest of the model, and a token needs one row of it. So it stays in its
//! file, unless one asks for something else: [`PlePlacement`]. Every placement gives the same numbers.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::gemma::load::PlePlacement;
use crate::weights::{Rows, Weights};

/// A table of rows by token.
#[derive(Debug)]
pub struct PleTable {
    source: Source,
    kind: Kind,
    /// Where rows go.
    device: Device,
    n_rows: usize,
    n_cols: usize,
    /// Page-locked, so that the copy to a CUDA device is one transfer.
    staging: Mutex<Option<Tensor>>,
}

#[derive(Debug)]
enum Source {
    Stored(Rows),
    /// `[rows, columns]`, in main memory or on the device.
    Held(Tensor),
}

impl PleTable {
    /// Opens the matrix `name`, whose rows will be handed out in `kind` (`Float` or `BFloat16`) on `device`.
    ///
    /// Weights that are in memory already are used where they are, so that gradients reach them.
    pub fn open(weights: &Weights, name: &str, kind: Kind, placement: PlePlacement, device: Device) -> Result<Self> {
        if !matches!(kind, Kind::Float | Kind::BFloat16) {
            return Err(Error::UnsupportedKind { name: name.to_owned(), kind });
        }
        let source = match (placement, weights.rows(name)?) {
            (PlePlacement::Disk, Some(rows)) => Source::Stored(rows),
            (PlePlacement::Disk, None) => Source::Held(weights.tensor(name, kind)?),
            (PlePlacement::Cpu, _) => Source::Held(weights.tensor(name, kind)?.to_device(Device::Cpu)),
            (PlePlacement::Device, _) => Source::Held(weights.tensor(name, kind)?.to_device(device)),
        };
        let (n_rows, n_cols) = match &source {
            Source::Stored(rows) => (rows.n_rows(), rows.n_cols()),
            Source::Held(table) => {
                let (rows, columns) =
                    table.size2().map_err(|source| torch(format!("read `{name}` as rows"), source))?;
                (rows as usize, columns as usize)
            }
        };
        Ok(Self { source, kind, device, n_rows, n_cols, staging: Mutex::new(None) })
    }

    /// How many rows the table has.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The rows of `ids` as they are stored, without the scale: `[ids, columns]`.
    pub fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.n_rows) {
            return Err(Error::UnknownToken { id, vocab_size: self.n_rows });
        }
        match &self.source {
            Source::Stored(rows) if self.device == Device::Cpu => rows.gather(ids, self.kind),
            Source::Stored(rows) => self.staged(ids.len(), |out| rows.gather_to(ids, out)),
            Source::Held(table) if table.device() == self.device || table.requires_grad() => {
                Ok(table.index_select(0, &indices(ids, table.device())).to_device(self.device))
            }
            Source::Held(table) => self.staged(ids.len(), |out| {
                let select = table.f_index_select_out(out, 0, &indices(ids, table.device()));
                select.map(drop).map_err(|source| torch("select rows".to_owned(), source))
            }),
        }
    }

    /// Lets `fill` write `n` rows into page-locked memory and copies them to the device at once.
    fn staged(&self, n: usize, fill: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<Tensor> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = match staging.take().filter(|buffer| buffer.size()[0] as usize >= n) {
            Some(buffer) => buffer,
            None => Tensor::f_empty([n as i64, self.n_cols as i64], (self.kind, Device::Cpu))
                .and_then(|buffer| buffer.f_pin_memory(self.device))
                .map_err(|source| torch(format!("lock {n} rows into memory"), source))?,
        };
        let mut rows = buffer.narrow(0, 0, n as i64);
        fill(&mut rows)?;
        // The copy is over when this returns, so that the buffer is free again.
        let copied = rows.f_to(self.device).map_err(|source| torch(format!("copy {n} rows"), source));
        *staging = Some(buffer);
        copied
    }
}

fn indices(ids: &[u32], device: Device) -> Tensor {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&ids).to_device(device)
}

fn torch(what: String, source: tch::TchError) -> Error {
    Error::Torch { what, source }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Any matrix will do.
    const NAME: &str = "model.embed_tokens.weight";

    fn weights() -> Weights {
        Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma3/text")).unwrap()
    }

    #[test]
    fn every_placement_gives_the_same_rows() {
        let weights = weights();
        let ids = [7, 319, 0, 7, 7, 12];
        for kind in [Kind::Float, Kind::BFloat16] {
            let whole = weights.tensor(NAME, kind).unwrap();
            let expected = whole.index_select(0, &indices(&ids, Device::Cpu));
            for placement in [PlePlacement::Disk, PlePlacement::Cpu, PlePlacement::Device] {
                let table = PleTable::open(&weights, NAME, kind, placement, Device::Cpu).unwrap();
                assert_eq!((table.n_rows(), table.n_cols()), (320, whole.size()[1] as usize));
                let rows = table.gather(&ids).unwrap();
                assert_eq!(rows.kind(), kind);
                assert_eq!(rows, expected, "{placement:?} {kind:?}");
            }
        }
    }

    #[test]
    fn the_table_outlives_the_weights() {
        let weights = weights();
        let table = PleTable::open(&weights, NAME, Kind::Float, PlePlacement::Disk, Device::Cpu).unwrap();
        let expected = weights.tensor(NAME, Kind::Float).unwrap().get(5);
        drop(weights);
        assert_eq!(table.gather(&[5]).unwrap().get(0), expected);
    }

    #[test]
    fn a_token_without_a_row_is_refused_by_every_placement() {
        for placement in [PlePlacement::Disk, PlePlacement::Cpu, PlePlacement::Device] {
            let table = PleTable::open(&weights(), NAME, Kind::Float, placement, Device::Cpu).unwrap();
            let error = table.gather(&[3, 320]).unwrap_err();
            assert_eq!(error.to_string(), "expected a token id below 320, found 320", "{placement:?}");
        }
    }

    #[test]
    fn only_numbers_that_the_network_computes_in() {
        let error = PleTable::open(&weights(), NAME, Kind::Half, PlePlacement::Disk, Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::UnsupportedKind { kind: Kind::Half, .. }), "{error}");
    }
}
