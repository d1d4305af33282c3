use std::path::PathBuf;

use super::*;
use crate::error::Error;
use crate::testing::gguf_file;

fn path() -> PathBuf {
    PathBuf::from("x.gguf")
}

fn small() -> Vec<u8> {
    let metadata = [
        ("general.architecture", Value::Text("gemma3".to_owned())),
        ("a.count", Value::Int(7)),
        ("a.large", Value::Uint(u64::MAX)),
        ("a.number", Value::Float(0.5)),
        ("a.flag", Value::Bool(true)),
        ("a.texts", Value::Texts(vec!["x".to_owned(), String::new(), "▁y".to_owned()])),
        ("a.ints", Value::Ints(vec![-1, 2])),
        ("a.floats", Value::Floats(vec![1.5, -2.0])),
        ("a.flags", Value::Bools(vec![true, false])),
    ];
    let tensors = [("w", vec![3, 2], 0, (0..24).collect()), ("q", vec![2, 32], 8, vec![1; 68])];
    gguf_file(&metadata, &tensors)
}

#[test]
fn reads_what_was_written() {
    let file = small();
    let header = Header::parse(&file, &path()).unwrap();
    let metadata = &header.metadata;
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("gemma3"));
    assert_eq!(metadata.usize("a.count").unwrap(), Some(7));
    assert_eq!(metadata.get("a.large"), Some(&Value::Uint(u64::MAX)));
    assert_eq!(metadata.f64("a.number").unwrap(), Some(0.5));
    assert_eq!(metadata.bool("a.flag").unwrap(), Some(true));
    assert_eq!(metadata.texts("a.texts").unwrap().unwrap(), ["x", "", "▁y"]);
    assert_eq!(metadata.ints("a.ints").unwrap().unwrap(), [-1, 2]);
    assert_eq!(metadata.floats("a.floats").unwrap().unwrap(), [1.5, -2.0]);
    assert_eq!(metadata.get("a.flags"), Some(&Value::Bools(vec![true, false])));
    assert_eq!(metadata.usize("absent").unwrap(), None);

    let [w, q] = header.tensors.as_slice() else { panic!("two tensors") };
    assert_eq!((w.shape.as_slice(), w.format.name, w.bytes), ([3, 2].as_slice(), "F32", 24));
    assert_eq!(file[w.offset..w.offset + w.bytes], (0..24).collect::<Vec<u8>>());
    assert_eq!((q.shape.as_slice(), q.format.name, q.bytes), ([2, 32].as_slice(), "Q8_0", 68));
    assert_eq!(file[q.offset..q.offset + q.bytes], [1; 68]);
}

#[test]
fn a_wrong_type_names_the_key() {
    let header = Header::parse(&small(), &path()).unwrap();
    let error = header.metadata.usize("a.number").unwrap_err().to_string();
    assert_eq!(error, "expected a count for `a.number`, found 0.5 in `x.gguf`");
}

#[test]
fn truncation_is_an_error_at_every_byte() {
    let file = small();
    for length in 0..file.len() {
        let error = Header::parse(&file[..length], &path()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{length}: {error}");
    }
}

#[test]
fn any_byte_may_be_damaged() {
    let file = small();
    for at in 0..file.len() {
        for damage in [0x01, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= damage;
            // Either it still reads, or it is an error; whatever it says lies inside the file.
            if let Ok(header) = Header::parse(&file, &path()) {
                for tensor in header.tensors {
                    assert!(tensor.offset + tensor.bytes <= file.len(), "byte {at}");
                }
            }
        }
    }
}

fn message(file: &[u8]) -> String {
    Header::parse(file, &path()).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_is_named() {
    let file = small();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let hint = "\nhint: the file is damaged or incomplete, fetch it again";
    let cases = [
        (with(0, b"GGML"), "expected the magic number `GGUF`, found other bytes in the GGUF file `x.gguf`"),
        (with(4, &1_u32.to_le_bytes()), "expected version 2 or 3, found 1 in the GGUF file `x.gguf`"),
        (
            with(4, &3_u32.to_be_bytes()),
            "expected little-endian values, found a big-endian version number in the GGUF file `x.gguf`",
        ),
        (
            with(8, &u64::MAX.to_le_bytes()),
            "expected at most 20 tensors in the 500 bytes that follow, found 18446744073709551615 in the GGUF file `x.gguf`",
        ),
        (
            with(16, &(1_u64 << 40).to_le_bytes()),
            "expected at most 37 metadata values in the 492 bytes that follow, found 1099511627776 in the GGUF file `x.gguf`",
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(message(&file), format!("{expected}{hint}"));
    }
}

#[test]
fn tensors_that_cannot_be() {
    let tensor = |shape: Vec<usize>, format: u32| gguf_file(&[], &[("t", shape, format, vec![0; 64])]);
    let unknown = message(&tensor(vec![256], 23));
    assert!(
        unknown.starts_with("expected one of the dtypes F32, F16, BF16, ")
            && unknown.contains("for tensor `t`, found `IQ4_XS`"),
        "{unknown}"
    );
    assert!(
        message(&tensor(vec![2, 31], 8))
            .starts_with("expected rows of tensor `t` to be a multiple of 32 values of Q8_0, found 31")
    );
    assert!(
        message(&tensor(vec![usize::MAX, usize::MAX], 0)).starts_with("expected a tensor `t` that fits into memory")
    );
    assert!(
        message(&tensor(vec![1 << 40], 0))
            .starts_with("expected 4398046511104 bytes of tensor `t` at offset 0, found a file of")
    );
    assert!(message(&tensor(vec![1; 5], 0)).starts_with("expected at most 4 dimensions of tensor `t`, found 5"));
    let twice = gguf_file(&[], &[("t", vec![1], 0, vec![0; 4]), ("t", vec![1], 0, vec![0; 4])]);
    assert!(message(&twice).starts_with("tensor `t` stands twice"));
    let twice = gguf_file(&[("k", Value::Int(1)), ("k", Value::Int(2))], &[]);
    assert!(message(&twice).starts_with("metadata key `k` stands twice"));
    let alignment = gguf_file(&[("general.alignment", Value::Int(24))], &[]);
    assert!(message(&alignment).starts_with("expected a power of two as alignment, found 24"));
}
