//! What does a picture show that was dropped on the window?

use std::path::PathBuf;

use fs_err as fs;

use super::Source;
use crate::loader::{Ask, Cancel, Failure};

/// Asks for the link in a picture.
#[derive(Debug, Clone)]
pub(crate) struct PictureQuery {
    pub(crate) path: PathBuf,
}

impl Ask for PictureQuery {
    type Answer = String;
    const NAME: &'static str = "picture";

    fn answer(&self, _: &Source, _: &Cancel) -> Result<String, Failure> {
        crate::picture::link_of(&fs::read(&self.path)?).ok_or_else(|| {
            Failure::new(
                format!("there is no link in the picture `{}`", self.path.display()),
                "pictures that were saved here carry one, as long as other programs keep it",
            )
        })
    }

    fn bytes(answer: &String) -> usize {
        answer.len()
    }
}
