use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::*;

fn path() -> PathBuf {
    PathBuf::from("x.safetensors")
}

fn small() -> Vec<u8> {
    let (a, b) = (vec![1; 24], vec![2; 8]);
    let views = [
        ("a", TensorView::new(Dtype::F32, vec![3, 2], &a).unwrap()),
        ("b", TensorView::new(Dtype::BF16, vec![4], &b).unwrap()),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize(views, Some(metadata)).unwrap()
}

/// A file with this header and `n` bytes of data.
fn file(header: &str, n: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; n]);
    file
}

#[test]
fn reads_what_the_library_wrote() {
    let file = small();
    let entries = parse(&file, &path()).unwrap();
    let [a, b] = entries.as_slice() else { panic!("two tensors") };
    assert_eq!((a.name.as_str(), a.shape.as_slice(), a.dtype.as_str()), ("a", [3, 2].as_slice(), "F32"));
    assert_eq!(file[a.offset..a.offset + a.bytes], [1; 24]);
    assert_eq!((b.name.as_str(), b.shape.as_slice(), b.format.unwrap().name), ("b", [4].as_slice(), "BF16"));
    assert_eq!(file[b.offset..b.offset + b.bytes], [2; 8]);
}

#[test]
fn truncation_is_an_error_at_every_byte() {
    let file = small();
    for length in 0..file.len() {
        let error = parse(&file[..length], &path()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{length}: {error}");
    }
    let mut longer = file;
    longer.push(0);
    assert!(parse(&longer, &path()).is_err());
}

#[test]
fn any_byte_may_be_damaged() {
    let file = small();
    for at in 0..file.len() {
        for damage in [0x01, 0x10, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= damage;
            if let Ok(entries) = parse(&file, &path()) {
                for entry in entries {
                    assert!(entry.offset + entry.bytes <= file.len(), "byte {at}");
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let max = usize::MAX;
    let cases = [
        (u64::MAX.to_le_bytes().to_vec(), "expected a header of at most 0 bytes, found 18446744073709551615"),
        (file("[1]", 0), "expected a JSON object as header, found other text"),
        (
            file(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
            "expected the bytes of [2] in F32 for tensor `t`, found 4",
        ),
        (
            file(r#"{"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8),
            "expected dtype, shape and offsets of tensor `t`, found other values",
        ),
        (
            file(&format!(r#"{{"t":{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,8]}}}}"#), 8),
            "expected the bytes of [18446744073709551615",
        ),
        (
            file(&format!(r#"{{"t":{{"dtype":"Q7","shape":[1],"data_offsets":[0,{max}]}}}}"#), 8),
            "expected tensor `t` inside 8 bytes of data",
        ),
        (
            file(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
            "expected tensor `t` at byte 62, found it at 66",
        ),
        (file(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 8), "expected a file of 66 bytes, found 70"),
        (file(&"[".repeat(100_000), 0), "expected a JSON object as header, found other text"),
    ];
    for (file, expected) in cases {
        let message = parse(&file, &path()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "expected `{expected}`, found `{message}`");
        assert!(message.contains("in the safetensors file `x.safetensors`"), "{message}");
    }
}

#[test]
fn an_unknown_dtype_matters_only_where_it_is_needed() {
    let file = file(r#"{"t":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1);
    let entries = parse(&file, &path()).unwrap();
    let message = required_format(&entries[0], &path()).unwrap_err().to_string();
    assert_eq!(message, "expected one of the dtypes F32, F16, BF16 for tensor `t`, found `F4` in `x.safetensors`");
}
