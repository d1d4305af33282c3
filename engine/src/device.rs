//! Where does the arithmetic run, and on how many threads?
//!
//! The only module of this crate that may read the environment.

mod cuda;
#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;

pub(crate) use self::cuda::{CopyStream, Copying, Cudart, PageLocked};
use crate::error::{Error, Result};

/// Names a folder with libtorch's CUDA part.
const CUDA_FOLDER: &str = "POLARISCOPE_LIBTORCH_CUDA";

/// Where a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
}

impl From<Device> for tch::Device {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(index) => Self::Cuda(index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` for the first CUDA device, or `cuda:1`.
    fn from_str(text: &str) -> Result<Self> {
        let index = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
        };
        // libtorch counts devices in a signed byte.
        let index = index.filter(|&index| i8::try_from(index).is_ok());
        index.map(Self::Cuda).ok_or_else(|| Error::UnknownDevice { found: text.to_owned() })
    }
}

impl Device {
    /// Makes the device ready; call it before the first tensor is made, because libtorch decides then what it has.
    ///
    /// A CUDA device needs libtorch's CUDA part, which this program is not linked with: it is looked for where the
    /// environment says and in Python's torch, and opened now. The CPU needs nothing.
    pub fn open(self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(index) => cuda::open(index, &cuda_folders()),
        }
    }

    /// Bytes that are free; `None` where that cannot be told. Of an opened CUDA device, or of main memory.
    pub fn free_memory(self) -> Option<u64> {
        match self {
            Self::Cpu => free_main_memory(&fs_err::read_to_string("/proc/meminfo").ok()?),
            Self::Cuda(index) => Cudart::load().ok()?.free_memory(index),
        }
    }
}

/// Where libtorch's CUDA part may lie: where the environment says, and in Python's torch.
#[expect(clippy::disallowed_methods, reason = "this is the module that may read the environment")]
fn cuda_folders() -> Vec<PathBuf> {
    let named = std::env::var_os(CUDA_FOLDER).map(PathBuf::from);
    let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    named.into_iter().chain(std::env::split_paths(&libraries)).chain(python_torch()).collect()
}

/// The folder `torch/lib` of the Python that is first in the path. Finds it without importing it.
fn python_torch() -> Option<PathBuf> {
    const SCRIPT: &str = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let python =
        Command::new("python3").args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(python.stdout).ok().filter(|_| python.status.success())?;
    Some(PathBuf::from(folder.trim()).join("lib"))
}

/// From what Linux says of its memory, in kilobytes.
fn free_main_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// How many threads this machine offers to this process.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets libtorch use `threads` threads inside one operation; 0 means all that the machine offers.
///
/// Returns the number in force. Call it before the first forward pass: libtorch starts its pool then.
pub fn set_threads(threads: usize) -> usize {
    let threads = if threads == 0 { available_threads() } else { threads };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:128", "CPU", ""] {
            let error = text.parse::<Device>().unwrap_err();
            assert_eq!(error.to_string(), format!("expected `cpu`, `cuda` or `cuda:` and a number, found `{text}`"));
        }
    }

    #[test]
    fn free_memory_is_what_linux_says_is_available() {
        let meminfo = "MemTotal:       24677340 kB\nMemFree:          512000 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(free_main_memory(meminfo), Some(22 << 30));
        assert_eq!(free_main_memory("MemTotal: 1 kB\n"), None);
        Device::Cpu.open().unwrap();
        assert_eq!(fake::cudart().free_memory(0), Some(1 << 30));
    }

    #[test]
    fn threads_are_those_asked_for_or_all() {
        assert_eq!(set_threads(1), 1);
        assert_eq!(set_threads(0), available_threads());
    }
}
