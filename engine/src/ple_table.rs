//! Where does the table of per-layer embeddings lie, and how do the rows of a batch get to the device?
//!
//! The table of an E2B holds more numbers than the rest of the model, and a token needs one row of it. So it stays in its
//! file, unless one asks for something else: [`PlePlacement`]. Every placement gives the same numbers.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::device::{Cudart, PageLocked};
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
    /// Where rows are put together in main memory, with room for the largest batch so far.
    buffer: Mutex<Option<Room>>,
}

/// Main memory for rows.
#[derive(Debug)]
enum Room {
    Plain(Tensor),
    /// From where rows go on to a CUDA device.
    Locked(PageLocked),
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
        Ok(Self { source, kind, device, n_rows, n_cols, buffer: Mutex::new(None) })
    }

    /// How many rows the table has.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Lets `then` use the rows of `ids` as they are stored, without the scale: `[ids, columns]`.
    ///
    /// What it gets is overwritten by the next call, so it must make something of its own out of it: to have memory of
    /// its own for the rows of every batch costs several times what the look-up costs.
    pub fn with_rows<T>(&self, ids: &[u32], then: impl FnOnce(&Tensor) -> T) -> Result<T> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.n_rows) {
            return Err(Error::UnknownToken { id, vocab_size: self.n_rows });
        }
        match &self.source {
            Source::Stored(rows) => self.staged(ids.len(), |out| rows.gather_to(ids, out), then),
            Source::Held(table) if table.device() != Device::Cpu || table.requires_grad() => {
                Ok(then(&table.index_select(0, &indices(ids, table.device())).to_device(self.device)))
            }
            Source::Held(table) => {
                let select = |out: &mut Tensor| {
                    let selected = table.f_index_select_out(out, 0, &indices(ids, Device::Cpu));
                    selected.map(drop).map_err(|source| torch("select rows".to_owned(), source))
                };
                self.staged(ids.len(), select, then)
            }
        }
    }

    /// `fill` writes `n` rows into the buffer in main memory, `then` uses them on the device.
    fn staged<T>(
        &self,
        n: usize,
        fill: impl FnOnce(&mut Tensor) -> Result<()>,
        then: impl FnOnce(&Tensor) -> T,
    ) -> Result<T> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = n * self.n_cols * self.kind.elt_size_in_bytes();
        let room = match buffer.take().filter(|room| room.bytes() >= bytes) {
            Some(room) => room,
            None => self.room(n, bytes)?,
        };
        let result = room.with_rows(n as i64, self.n_cols as i64, self.kind, |rows| {
            fill(rows)?;
            match self.device {
                Device::Cpu => Ok(then(rows)),
                // The copy is over when this returns, so that the room is free again.
                device => Ok(then(&rows.f_to(device).map_err(|source| torch(format!("copy {n} rows"), source))?)),
            }
        });
        *buffer = Some(room);
        result
    }

    fn room(&self, n: usize, bytes: usize) -> Result<Room> {
        match self.device {
            Device::Cpu => {
                let room = Tensor::f_empty([n as i64, self.n_cols as i64], (self.kind, Device::Cpu));
                Ok(Room::Plain(room.map_err(|source| torch(format!("make room for {n} rows"), source))?))
            }
            _ => Ok(Room::Locked(PageLocked::new(Cudart::load()?, bytes)?)),
        }
    }
}

impl Room {
    fn bytes(&self) -> usize {
        match self {
            Self::Plain(room) => room.numel() * room.kind().elt_size_in_bytes(),
            Self::Locked(room) => room.bytes(),
        }
    }

    /// Lets `with` use the first rows, `[rows, columns]`.
    fn with_rows<T>(&self, rows: i64, columns: i64, kind: Kind, with: impl FnOnce(&mut Tensor) -> T) -> T {
        match self {
            Self::Plain(room) => with(&mut room.narrow(0, 0, rows)),
            Self::Locked(room) => room.with_tensor(&[rows, columns], kind, with),
        }
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
    use crate::testing::device;

    /// Any matrix will do.
    const NAME: &str = "model.embed_tokens.weight";

    fn gather(table: &PleTable, ids: &[u32]) -> Result<Tensor> {
        table.with_rows(ids, Tensor::copy)
    }

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
                let table = PleTable::open(&weights, NAME, kind, placement, device().into()).unwrap();
                assert_eq!((table.n_rows(), table.n_cols()), (320, whole.size()[1] as usize));
                let rows = gather(&table, &ids).unwrap();
                assert_eq!((rows.kind(), rows.device()), (kind, device().into()));
                assert_eq!(rows.to_device(Device::Cpu), expected, "{placement:?} {kind:?}");
            }
        }
    }

    #[test]
    fn gradients_reach_a_table_in_memory() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma4/e");
        let stored = Weights::open(model).unwrap();
        let tensors: Vec<(String, Tensor)> = stored
            .names()
            .map(|name| (name.to_owned(), stored.tensor(name, Kind::Float).unwrap().set_requires_grad(true)))
            .collect();
        let name = crate::gemma::ple::TABLE;
        let leaf = tensors.iter().find(|(found, _)| found == name).unwrap().1.shallow_clone();
        let weights = Weights::in_memory(stored.config().clone(), tensors).unwrap();
        let table = PleTable::open(&weights, name, Kind::Float, PlePlacement::Disk, Device::Cpu).unwrap();
        table.with_rows(&[4, 9, 4], |rows| rows.sum(Kind::Float)).unwrap().backward();
        let by_row = leaf.grad().sum_dim_intlist(1, false, Kind::Float) / table.n_cols() as f64;
        assert_eq!([4, 5, 9].map(|row| by_row.double_value(&[row])), [2.0, 0.0, 1.0]);
    }

    #[test]
    fn the_table_outlives_the_weights() {
        let weights = weights();
        let table = PleTable::open(&weights, NAME, Kind::Float, PlePlacement::Disk, Device::Cpu).unwrap();
        let expected = weights.tensor(NAME, Kind::Float).unwrap().get(5);
        drop(weights);
        assert_eq!(gather(&table, &[5]).unwrap().get(0), expected);
    }

    #[test]
    fn a_token_without_a_row_is_refused_by_every_placement() {
        for placement in [PlePlacement::Disk, PlePlacement::Cpu, PlePlacement::Device] {
            let table = PleTable::open(&weights(), NAME, Kind::Float, placement, Device::Cpu).unwrap();
            let error = gather(&table, &[3, 320]).unwrap_err();
            assert_eq!(error.to_string(), "expected a token id below 320, found 320", "{placement:?}");
        }
    }

    #[test]
    fn only_numbers_that_the_network_computes_in() {
        let error = PleTable::open(&weights(), NAME, Kind::Half, PlePlacement::Disk, Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::UnsupportedKind { kind: Kind::Half, .. }), "{error}");
    }
}
