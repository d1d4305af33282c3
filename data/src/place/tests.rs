//! Does a run in a store hold what one on a disk holds, whatever fails on the way?
