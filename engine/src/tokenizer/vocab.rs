//! Which string has which id, in both directions?
//!
//! All strings lie in one allocation, and the table that finds them holds ids only: a quarter of a million tokens load
//! in milliseconds.

/// The strings of the vocabulary by id.
#[derive(Debug)]
pub(super) struct Vocab {
    text: String,
    /// Where the string of each id ends in `text`.
    ends: Vec<usize>,
    /// Open addressing: the id plus one, or zero. A power of two of them.
    slots: Vec<u32>,
    /// By id, of the tokens that stand for one byte.
    bytes: Vec<Option<u8>>,
}

impl Vocab {
    /// Where a string stands twice, the first id is found.
    pub(super) fn new<'a>(strings: impl ExactSizeIterator<Item = &'a str>, is_byte: impl Fn(u32) -> bool) -> Self {
        let n = strings.len();
        let mut vocab = Self {
            text: String::with_capacity(8 * n),
            ends: Vec::with_capacity(n),
            slots: vec![0; (2 * n).next_power_of_two()],
            bytes: Vec::with_capacity(n),
        };
        for (id, string) in (0..).zip(strings) {
            vocab.text.push_str(string);
            vocab.ends.push(vocab.text.len());
            vocab.bytes.push(if is_byte(id) { byte_of(string) } else { None });
            let slot = vocab.slot(string);
            if vocab.slots[slot] == 0 {
                vocab.slots[slot] = id + 1;
            }
        }
        vocab
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The string of an id.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.text[start..end])
    }

    /// The id of a string.
    pub(super) fn find(&self, string: &str) -> Option<u32> {
        self.slots[self.slot(string)].checked_sub(1)
    }

    /// The byte that the token stands for, if it is a byte token.
    pub(super) fn byte(&self, id: u32) -> Option<u8> {
        self.bytes.get(id as usize).copied().flatten()
    }

    /// The slot that holds the string, or the empty one where it would go. There always is an empty one.
    fn slot(&self, string: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(string) & mask;
        while let Some(id) = self.slots[slot].checked_sub(1) {
            if self.get(id) == Some(string) {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// The byte in `<0xE2>`.
fn byte_of(string: &str) -> Option<u8> {
    let digits = string.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Eight bytes at a time, multiplied and folded: not for strings that an adversary picks, fast for short ones.
fn hash(string: &str) -> usize {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = string.len() as u64;
    for chunk in string.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    hash as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_holds() {
        let words: Vec<String> = (0..5000).map(|n| format!("w{n}")).collect();
        let vocab = Vocab::new(words.iter().map(String::as_str), |_| false);
        for (id, word) in (0..).zip(&words) {
            assert_eq!(vocab.find(word), Some(id));
            assert_eq!(vocab.get(id), Some(word.as_str()));
        }
        assert_eq!(vocab.find("absent"), None);
        assert_eq!(vocab.get(5000), None);
    }

    #[test]
    fn bytes_are_those_that_are_declared() {
        let vocab = Vocab::new(["<0xE2>", "<0x41>", "<0xZZ>"].into_iter(), |id| id != 1);
        assert_eq!(vocab.byte(0), Some(0xe2));
        assert_eq!(vocab.byte(1), None);
        assert_eq!(vocab.byte(2), None);
    }
}
