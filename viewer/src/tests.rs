//! Does the window do what its labels say?
