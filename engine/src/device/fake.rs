//! What does a test use in place of the CUDA run time? Functions that copy in main memory, and only when they are waited
//! for, so that who does not wait sees that nothing was copied.
#![expect(unsafe_code, reason = "the stand-ins have the signatures of C functions")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cudart;

const STREAM: usize = 0x57;

#[derive(Default)]
struct State {
    next_event: usize,
    events: Vec<usize>,
    copies: Vec<Copy>,
    locked: Vec<Box<[u8]>>,
}

struct Copy {
    from: usize,
    to: usize,
    bytes: usize,
    /// 0 before one was recorded behind it.
    event: usize,
}

impl Copy {
    fn make(self) {
        // SAFETY: the caller of `memcpy_async` keeps both until it has waited.
        unsafe { std::ptr::copy_nonoverlapping(self.from as *const u8, self.to as *mut u8, self.bytes) };
    }
}

static STATE: Mutex<State> =
    Mutex::new(State { next_event: 0, events: Vec::new(), copies: Vec::new(), locked: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn cudart() -> Cudart {
    Cudart {
        set_device,
        mem_get_info,
        stream_create_with_flags,
        stream_wait_event,
        stream_synchronize,
        event_create_with_flags,
        event_record,
        event_synchronize,
        event_destroy,
        memcpy_async,
        host_alloc,
        free_host,
    }
}

/// The same, but nothing can be recorded behind a copy.
pub(crate) fn cudart_without_marks() -> Cudart {
    unsafe extern "C" fn event_record(_event: *mut c_void, stream: *mut c_void) -> c_int {
        c_int::from(stream as usize == STREAM)
    }
    Cudart { event_record, ..cudart() }
}

/// Copies that nobody has waited for.
pub(crate) fn under_way() -> usize {
    state().copies.len()
}

/// Events that nobody has destroyed.
pub(crate) fn events() -> usize {
    state().events.len()
}

unsafe extern "C" fn set_device(_index: c_int) -> c_int {
    0
}

unsafe extern "C" fn mem_get_info(free: *mut usize, total: *mut usize) -> c_int {
    // SAFETY: the caller hands in two numbers.
    unsafe { (*free, *total) = (1 << 30, 2 << 30) };
    0
}

unsafe extern "C" fn stream_create_with_flags(stream: *mut *mut c_void, _flags: c_uint) -> c_int {
    // SAFETY: the caller hands in a variable.
    unsafe { *stream = STREAM as *mut c_void };
    0
}

unsafe extern "C" fn stream_wait_event(_stream: *mut c_void, event: *mut c_void, _flags: c_uint) -> c_int {
    c_int::from(!state().events.contains(&(event as usize)))
}

unsafe extern "C" fn stream_synchronize(_stream: *mut c_void) -> c_int {
    state().copies.drain(..).for_each(Copy::make);
    0
}

unsafe extern "C" fn event_create_with_flags(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    let mut state = state();
    state.next_event += 1;
    let new = state.next_event;
    state.events.push(new);
    // SAFETY: the caller hands in a variable.
    unsafe { *event = new as *mut c_void };
    0
}

unsafe extern "C" fn event_record(event: *mut c_void, stream: *mut c_void) -> c_int {
    if stream as usize == STREAM {
        for copy in state().copies.iter_mut().filter(|copy| copy.event == 0) {
            copy.event = event as usize;
        }
    }
    0
}

unsafe extern "C" fn event_synchronize(event: *mut c_void) -> c_int {
    state().copies.extract_if(.., |copy| copy.event == event as usize).for_each(Copy::make);
    0
}

unsafe extern "C" fn event_destroy(event: *mut c_void) -> c_int {
    let mut state = state();
    let before = state.events.len();
    state.events.retain(|&other| other != event as usize);
    c_int::from(state.events.len() == before)
}

unsafe extern "C" fn memcpy_async(
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
    _kind: c_int,
    _stream: *mut c_void,
) -> c_int {
    state().copies.push(Copy { from: from as usize, to: to as usize, bytes, event: 0 });
    0
}

unsafe extern "C" fn host_alloc(begin: *mut *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    // Numbers of every size find their place in it.
    const ALIGNMENT: usize = 64;
    let mut memory = vec![0_u8; bytes + ALIGNMENT].into_boxed_slice();
    let aligned = memory.as_ptr().align_offset(ALIGNMENT);
    // SAFETY: the caller hands in a variable.
    unsafe { *begin = memory[aligned..].as_mut_ptr().cast() };
    state().locked.push(memory);
    0
}

unsafe extern "C" fn free_host(begin: *mut c_void) -> c_int {
    let mut state = state();
    let before = state.locked.len();
    state.locked.retain(|memory| !memory.as_ptr_range().contains(&begin.cast::<u8>().cast_const()));
    c_int::from(state.locked.len() == before)
}
