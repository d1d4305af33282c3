//! How is CUDA reached by a program that is not linked with it?
//!
//! libtorch's CUDA part is a library of its own that registers itself with the rest when it is opened. What libtorch has
//! no call for (a second stream for copies, the free memory) is asked of the CUDA run time library, which came with it.
#![expect(unsafe_code, reason = "libraries are opened and called here, behind functions that are safe to call")]

use std::ffi::{c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// The version that the rest of libtorch is linked with; its parts do not mix.
const VERSION: &str = "2.11";
const LIBRARY: &str = "libtorch_cuda.so";
/// The CUDA run time of that version.
const CUDART: &str = "libcudart.so.13";

/// Opens libtorch's CUDA part from the first folder that has it, and looks for the device.
pub(super) fn open(index: usize, folders: &[PathBuf]) -> Result<()> {
    static OPENED: OnceLock<()> = OnceLock::new();
    if OPENED.get().is_none() {
        let missing = |reason: String| Error::CudaLibrary { reason, version: VERSION };
        let path = folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.is_file());
        let path = path.ok_or_else(|| missing(format!("no `{LIBRARY}` in {}", listed(folders))))?;
        match version_beside(&path) {
            Some(found) if !is_ours(&found) => return Err(Error::CudaVersion { expected: VERSION, found, path }),
            _ => {}
        }
        // Global, because what it loads in its turn looks for its names.
        // SAFETY: opening runs the library's initialisers, which register its kernels with the libtorch of the same
        // version that is loaded already; that is what it is made for.
        let library = unsafe { Library::open(Some(&path), RTLD_LAZY | RTLD_GLOBAL) };
        let library = library.map_err(|error| missing(error.to_string()))?;
        // Kernels stay registered until the process ends.
        std::mem::forget(library);
        let _ = OPENED.set(());
    }
    let found = device_count();
    if index < found { Ok(()) } else { Err(Error::NoCudaDevice { index, found }) }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that others ask")]
fn device_count() -> usize {
    if tch::Cuda::is_available() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 }
}

fn listed(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return "any folder".to_owned();
    }
    folders.iter().map(|folder| format!("`{}`", folder.display())).collect::<Vec<_>>().join(", ")
}

/// What lies beside the library: `torch/version.py` in Python's torch, `build-version` in libtorch by itself.
fn version_beside(library: &Path) -> Option<String> {
    let root = library.parent()?.parent()?;
    let read = |name: &str| fs_err::read_to_string(root.join(name)).ok();
    let python = read("version.py").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim();
        Some(line.trim_matches(['\'', '"']).to_owned())
    });
    python.or_else(|| read("build-version").map(|text| text.trim().to_owned()))
}

fn is_ours(version: &str) -> bool {
    version.strip_prefix(VERSION).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

type Code = c_int;
type Handle = *mut c_void;

/// Functions of the CUDA run time library; each gives 0 when it worked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cudart {
    pub(crate) set_device: unsafe extern "C" fn(c_int) -> Code,
    pub(crate) mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Code,
    pub(crate) stream_create_with_flags: unsafe extern "C" fn(*mut Handle, c_uint) -> Code,
    pub(crate) stream_wait_event: unsafe extern "C" fn(Handle, Handle, c_uint) -> Code,
    pub(crate) stream_synchronize: unsafe extern "C" fn(Handle) -> Code,
    pub(crate) event_create_with_flags: unsafe extern "C" fn(*mut Handle, c_uint) -> Code,
    pub(crate) event_record: unsafe extern "C" fn(Handle, Handle) -> Code,
    pub(crate) event_synchronize: unsafe extern "C" fn(Handle) -> Code,
    pub(crate) event_destroy: unsafe extern "C" fn(Handle) -> Code,
    pub(crate) memcpy_async: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, Handle) -> Code,
    pub(crate) host_alloc: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> Code,
    pub(crate) free_host: unsafe extern "C" fn(*mut c_void) -> Code,
}

impl Cudart {
    /// The library that libtorch's CUDA part has loaded.
    pub(crate) fn load() -> Result<Self> {
        let missing = |error: &libloading::Error| Error::CudaLibrary { reason: error.to_string(), version: VERSION };
        // SAFETY: its initialisers have run already when libtorch loaded it.
        let library = unsafe { Library::open(Some(CUDART), RTLD_LAZY) }.map_err(|error| missing(&error))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's signature, which has not changed since CUDA 3.2.
                *unsafe { library.get($name) }.map_err(|error| missing(&error))?
            };
        }
        let functions = Self {
            set_device: function!(b"cudaSetDevice\0"),
            mem_get_info: function!(b"cudaMemGetInfo\0"),
            stream_create_with_flags: function!(b"cudaStreamCreateWithFlags\0"),
            stream_wait_event: function!(b"cudaStreamWaitEvent\0"),
            stream_synchronize: function!(b"cudaStreamSynchronize\0"),
            event_create_with_flags: function!(b"cudaEventCreateWithFlags\0"),
            event_record: function!(b"cudaEventRecord\0"),
            event_synchronize: function!(b"cudaEventSynchronize\0"),
            event_destroy: function!(b"cudaEventDestroy\0"),
            memcpy_async: function!(b"cudaMemcpyAsync\0"),
            host_alloc: function!(b"cudaHostAlloc\0"),
            free_host: function!(b"cudaFreeHost\0"),
        };
        // The functions stay where they are.
        std::mem::forget(library);
        Ok(functions)
    }

    /// Bytes that are free on a device.
    pub(super) fn free_memory(&self, index: usize) -> Option<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both point to numbers of this function.
        let worked = unsafe {
            (self.set_device)(c_int::try_from(index).ok()?) == 0
                && (self.mem_get_info)(&raw mut free, &raw mut total) == 0
        };
        worked.then_some(free as u64)
    }
}

/// A stream beside libtorch's own, that brings bytes from a device to page-locked memory.
///
/// libtorch computes on the default stream, which this one does not wait for unless it is told to.
#[derive(Debug)]
pub(crate) struct CopyStream {
    cudart: Cudart,
    stream: Handle,
    index: c_int,
}

// SAFETY: streams and events of the CUDA run time may be used from every thread.
unsafe impl Send for CopyStream {}
// SAFETY: as above; the functions may be called at the same time.
unsafe impl Sync for CopyStream {}

/// A copy that is under way. Must be given to [`CopyStream::wait`] before its memory is used for anything.
#[derive(Debug)]
#[must_use]
pub(crate) struct Copying(Handle);

// SAFETY: an event of the CUDA run time may be waited for on every thread.
unsafe impl Send for Copying {}

impl CopyStream {
    pub(crate) fn new(cudart: Cudart, index: usize) -> Result<Self> {
        const NON_BLOCKING: c_uint = 1;
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        let mut stream = null_mut();
        // SAFETY: the handle is written to a variable of this function.
        unsafe {
            check("choose a device", (cudart.set_device)(index))?;
            check("make a stream", (cudart.stream_create_with_flags)(&raw mut stream, NON_BLOCKING))?;
        }
        Ok(Self { cudart, stream, index })
    }

    /// Starts to copy `from` to `to` as soon as what libtorch was asked for so far is computed.
    ///
    /// # Safety
    /// `from` must point to `bytes` bytes on the device, `to` to as many of page-locked memory. Both must stay, and nobody
    /// may touch `to`, until [`Self::wait`] has returned.
    pub(crate) unsafe fn start(&self, from: *const c_void, to: *mut c_void, bytes: usize) -> Result<Copying> {
        const NO_TIMING: c_uint = 2;
        const DEVICE_TO_HOST: c_int = 2;
        let cudart = &self.cudart;
        let mut event = null_mut();
        // SAFETY: the event is made here; the pointers are what the caller promises.
        unsafe {
            check("choose a device", (cudart.set_device)(self.index))?;
            check("make an event", (cudart.event_create_with_flags)(&raw mut event, NO_TIMING))?;
            check("mark what is computed", (cudart.event_record)(event, null_mut()))?;
            check("wait for what is computed", (cudart.stream_wait_event)(self.stream, event, 0))?;
            check("copy from a device", (cudart.memcpy_async)(to, from, bytes, DEVICE_TO_HOST, self.stream))?;
            // Recorded anew, the event now stands behind the copy.
            let marked = check("mark a copy", (cudart.event_record)(event, self.stream));
            if marked.is_err() {
                // Nobody can wait for this copy any more, and its memory is about to be let go.
                let _ = (cudart.stream_synchronize)(self.stream);
                let _ = (cudart.event_destroy)(event);
            }
            marked?;
        }
        Ok(Copying(event))
    }

    /// Waits until a copy is over.
    #[expect(clippy::needless_pass_by_value, reason = "a copy is waited for once")]
    pub(crate) fn wait(&self, copy: Copying) -> Result<()> {
        // SAFETY: the event was made by `start` and is destroyed only here.
        unsafe {
            check("wait for a copy", (self.cudart.event_synchronize)(copy.0))?;
            check("end an event", (self.cudart.event_destroy)(copy.0))
        }
    }
}

/// Main memory that a device copies from and to by itself: it is never moved and never swapped out.
#[derive(Debug)]
pub(crate) struct PageLocked {
    cudart: Cudart,
    begin: *mut c_void,
    bytes: usize,
}

// SAFETY: it is memory of its own, freed once, on any thread.
unsafe impl Send for PageLocked {}

impl PageLocked {
    /// What is in it at first is not said.
    pub(crate) fn new(cudart: Cudart, bytes: usize) -> Result<Self> {
        const FOR_ALL_DEVICES: c_uint = 1;
        let mut begin = null_mut();
        // SAFETY: the address is written to a variable of this function.
        let code = unsafe { (cudart.host_alloc)(&raw mut begin, bytes, FOR_ALL_DEVICES) };
        check("lock memory", code)?;
        Ok(Self { cudart, begin, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn begin(&self) -> *mut c_void {
        self.begin
    }

    /// Lets `with` use the beginning as a tensor, which must not stay behind.
    pub(crate) fn with_tensor<T>(&self, size: &[i64], kind: Kind, with: impl FnOnce(&mut Tensor) -> T) -> T {
        let numbers = size.iter().product::<i64>() as usize;
        assert!(numbers * kind.elt_size_in_bytes() <= self.bytes, "room for {size:?}");
        // SAFETY: there is room, as was just checked, and the tensor ends before the memory does.
        let mut tensor =
            unsafe { Tensor::from_blob(self.begin.cast::<u8>(), size, &strides(size), kind, tch::Device::Cpu) };
        with(&mut tensor)
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        // SAFETY: it came from `host_alloc`, and nobody has it any more.
        unsafe { (self.cudart.free_host)(self.begin) };
    }
}

/// Of a tensor whose numbers lie one behind the other.
fn strides(size: &[i64]) -> Vec<i64> {
    (1..=size.len()).map(|dim| size[dim..].iter().product()).collect()
}

fn check(what: &'static str, code: Code) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Cuda { what, code }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(0, &[folder.path().to_owned()]).unwrap_err().to_string();
        let begins =
            format!("cannot open libtorch's CUDA part: no `libtorch_cuda.so` in `{}`\nhint: ", folder.path().display());
        assert!(error.starts_with(&begins), "{error}");
        assert!(open(0, &[]).unwrap_err().to_string().contains("in any folder"));
    }

    #[test]
    fn another_version_is_refused_before_it_is_opened() {
        for (file, text) in
            [("version.py", "__version__ = '2.9.1+cu128'\ndebug = False\n"), ("build-version", "2.110.0\n")]
        {
            let torch = tempfile::tempdir().unwrap();
            let lib = torch.path().join("lib");
            fs_err::create_dir(&lib).unwrap();
            fs_err::write(torch.path().join(file), text).unwrap();
            fs_err::write(lib.join(LIBRARY), "not a library").unwrap();
            let error = open(0, std::slice::from_ref(&lib)).unwrap_err();
            assert!(matches!(error, Error::CudaVersion { .. }), "{error}");
            // Of our version, it is opened, and what the loader says is told.
            fs_err::write(torch.path().join(file), text.replace("2.9.1", "2.11.0").replace("2.110", "2.11")).unwrap();
            let error = open(0, &[lib]).unwrap_err().to_string();
            assert!(error.starts_with("cannot open libtorch's CUDA part: ") && error.contains(LIBRARY), "{error}");
        }
    }
}
