//! What does a program do when the disk fails below it, or when it is killed in the middle of a write?
//!
//! A library for `LD_PRELOAD`: it stands between a program and the calls that change files, so the program that is tested
//! is the real one, whatever wrote the file. `tests::soak::Fault` has what the variables say:
//!
//! - `FAULTS_ROOT`: only files below this folder are looked at.
//! - `FAULTS_TRACE`: a file that gets a line `call path` for each call, and `! call path` where the fault struck.
//! - `FAULTS_PLAN`: `action call nth path`, where a path that is left out stands for every one.
#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "it takes the place of functions of the C library")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const O_CREAT: c_int = 0o100;
const O_WRONLY_APPEND_CREAT: c_int = 0o1 | 0o2000 | O_CREAT;
const SIGKILL: c_int = 9;
/// The next library's symbol, behind this one's.
const NEXT: *mut c_void = -1_isize as *mut c_void;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getpid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn readlink(path: *const c_char, out: *mut c_char, size: usize) -> isize;
    fn __errno_location() -> *mut c_int;
}

type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;
type Write = unsafe extern "C" fn(c_int, *const c_void, usize) -> isize;
type Sync = unsafe extern "C" fn(c_int) -> c_int;
type Rename = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
type WriteAt = unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize;
type Truncate = unsafe extern "C" fn(c_int, i64) -> c_int;
type Mkdir = unsafe extern "C" fn(*const c_char, c_uint) -> c_int;

/// The C library's own functions.
struct Real {
    open: Open,
    write: Write,
    write_at: WriteAt,
    truncate: Truncate,
    fsync: Sync,
    fdatasync: Sync,
    rename: Rename,
    mkdir: Mkdir,
}

static REAL: OnceLock<Real> = OnceLock::new();

fn real() -> &'static Real {
    REAL.get_or_init(|| {
        let next = |name: &CStr| {
            // SAFETY: the handle is one that `dlsym` knows, the name ends in 0.
            unsafe { dlsym(NEXT, name.as_ptr()) }
        };
        // SAFETY: the C library has functions of these names and types; a null pointer cannot be, it is loaded.
        unsafe {
            Real {
                open: std::mem::transmute::<*mut c_void, Open>(next(c"open64")),
                write: std::mem::transmute::<*mut c_void, Write>(next(c"write")),
                write_at: std::mem::transmute::<*mut c_void, WriteAt>(next(c"pwrite64")),
                truncate: std::mem::transmute::<*mut c_void, Truncate>(next(c"ftruncate64")),
                fsync: std::mem::transmute::<*mut c_void, Sync>(next(c"fsync")),
                fdatasync: std::mem::transmute::<*mut c_void, Sync>(next(c"fdatasync")),
                rename: std::mem::transmute::<*mut c_void, Rename>(next(c"rename")),
                mkdir: std::mem::transmute::<*mut c_void, Mkdir>(next(c"mkdir")),
            }
        }
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Action {
    /// In the middle of the call: half of a write is done.
    Kill,
    /// When the call is done.
    KillAfter,
    /// The folder of the file goes away, and the call is made.
    Vanish,
    /// Half of what is to be written is, from then on every time; that is allowed.
    Short,
    /// The call fails with this number, from then on every time.
    Fail(c_int),
}

struct Plan {
    action: Action,
    call: String,
    nth: u64,
    path: String,
}

struct State {
    root: PathBuf,
    trace: Option<c_int>,
    plan: Option<Plan>,
    matched: AtomicU64,
}

static STATE: OnceLock<Option<State>> = OnceLock::new();

#[expect(clippy::disallowed_methods, reason = "a library that is preloaded has no other arguments")]
fn state() -> Option<&'static State> {
    let read = || {
        let root = PathBuf::from(std::env::var_os("FAULTS_ROOT")?);
        let trace = std::env::var_os("FAULTS_TRACE").and_then(|path| {
            let path = CString::new(path.into_vec()).ok()?;
            // SAFETY: the path ends in 0.
            Some(unsafe { (real().open)(path.as_ptr(), O_WRONLY_APPEND_CREAT, 0o644) })
        });
        let plan = std::env::var("FAULTS_PLAN").ok().and_then(|text| plan(&text));
        Some(State { root, trace, plan, matched: AtomicU64::new(0) })
    };
    STATE.get_or_init(read).as_ref()
}

fn plan(text: &str) -> Option<Plan> {
    let mut words = text.splitn(4, ' ');
    let action = match words.next()? {
        "kill" => Action::Kill,
        "kill-after" => Action::KillAfter,
        "vanish" => Action::Vanish,
        "short" => Action::Short,
        number => Action::Fail(number.parse().ok()?),
    };
    let (call, nth) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    Some(Plan { action, call, nth, path: words.next().unwrap_or_default().to_owned() })
}

impl State {
    /// Writes the call down and says what shall become of it.
    fn decide(&self, call: &str, path: &Path) -> Option<Action> {
        let path = path.strip_prefix(&self.root).ok()?.to_string_lossy().into_owned();
        self.note(&format!("{call} {path}\n"));
        let plan =
            self.plan.as_ref().filter(|plan| plan.call == call && (plan.path.is_empty() || plan.path == path))?;
        let n = self.matched.fetch_add(1, Ordering::SeqCst) + 1;
        if n == plan.nth {
            self.note(&format!("! {call} {path}\n"));
        }
        let goes_on = matches!(plan.action, Action::Fail(_) | Action::Short);
        (n == plan.nth || (goes_on && n > plan.nth)).then_some(plan.action)
    }

    fn note(&self, line: &str) {
        if let Some(trace) = self.trace {
            // SAFETY: the pointer and the length are those of one text. What cannot be written is missed by the test.
            unsafe { (real().write)(trace, line.as_ptr().cast(), line.len()) };
        }
    }
}

/// A path as the program named it, from the root.
fn named(path: *const c_char) -> PathBuf {
    // SAFETY: the program gives paths that end in 0.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    std::env::current_dir().map_or_else(|_| path.to_owned(), |here| here.join(path))
}

/// The path of an open file.
fn opened(file: c_int) -> PathBuf {
    let link = CString::new(format!("/proc/self/fd/{file}")).unwrap_or_default();
    let mut path = vec![0_u8; 4096];
    // SAFETY: the buffer is as long as it says.
    let length = unsafe { readlink(link.as_ptr(), path.as_mut_ptr().cast(), path.len()) };
    path.truncate(usize::try_from(length).unwrap_or(0));
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

fn fail(number: c_int) -> c_int {
    // SAFETY: it is this thread's own.
    unsafe { *__errno_location() = number };
    -1
}

fn die() {
    // SAFETY: nothing comes after it.
    unsafe { kill(getpid(), SIGKILL) };
}

/// The folder of the file gets a name under which nobody looks.
fn vanish(path: &Path) {
    let Some(state) = state() else { return };
    let Some(folder) = path.parent().filter(|folder| *folder != state.root) else { return };
    let grave = state.root.with_extension("gone");
    let names = [folder.as_os_str().to_owned().into_vec(), grave.into_os_string().into_vec()].map(CString::new);
    if let [Ok(from), Ok(to)] = names {
        // SAFETY: both end in 0.
        unsafe { (real().rename)(from.as_ptr(), to.as_ptr()) };
    }
}

/// Does what the plan says around a call that gives back a number.
fn around(call: &str, path: &Path, make: impl FnOnce() -> c_int) -> c_int {
    match state().and_then(|state| state.decide(call, path)) {
        Some(Action::Kill) => die(),
        Some(Action::Fail(number)) => return fail(number),
        Some(Action::Vanish) => vanish(path),
        Some(Action::KillAfter) => {
            make();
            die();
            return -1;
        }
        Some(Action::Short) | None => {}
    }
    make()
}

/// # Safety
/// As `open` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    let make = || unsafe { (real().open)(path, flags, mode) };
    if flags & O_CREAT == 0 { make() } else { around("create", &named(path), make) }
}

/// # Safety
/// As `fsync` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(file: c_int) -> c_int {
    // SAFETY: the argument is the caller's.
    around("fsync", &opened(file), || unsafe { (real().fsync)(file) })
}

/// # Safety
/// As `rename` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the arguments are the caller's.
    around("rename", &named(to), || unsafe { (real().rename)(from, to) })
}

/// # Safety
/// As `mkdir` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    around("mkdir", &named(path), || unsafe { (real().mkdir)(path, mode) })
}

/// # Safety
/// As `fdatasync` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    // SAFETY: the argument is the caller's.
    around("fsync", &opened(file), || unsafe { (real().fdatasync)(file) })
}

/// # Safety
/// As `ftruncate` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(file: c_int, length: i64) -> c_int {
    // SAFETY: the arguments are the caller's.
    around("truncate", &opened(file), || unsafe { (real().truncate)(file, length) })
}

/// # Safety
/// As `write` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, size: usize) -> isize {
    // SAFETY: the arguments are the caller's, and the size is no larger.
    around_write(file, size, |size| unsafe { (real().write)(file, bytes, size) })
}

/// # Safety
/// As `pwrite` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(file: c_int, bytes: *const c_void, size: usize, offset: i64) -> isize {
    // SAFETY: the arguments are the caller's, and the size is no larger.
    around_write(file, size, |size| unsafe { (real().write_at)(file, bytes, size, offset) })
}

/// Does what the plan says around a call that writes so many bytes.
fn around_write(file: c_int, size: usize, make: impl Fn(usize) -> isize) -> isize {
    // Terminals and pipes are nobody's files.
    if file <= 2 {
        return make(size);
    }
    let path = opened(file);
    match state().and_then(|state| state.decide("write", &path)) {
        None => make(size),
        Some(Action::Short) => make(size.div_ceil(2)),
        Some(Action::Fail(number)) => fail(number) as isize,
        Some(Action::Vanish) => {
            vanish(&path);
            make(size)
        }
        Some(Action::Kill) => {
            make(size / 2);
            die();
            -1
        }
        Some(Action::KillAfter) => {
            make(size);
            die();
            -1
        }
    }
}
