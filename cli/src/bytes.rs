//! How does a person say how much memory or disk?

use std::fmt;
use std::str::FromStr;

use crate::output;

/// Bytes that a person reads and writes: `1.0GB`, `512 MB`, `1000000`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    /// As far as memory can be addressed.
    pub(crate) fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&output::size(self.0).replace(' ', ""))
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, f64); 5] = [("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("B", 1.0)];
        let upper = text.trim().to_ascii_uppercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|&(name, unit)| upper.strip_suffix(name).map(|number| (number.trim_end(), unit)))
            .unwrap_or((&upper, 1.0));
        match number.parse::<f64>() {
            Ok(number) if number.is_finite() && number * unit >= 1.0 => Ok(Self((number * unit) as u64)),
            _ => Err("expected bytes such as `512MB` or `4GB`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_bytes_or_units() {
        for (text, expected) in [("1GB", 1_000_000_000), ("512 mb", 512_000_000), ("1.5kB", 1500), ("7", 7), ("7B", 7)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap().0, expected, "{text}");
        }
        for text in ["", "GB", "-1", "many", "inf", "0"] {
            assert!(text.parse::<Bytes>().unwrap_err().contains("`512MB`"), "{text}");
        }
    }
}
