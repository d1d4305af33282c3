//! Do the tensors that a checkpoint has match those that its configuration asks for?

use std::collections::BTreeMap;
use std::path::Path;

use super::{Place, TensorInfo};
use crate::config::{Config, TensorSpec};
use crate::error::{Error, Result};

/// The checkpoint's tensors as they are found, against those that the configuration asks for.
pub(super) struct Checkpoint<'a> {
    path: &'a Path,
    expected: Vec<TensorSpec>,
    shapes: BTreeMap<String, Vec<usize>>,
    found: BTreeMap<String, (TensorInfo, Place)>,
    left_out: BTreeMap<&'static str, usize>,
}

pub(super) type Checked = (Vec<TensorInfo>, BTreeMap<String, Place>, Vec<String>);

impl<'a> Checkpoint<'a> {
    pub(super) fn new(path: &'a Path, config: &Config) -> Self {
        let expected = config.tensors();
        let shapes = expected.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
        Self { path, expected, shapes, found: BTreeMap::new(), left_out: BTreeMap::new() }
    }

    pub(super) fn expects(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    pub(super) fn leave_out(&mut self, part: &'static str) {
        *self.left_out.entry(part).or_default() += 1;
    }

    /// Adds a tensor that was found in `file`, under its canonical name.
    pub(super) fn add(&mut self, info: TensorInfo, place: Place, file: &Path) -> Result<()> {
        let Some(expected) = self.shapes.get(&info.name) else {
            return Err(Error::UnexpectedTensor { name: info.stored_name, path: file.to_owned() });
        };
        if *expected != info.shape {
            let (expected, found) = (expected.clone(), info.shape);
            return Err(Error::WrongShape { name: info.stored_name, expected, found, path: file.to_owned() });
        }
        if let Some((first, _)) = self.found.insert(info.name.clone(), (info, place)) {
            // The same tensor under two names, or in two files: nobody can say which one is meant.
            return Err(Error::UnexpectedTensor { name: first.stored_name, path: file.to_owned() });
        }
        Ok(())
    }

    /// The shape that the configuration asks for.
    pub(super) fn expected_shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    pub(super) fn finish(mut self) -> Result<Checked> {
        let mut tensors = Vec::with_capacity(self.expected.len());
        let mut places = BTreeMap::new();
        for spec in self.expected {
            let Some((info, place)) = self.found.remove(&spec.name) else {
                return Err(Error::MissingTensor { name: spec.name, path: self.path.to_owned() });
            };
            tensors.push(info);
            places.insert(spec.name, place);
        }
        let changes = self.left_out.into_iter().map(|(part, n)| format!("left out {n} tensors of {part}")).collect();
        Ok((tensors, places, changes))
    }
}
