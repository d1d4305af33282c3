//! Where do tests find the real model, and how do they make small ones?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Kind, Tensor};

use crate::device::Device;
use crate::gemma::model::{Batch, LoadOptions, Model, Precision};
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

/// The device on which the tests of whole models run: that of `$POLARISCOPE_TEST_DEVICE`, or the CPU. It is opened.
///
/// # Panics
/// Where there is no such device: a test that was to run on it must not pass without it.
#[expect(clippy::disallowed_methods, reason = "tests have no command line that could name a device")]
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let named = std::env::var("POLARISCOPE_TEST_DEVICE").unwrap_or_default();
        let device = if named.is_empty() { Ok(Device::Cpu) } else { named.parse::<Device>() };
        let opened = device.and_then(|device| device.open().map(|()| device));
        opened.unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Where a fixture lies, whether it exists or not.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The tiny model of this name among the fixtures, on the [`device`] of the tests.
///
/// # Panics
/// Where it cannot be loaded.
pub fn model(name: &str, precision: Precision) -> Model {
    let options = LoadOptions { device: device(), ..precision.into() };
    Model::load(fixture(name), options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The largest difference between two tensors of one shape, wherever they lie.
///
/// # Panics
/// Where the shapes differ.
pub fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let here = |x: &Tensor| x.to_device(tch::Device::Cpu).to_kind(Kind::Double);
    (here(a) - here(b)).abs().max().double_value(&[])
}

/// Every file below a folder with its bytes, by its path from there.
///
/// # Panics
/// Where one cannot be read.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs_err::read_dir(next).expect("the folder is there") {
            let path = entry.expect("the folder is read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                found.insert(name, fs_err::read(&path).expect("the file is there"));
            }
        }
    }
    found
}

/// Sequences of `length` tokens each, end to end, for benches: the ids look random and are the same everywhere.
pub fn batch(d_vocab: usize, sequences: usize, length: usize) -> Batch {
    let mut batch = Batch::default();
    for sequence in 0..sequences {
        let id = |i: usize| ((sequence * length + i) * 7919 % (d_vocab - 1000)) as u32 + 500;
        batch.push(&(0..length).map(id).collect::<Vec<_>>());
    }
    batch
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
