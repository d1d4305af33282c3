//! Does the whole way hold, from a checkpoint and a corpus to a picture of a feature?

mod main_path;
mod support;
