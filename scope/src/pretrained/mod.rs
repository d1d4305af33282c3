//! Which formats of other tools are read and written?

pub(crate) mod sae_lens;
