//! Where do tests find the real model, and how do they make small ones?

use std::path::PathBuf;

use crate::weights::gguf::Value;

/// The real 270M below the cache folder.
const MODEL: &str = "models/gemma-3-270m/gemma-3-270m-q4_k_m.gguf";

/// The quantized Gemma 3 270M in the cache, where `cargo xtask test` puts it. `None` where it is not.
///
/// The cache is `$POLARISCOPE_CACHE`, `$XDG_CACHE_HOME/polariscope` or `~/.cache/polariscope`. A test that gets `None`
/// says on stderr that it was left out, and passes.
#[expect(
    clippy::disallowed_methods,
    reason = "tests of the real model find it without a command line that could say where"
)]
pub fn cached_model() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("POLARISCOPE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("polariscope")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/polariscope")))?;
    let model = cache.join(MODEL);
    model.is_file().then_some(model)
}

/// The bytes of a GGUF file with these metadata and tensors, for tests of what reads them.
///
/// A tensor is its name, its shape with the outermost dimension first, ggml's number for its format, and its bytes.
pub fn gguf_file(metadata: &[(&str, Value)], tensors: &[(&str, Vec<usize>, u32, Vec<u8>)]) -> Vec<u8> {
    const ALIGNMENT: usize = 32;
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut file, key);
        push_value(&mut file, value);
    }
    let mut offset = 0_usize;
    for (name, shape, format, bytes) in tensors {
        push_text(&mut file, name);
        file.extend((shape.len() as u32).to_le_bytes());
        for &dim in shape.iter().rev() {
            file.extend((dim as u64).to_le_bytes());
        }
        file.extend(format.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(ALIGNMENT);
    }
    for (_, _, _, bytes) in tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(bytes);
    }
    file
}

fn push_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// Writes the value's type and the value. Whole numbers are written as `u32`, as converters do.
fn push_value(file: &mut Vec<u8>, value: &Value) {
    const ARRAY: u32 = 9;
    let mut list = |element: u32, n: usize| {
        file.extend(ARRAY.to_le_bytes());
        file.extend(element.to_le_bytes());
        file.extend((n as u64).to_le_bytes());
    };
    match value {
        Value::Bool(flag) => {
            file.extend(7_u32.to_le_bytes());
            file.push(u8::from(*flag));
        }
        Value::Int(number) => {
            file.extend(4_u32.to_le_bytes());
            file.extend((*number as u32).to_le_bytes());
        }
        Value::Uint(number) => {
            file.extend(10_u32.to_le_bytes());
            file.extend(number.to_le_bytes());
        }
        Value::Float(number) => {
            file.extend(6_u32.to_le_bytes());
            file.extend((*number as f32).to_le_bytes());
        }
        Value::Text(text) => {
            file.extend(8_u32.to_le_bytes());
            push_text(file, text);
        }
        Value::Bools(flags) => {
            list(7, flags.len());
            file.extend(flags.iter().map(|flag| u8::from(*flag)));
        }
        Value::Ints(numbers) => {
            list(5, numbers.len());
            file.extend(numbers.iter().flat_map(|number| (*number as i32).to_le_bytes()));
        }
        Value::Floats(numbers) => {
            list(6, numbers.len());
            file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Value::Texts(texts) => {
            list(8, texts.len());
            for text in texts {
                push_text(file, text);
            }
        }
    }
}
